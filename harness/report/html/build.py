"""A results folder as a site: a page a study that was run, one of other runs under a card, one of costs, one of claims.

It computes no number: cells, tables and verdicts are those of the other verbs, laid out for a reader who clicks.
Only the report has the tables of what was compared, of every number, of every gap, and of the papers' claims.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.archive.measured import CostStore, ForgettingStore
from harness.archive.schema import Record
from harness.comparison.cells import Cell, Column, Grid
from harness.comparison.claims import read_claims
from harness.comparison.judging import Count, Finding, judge_claims, require_protocol
from harness.comparison.names import benchmark_rank, benchmark_title
from harness.comparison.papers import Papers
from harness.comparison.rows import MISSING, Row, is_result, is_run, quoted
from harness.comparison.rules import card
from harness.report.answers import answer
from harness.report.costs import cost_page
from harness.report.figures.material import Material, Pictures, baseline_of, require_row
from harness.report.forgetting import forgetting_page
from harness.report.formats import as_csv, tex, write
from harness.report.html.content import Behind, Group, Part, Site, SitePage, opener
from harness.report.html.headline import RATES, Headline, headline, row_names
from harness.report.html.pictures import drawn_figures
from harness.report.html.strip import Photographs, strips
from harness.report.page import Head, Line, Page, Shown, Table, heads
from harness.report.pages import require_records
from harness.report.score_page import score_page
from harness.report.score_tables import updates_in_words
from harness.report.titles import Titled
from harness.studies import Study, load_study, study_names
from harness.system.errors import UsageError

FORGETTING, COST, CLAIMS = "forgetting", "cost", "claims"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a site is asked to show, and what it takes that records do not hold.

    Args:
        studies: pages of these alone; empty for all that there are.
        baseline: label of the row that others are compared with; see `baseline_of`.
        protocol: whose scores judge claims.
        closed_form: for claims on parameters.
        pictures: photographs for masks, None for none.
        photographs: which of them may be shown.
    """

    studies: Sequence[Study] = ()
    baseline: str = ""
    protocol: str = "nas-lora"
    closed_form: Count
    pictures: Pictures | None = None
    photographs: Photographs = "redistributable"


def collect(archive: Archive, asked: Asked) -> Site:
    """Everything that the site shows. Raises UsageError: there is no folder of records, nothing in it that is asked for, no row
    of the baseline's label, or no card of the name that judges claims."""
    require_records(archive)
    if not archive.records:
        raise UsageError(f"{archive.store.folder} holds no record; run something first (python -m harness.run …)")
    require_protocol(asked.protocol, archive.records)
    if without := [study.name for study in asked.studies if study.table.kind == "cost"]:
        raise UsageError(f"study {without[0]!r} has costs and no scores; without --study the site shows costs too")
    scored = _asked_pages(archive, asked) if asked.studies else _every_page(archive)
    require_row(asked.baseline, [titled.grid for _, page in scored for titled in page.grids])
    pages = [_study_page(archive, asked, page, name=name, study=study) for (name, study), page in scored]
    pages.sort(key=lambda page: (page.order, page.name))
    shown = {record.key for _, page in scored for titled in page.grids for record in titled.grid.records}
    problems = dict(archive.problems)
    if not asked.studies:
        costs, forgetting = CostStore(archive.root), ForgettingStore(archive.root)
        if archive.costs:
            page = cost_page(
                archive.costs, title="Training and inference cost", claims=read_claims(), papers=Papers.read()
            )
            pages.append(_tables_page(archive, page, name=COST, question="What does training cost?"))
        if any(forgetting):
            page = forgetting_page(archive.records, forgetting)
            pages.append(_tables_page(archive, page, name=FORGETTING, question="What do tuned models forget?"))
        pages.append(_claims_page(archive, asked))
        problems |= {**costs.problems(), **forgetting.problems()}
    return Site(
        facts=_facts([record for record in archive.records if record.key in shown]),
        pages=pages,
        skipped=[f"{path}: {reason}" for path, reason in sorted(problems.items())],
    )


Named = tuple[str, Study | None]


def _asked_pages(archive: Archive, asked: Asked) -> list[tuple[Named, Page]]:
    """Of the studies that were run as they say; where none was, of those that have a record."""
    made = [(study, _scores(archive, archive.records, study=study)) for study in asked.studies]
    made = [(study, page) for study, page in made if page.grids]
    pages = [
        (study, page) for study, page in made if _was_run(study, page)
    ] or made  # of several, those alone that were run as they say
    if not pages:
        names = ", ".join(study.name for study in asked.studies)
        raise UsageError(f"no record below {archive.root} belongs to study {names!r}")
    return [((study.name, study), page) for study, page in pages]


def _every_page(archive: Archive) -> list[tuple[Named, Page]]:
    """A page a study whose own card at least half of its rows were run under; then, by card, the rows that none of them shows."""
    pages: list[tuple[Named, Page]] = []
    protocols = {record.run.protocol for record in archive.records}
    shown: set[str] = set()
    for study in map(load_study, study_names()):
        if study.table.kind == "cost" or study.phases or study.protocol not in protocols:
            continue
        page = _scores(archive, archive.records, study=study)
        if _was_run(study, page):
            pages.append(((study.name, study), page))
            shown |= {record.key for titled in page.grids for record in titled.grid.records}
    for protocol in sorted(protocols):
        rest = [
            record for record in archive.records
            if record.run.protocol == protocol and record.key not in shown and is_result(record.run)
        ]  # fmt: skip
        if rest:
            pages.append(((protocol, None), _scores(archive, rest)))
    return pages


def _was_run(study: Study, page: Page) -> bool:
    """Whether at least half of its rows have a run under its own card."""
    own = [titled.grid for titled in page.grids if titled.grid.sheet.protocol == study.protocol]
    return 2 * max([sum(bool(row.runs) for row in grid.rows) for grid in own], default=0) >= max(len(study.entries), 1)


def _scores(archive: Archive, records: Iterable[Record], *, study: Study | None = None) -> Page:
    return score_page(records, archive, papers=Papers.read(), study=study)


def _study_page(archive: Archive, asked: Asked, page: Page, *, name: str, study: Study | None) -> SitePage:
    titled = sorted(page.grids, key=lambda section: (section.grid.is_generated, -len(section.grid.records)))
    grids = [section.grid for section in titled]
    baselines = {grid: baseline_of(grid, study, asked.baseline) for grid in grids}
    names = {row: said for grid in grids for row, said in row_names(grid.rows).items()}
    behind = Behind(archive, opener(grids, names, baselines))
    compares = bool(study is None or study.table.baseline or asked.baseline)
    parts = [
        _part(archive, asked, section, behind, place=place, several=len(titled) > 1, compares=compares, study=study)
        for place, section in enumerate(titled)
    ]
    first = parts[0].headline
    rules = [line for section in titled for line in [section.title] * (len(titled) > 1) + section.above()]
    tables = [behind.placed(table, name=f"table-{number}") for number, table in enumerate(page.tables, start=1)]
    gaps = gaps_table(titled)
    sentences = [line for section in titled for line in [section.title] * (len(titled) > 1) + answer(section.grid)]
    groups = [
        Group(name="sentences", title="In sentences: who is best, what it trains, budgets, what is missing", said=sentences),
        Group(name="all", title="Every number", tables=[behind.placed(numbers_table(titled), name="numbers", words=2)]),
        Group(
            name="tables", title="Tables: scores, tuning, differences with p-values, ranks", tables=tables,
            said=_how_to_read(page),
        ),
        Group(
            name="rules", title="Rules, data and splits", said=rules,
            tables=[behind.placed(compared_table(titled), name="compared", words=0)],
        ),
        Group(
            name="missing", title=f"Gaps ({len(gaps.rows)})" if gaps.rows else "Gaps: none",
            tables=[behind.placed(gaps, name="gaps", words=2)] if gaps.rows else [],
            said=[] if gaps.rows else ["Every planned run has its score."],
        ),
    ]  # fmt: skip
    columns = [column for grid in grids for column in grid.columns]
    benchmarks = sorted({column.benchmark for column in columns}, key=benchmark_rank)
    question = (study.question or study.title) if study else f"Other runs under the card {name}"
    if grids and all(grid.is_generated for grid in grids):
        question = "Does the path from files to tables work?" if study is None else question
    return SitePage(
        name=name, question=question, verdict=first.verdict, note=study.note if study else "",
        facts=[", ".join(benchmark_title(benchmark) for benchmark in benchmarks), *_facts([r for grid in grids for r in grid.records])],
        parts=parts, groups=groups, pictures=drawn_figures(archive.root, name),
        methods={row.label: row.label for grid in grids for row in grid.rows},
        benchmarks={benchmark: benchmark_title(benchmark) for benchmark in benchmarks},
        metrics={column.metric: column.measure.title for column in columns},
        behind=behind,
        copies={"LaTeX": _latex(parts, question), "BibTeX": _bibtex(name, question)}, csv=as_csv(page),
        order=_order(grids, study),
    )  # fmt: skip


def _part(
    archive: Archive, asked: Asked, titled: Titled, behind: Behind, *, place: int, several: bool, compares: bool,
    study: Study | None,
) -> Part:  # fmt: skip
    grid = titled.grid
    baseline = baseline_of(grid, study, asked.baseline)
    made = headline(grid, baseline=baseline, compares=compares)
    material = Material(name=titled.title, grid=grid, baseline=baseline, study=study)
    if asked.pictures:
        material = replace(material, pictures=asked.pictures)
    name = "" if place == 0 else f"rules-{place + 1}-"
    first = [baseline, *(row for row in grid.rows if row is not baseline)]
    return Part(
        name=name, title=titled.title if several else "", headline=made,
        why=[[behind.place_of(Shown(text="", of=score.cell)) for score in standing.scores] for standing in made.standings],
        anchors=[
            [f"{name}{slug}--{score.cell.column.benchmark}" for score in standing.scores]
            for standing in made.standings
            for slug in [re.sub(r"[^a-z0-9]+", "-", standing.name.text.lower()).strip("-") or "row"]
        ],
        strips=strips(material, row_names(grid.rows), first=first, photographs=asked.photographs),
    )  # fmt: skip


def _order(grids: Sequence[Grid], study: Study | None) -> tuple[float, ...]:
    """Real images first, then studies, then what most runs a row speak for."""
    generated = all(grid.is_generated for grid in grids)
    rows, runs = sum(len(grid.rows) for grid in grids), sum(len(grid.records) for grid in grids)
    return (generated, study is None, -runs / max(rows, 1), -rows)


def _tables_page(archive: Archive, page: Page, *, name: str, question: str) -> SitePage:
    behind = Behind(archive)
    tables = [behind.placed(table, name=f"{name}-{number}") for number, table in enumerate(page.tables, start=1)]
    groups: list[Group] = []
    for table in tables:  # what follows on a table of its own belongs to it
        if table.table.level == 2 or not groups:
            groups.append(
                Group(name=f"{table.name}-group", title=table.table.heading, is_open=not groups, tables=[table])
            )
        else:
            groups[-1] = replace(groups[-1], tables=[*groups[-1].tables, table])
    if groups:
        groups[0] = replace(groups[0], said=_how_to_read(page))
    lead = [*page.lead, *([page.note] if page.note else [])]
    return SitePage(
        name=name, question=question, verdict=" ".join(lead[:1]), groups=groups, behind=behind,
        csv=as_csv(page) if page.numbers else "",
        methods={line.method: line.method for table in page.tables for line in table.rows if line.method},
        order=(2.0,),
    )  # fmt: skip


def _how_to_read(page: Page) -> list[str]:
    """What its file says below all tables, with the marks as the site draws them."""
    return [*page.foot, *page.legend(best="Bold", tied="≈", second="Underlined")]


def _claims_page(archive: Archive, asked: Asked) -> SitePage:
    findings = judge_claims(
        read_claims(), archive, protocol=asked.protocol, papers=Papers.read(), closed_form=asked.closed_form
    )
    behind = Behind(archive)
    table = claims_table(findings)
    others = sorted({record.run.protocol for record in archive.records} - {asked.protocol})
    said = f"Judged on scores under the card {asked.protocol} and on every cost session"
    said += f"; scores under {', '.join(others)} do not count here." if others else "."
    group = Group(
        name="verdicts", title="Claims", is_open=True, said=[said], tables=[behind.placed(table, name="claims", words=0)]
    )  # fmt: skip
    return SitePage(
        name=CLAIMS, question="Do the papers' claims hold?", verdict=_judged(table), groups=[group], behind=behind,
        order=(3.0,),
    )  # fmt: skip


def _judged(table: Table) -> str:
    """How many claims have which verdict, in the words of the table."""
    verdicts = Counter(line.cells[1].text for line in table.rows)
    return f"Of {len(table.rows)} claims: {', '.join(f'{count} {word}' for word, count in verdicts.most_common())}."


def _latex(parts: Sequence[Part], question: str) -> str:
    """The leaderboards as tabulars."""
    tables = [_as_table(part.headline, part.title or question) for part in parts]
    return write(Page(title=question, tables=tables), style="latex")


def _as_table(board: Headline, heading: str) -> Table:
    rows = []
    for standing in board.standings:
        cells = [Shown(text=standing.name.text)]
        for score in standing.scores:
            spread = score.cell.spread if score.point else None
            cells.append(
                Shown(text=score.text + (f" ± {100 * spread:.1f}" if spread is not None else ""), mark=score.mark)
            )
        cells += [Shown(text=standing.trained or "–"), Shown(text=standing.cost or "–")]
        rows.append(Line(label=standing.name.text, cells=cells))
    columns = [
        Head(title="method", words=True), *(Head(title=title) for title in board.headings),
        Head(title="params (M)"), Head(title=f"step / {board.cost_of}"),
    ]  # fmt: skip
    return Table(heading=heading, columns=columns, rows=rows, below=["Mean over seeds in %, ± SD over seeds."])


def _bibtex(name: str, question: str) -> str:
    from harness import __version__

    key, title = re.sub(r"\W+", "_", name), question.replace("{", "").replace("}", "")
    return (
        f"@misc{{sam_peft_{key},\n  title  = {{{{{tex(title)}}}}},\n  author = {{{{The SAM PEFT harness maintainers}}}},\n"
        f"  note   = {{Results of the SAM PEFT harness, version {__version__}, page {tex(name)}}}\n}}\n"
    )


def _facts(records: Sequence[Record]) -> list[str]:
    unique = {record.key: record for record in records}.values()
    seeds = len({record.run.seed for record in unique})
    days = sorted(record.finished[:10] for record in unique if record.finished)
    period = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
    return [f"{len(unique)} runs", f"{seeds} {'seed' if seeds == 1 else 'seeds'}", *([period] if period else [])]


NOTES = (
    "SD over seeds (ddof = 1). 95 % CI: Student's t over the seeds (wider where every seed splits the images anew, which share"
    " images), of this row alone: rows are compared by their paired differences. Rank: by mean among the rows of the"
    " column without a gap, 1 is best.",
    "Updates: of the weights, + those of α. Rows with different updates differ in their scores for this reason too.",
)


def compared_table(titled: Sequence[Titled]) -> Table:
    """Rules, what they were run on, and where; a line a set of rules."""
    lines = []
    for titled_grid in titled:
        grid = titled_grid.grid
        codes = Counter(str(record.code) for record in grid.records)
        devices = sorted({record.environment.get("device", "") for record in grid.records} - {""})
        days = [record.finished[:10] for record in grid.records if record.finished]
        words = (
            titled_grid.title,
            "card not known" if titled_grid.overrides is None else titled_grid.overrides or "none",
            ", ".join(map(benchmark_title, grid.benchmarks)),
            ", ".join(dict.fromkeys(quoted(row.label) for row in grid.rows)),
            ", ".join(map(str, grid.seeds)),
            ", ".join(f"{count} {code}" for code, count in sorted(codes.items())),
            ", ".join(devices) or "–",
            " to ".join(dict.fromkeys((min(days), max(days)))) if days else "–",
        )
        lines.append(Line.of(words, titled_grid))
    columns = heads(
        *("rules", "differences to the card", "benchmarks", "methods", "seeds", "runs", "on", "finished"),
        words=("differences to the card", "benchmarks", "methods", "on"),
    )
    return Table(heading="What was compared", columns=columns if lines else (), rows=lines)


def numbers_table(titled: Sequence[Titled]) -> Table:
    """A line a number that was planned."""
    lines = []
    for titled_grid in titled:
        grid = titled_grid.grid
        for column in grid.columns:
            ranks = _ranks(grid, column)
            for cell in (cell for cell in grid.below(column) if cell.planned):
                made = _made(cell.row.runs_on(column.benchmark))
                codes = "; ".join(_messages(cell).values()) or "OK"
                words = (
                    cell.row.shown, benchmark_title(column.benchmark), column.within, *_numbers(cell),
                    ranks.get(cell.row, "–"), *made, codes, titled_grid.title,
                )  # fmt: skip
                tags = {"method": cell.row.label, "benchmark": column.benchmark, "metric": column.metric}
                lines.append(Line.of(words, cell, label=cell.row.label, **tags))
    columns = heads(
        *("method", "benchmark", "metric", "mean (%)", "SD", "95 % CI", "n", "rank", "updates", "rate"),
        *("rate chosen by", "code", "rules"),
        words=("benchmark", "metric", "rate chosen by", "code", "rules"),
    )
    return Table(heading="Every number", columns=columns if lines else (), rows=lines, below=NOTES)


def gaps_table(titled: Sequence[Titled]) -> Table:
    """A line a planned run that gave no score."""
    lines: dict[tuple[str, ...], Line] = {}
    for titled_grid in titled:
        for cell in titled_grid.grid.cells.values():
            benchmark = cell.column.benchmark
            for seed, message in _messages(cell).items():
                words = (
                    cell.row.label, benchmark_title(benchmark), str(seed), cell.codes[seed], message, titled_grid.title
                )  # fmt: skip
                lines.setdefault(words, Line.of(words, cell, method=cell.row.label, benchmark=benchmark))
    columns = heads(
        *("method", "benchmark", "seed", "code", "message", "rules"), words=("benchmark", "code", "message", "rules")
    )
    return Table(heading="Gaps", columns=columns if lines else (), rows=list(lines.values()))


def claims_table(findings: Sequence[Finding]) -> Table:
    """The sentence, the verdict, and how many readings have data; every reading stands behind its cells."""
    lines = []
    for finding in findings:
        claim, readings = finding.claim, (*finding.readings, *finding.averages)
        measured = [reading for reading in readings if reading.estimate is not None]
        words = (
            claim.name, str(finding.verdict), f"{claim.text} [{claim.mark}: {claim.source}]", claim.expected,
            f"{len(measured)} of {len(readings)}",
        )  # fmt: skip
        lines.append(Line.of(words, finding))
    columns = heads("claim", "verdict", "sentence", "holds for", "readings with data", words=("verdict", "sentence"))
    return Table(heading="Claims of the papers", columns=columns if lines else (), rows=lines)


def _messages(cell: Cell) -> dict[int, str]:
    """Seed -> ``OOM (seed 2): asked for 90 GiB`` of every run that gave no score."""
    messages = {}
    for seed, code in sorted(cell.codes.items()):
        told = [
            record.message for record in cell.records if record.run.seed == seed and is_run(record) and record.message
        ]
        words = told[0] if told else "no record" if code == MISSING else ""
        messages[seed] = f"{code} (seed {seed})" + (f": {words}" if words else "")
    return messages


def _numbers(cell: Cell) -> list[str]:
    """Mean, SD, interval and n."""
    if not cell.complete:
        return ["–", "–", "–", f"{len(cell.seeds)} of {len(cell.planned)}"]
    spread, interval = cell.spread, cell.interval
    bounds = f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]" if interval else "–"
    return [f"{100 * cell.value:.2f}", "–" if spread is None else f"{100 * spread:.2f}", bounds, str(cell.n)]


def _ranks(grid: Grid, column: Column) -> dict[Row, str]:
    means = {cell.row: column.sign * cell.value for cell in grid.below(column) if cell.complete}
    if len(means) < 2:
        return {}
    ranks = stats.average_ranks([list(means.values())])
    return {row: f"{rank:g} of {len(means)}" for row, rank in zip(means, ranks, strict=True)}


def _made(runs: Sequence[Record]) -> list[str]:
    """Updates, rate and how it was chosen; of the runs of one row, which mostly share them."""
    if not runs:
        return ["–", "–", "–"]
    rates, chosen = (
        " or ".join(dict.fromkeys(filter(None, map(words, runs)))) or "–" for words in (_rate, _how_chosen)
    )
    return [updates_in_words(runs), rates, chosen]


def _rates(record: Record) -> dict[str, float]:
    """By name those that trained something, the main one first."""
    config, rules, trained = record.run.method_config, record.run.rules, record.parameters
    if not trained.get("trainable", 1):
        return {}
    rates = {name: config.get(name) for name in RATES} | {"decoder_lr": rules.get("decoder_lr")}
    rates["lr"] = rates["lr"] if rates["lr"] is not None else rules.get("lr")
    if rates["decoder_lr"] is not None and (rates["encoder_lr"] is not None or not trained.get("encoder", 1)):
        del rates["lr"]  # both sides have a rate of their own, or the decoder's is the only one
    if record.budget and not record.budget.get("alpha_updates"):
        del rates["alpha_lr"]
    return {name: value for name, value in rates.items() if isinstance(value, int | float)}


def _rate(record: Record) -> str:
    """``5e-04, encoder 1e-05``: that of the weights first; others only where the run has them."""
    return ", ".join(f"{RATES[name]}{value:.4g}" for name, value in _rates(record).items())


def _how_chosen(record: Record) -> str:
    """Tuned, set for this row, set for the method by the card or by its own default, or for all rows by the command or the card."""
    run, rates = record.run, _rates(record)
    if not rates:
        return ""
    if any(name in rates for name in run.tuning.get("chosen", {})):
        return f"tuned, {len(run.tuning.get('trials', ()))} trials"
    if any(name in run.changed for name in rates):
        return "this row"
    of_method = run.rules.get("methods", {}).get(run.method, {})
    if any(name in of_method for name in rates):
        return "card, for this method"
    if next(iter(rates)) == "decoder_lr":
        of_card = card(run.protocol, run.benchmark) or {}
        return "card" if of_card.get("decoder_lr") == rates["decoder_lr"] else "the command, for all rows"
    return "card" if run.method_config.get("lr") is None else "the method's default"
