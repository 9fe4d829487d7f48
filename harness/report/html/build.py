"""A results folder as the content of its report.

It computes no number: pages, figures and verdicts are those of the other verbs, laid out for a reader who clicks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.archive.archive import Archive
from harness.comparison.cells import Grid
from harness.comparison.claims import read_claims
from harness.comparison.contrasts import Contrasts
from harness.comparison.judging import Count, judge_claims, require_protocol
from harness.comparison.names import benchmark_rank, benchmark_title
from harness.comparison.papers import Papers
from harness.protocols.load import card_names
from harness.report.against_baseline import contrast_tables
from harness.report.answers import answer
from harness.report.figures.material import Pictures, baseline_of, materials, require_row
from harness.report.formats import as_csv
from harness.report.html.content import Behind, Content, PageTables, Picture
from harness.report.html.pictures import packed_figures, within
from harness.report.html.tables import claims_table, compared_table, gaps_table, numbers_table
from harness.report.page import Page, Table
from harness.report.pages import pages_below
from harness.report.titles import Titled
from harness.studies import Study, load_study, study_names
from harness.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a report is asked to show, and what it takes that records do not hold.

    Args:
        study: its rows, benchmarks and seeds alone.
        baseline: label of the row that others are compared with; see `materials`.
        protocol: whose scores judge claims.
        figures: draw them.
        room: bytes for figures and masks.
        closed_form: for claims on parameters.
        pictures: images for masks, None for none.
    """

    study: Study | None = None
    baseline: str = ""
    protocol: str = "nas-lora"
    figures: bool = True
    room: int = 3_500_000
    closed_form: Count
    pictures: Pictures | None = None


def collect(archive: Archive, asked: Asked) -> Content:
    """Everything that the report shows.

    Raises:
        UsageError: there is no folder of records, none in it that is asked for, no row of the baseline's label, or no
            card of the name that judges claims.
    """
    study = asked.study
    if study is not None and study.table.kind == "cost":
        raise UsageError(f"study {study.name!r} has costs and no scores; without --study the report shows costs too")
    pages = pages_below(archive, study=study)
    if not archive.records:
        raise UsageError(f"{archive.store.folder} holds no record; run something first (python -m harness.run …)")
    require_protocol(asked.protocol, archive.records, cards=card_names())
    own = [study.name] if study else sorted({record.run.protocol for record in archive.records})
    by_page = {name: pages.content[name].grids for name in own}
    titled = sorted((one for of_page in by_page.values() for one in of_page), key=lambda one: _weight(one.grid))
    if not titled:
        assert study is not None  # every record has a protocol's page
        raise UsageError(f"no record below {archive.root} belongs to study {study.name!r}")
    require_row(asked.baseline, [titled_grid.grid for titled_grid in titled])
    behind = Behind(archive)
    cost_names = [name for name in study_names() if load_study(name).table.kind == "cost"]
    others = [name for name in pages.content if name not in cost_names]
    groups = [
        _group(name, pages.content[name], _compared(by_page.get(name, ()), list(pages.content), asked), behind)
        for name in sorted(others, key=lambda name: _order(name, by_page))
    ]
    findings = judge_claims(
        read_claims(), archive, protocol=asked.protocol, papers=Papers.read(), closed_form=asked.closed_form
    )
    drawn, reasons = _drawn(archive, asked) if asked.figures else ([], [])
    drawn.sort(key=lambda picture: picture.about == "masks")  # of few images, and large
    kept, out = within(drawn, room=asked.room)
    columns = [column for titled_grid in titled for column in titled_grid.grid.columns]
    rows = [row.label for titled_grid in titled for row in titled_grid.grid.rows]
    variants = [method.variant for session in archive.costs for method in session.methods]
    benchmarks = sorted({column.benchmark for column in columns}, key=benchmark_rank)
    return Content(
        title=study.title if study else "Methods compared",
        facts=_facts(archive, titled),
        answers=[answer(titled_grid) for titled_grid in titled],
        compared=behind.placed(compared_table(titled), name="compared", words=0),
        groups=groups,
        numbers=behind.placed(numbers_table(titled), name="numbers", words=2),
        gaps=behind.placed(gaps_table(titled), name="gaps", words=2),
        costs=[_group(name, pages.content[name], [], behind) for name in cost_names if name in pages.content],
        claims=behind.placed(claims_table(findings), name="claims", words=0),
        claims_said=[_judged_on(asked.protocol, archive)],
        methods=list(dict.fromkeys([*rows, *variants])),
        benchmarks={name: benchmark_title(name) for name in benchmarks},
        metrics={column.metric: column.measure.title for column in columns},
        pictures=[picture for picture in kept if picture.about != "masks"],
        masks=[picture for picture in kept if picture.about == "masks"],
        skipped=[f"{path}: {reason}" for path, reason in sorted(pages.skipped.items())],
        left_out=[*_no_room(out), *reasons],
        behind=behind.texts,
        lines=behind.lines,
    )


def _compared(titled: Sequence[Titled], pages: Sequence[str], asked: Asked) -> list[Table]:
    """Differences to a baseline, for a page that has none itself; nothing where the page of a study shows them."""
    studies = [load_study(name) for name in pages if name in study_names()]
    shown = {study.protocol for study in studies if study.table.baseline}
    if asked.study and asked.study.table.baseline:
        return []
    tables: list[Table] = []
    for titled_grid in titled:
        if titled_grid.grid.sheet.protocol not in shown and not titled_grid.grid.is_generated:
            contrasts = Contrasts.of(titled_grid.grid, baseline_of(titled_grid.grid, asked.study, asked.baseline).label)
            tables += contrast_tables(contrasts, title=titled_grid.title) if contrasts else []
    return tables


def _group(name: str, page: Page, more: Sequence[Table], behind: Behind) -> PageTables:
    tables = [
        behind.placed(table, name=f"{name}-{number}") for number, table in enumerate([*page.tables, *more], start=1)
    ]
    foot = [*page.foot, *page.legend(best="Bold", tied="≈", second="Underlined")]
    csv = as_csv(page) if page.numbers else ""
    return PageTables(name=name, title=page.title, note=page.note, tables=tables, foot=foot, csv=csv)


def _order(name: str, by_page: Mapping[str, Sequence[Titled]]) -> tuple[bool, int, str]:
    """Sort key of pages: real images first, then those with many runs."""
    grids = [one.grid for one in by_page.get(name, ())]
    generated = bool(grids) and all(grid.is_generated for grid in grids)
    return generated, -sum(len(grid.records) for grid in grids), name


def _weight(grid: Grid) -> tuple[bool, int]:
    """Sort key of grids: real images first, then those with many runs."""
    return grid.is_generated, -len(grid.records)


def _drawn(archive: Archive, asked: Asked) -> tuple[list[Picture], list[str]]:
    """Pictures, and why others were not drawn."""
    try:
        found = materials(archive, study=asked.study, baseline=asked.baseline, pictures=asked.pictures)
    except UsageError as error:  # no run ended well: the tables say so too
        return [], [str(error)]
    drawn = list(packed_figures(sorted(found, key=lambda material: _weight(material.grid))))
    return [drawing for drawing in drawn if isinstance(drawing, Picture)], [
        drawing for drawing in drawn if isinstance(drawing, str)
    ]


def _no_room(out: Sequence[Picture]) -> list[str]:
    """Figures that there was no room for, as a line."""
    if not out:
        return []
    titles = ", ".join(picture.title for picture in out)
    return [f"No room for {len(out)} figures in one page: {titles}; sam-peft figures draws them."]


def _facts(archive: Archive, titled: Sequence[Titled]) -> list[str]:
    shown = {record.key for titled_grid in titled for record in titled_grid.grid.records}
    days = sorted(record.finished[:10] for record in archive.records if record.key in shown and record.finished)
    period = f"finished {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    runs = f"{len(shown)} runs under {len(titled)} {'set' if len(titled) == 1 else 'sets'} of rules"
    return [f"results folder {archive.root}", runs, *([period] if period else [])]


def _judged_on(protocol: str, archive: Archive) -> str:
    others = sorted({record.run.protocol for record in archive.records} - {protocol})
    said = f"Judged on scores under the card {protocol} and on every cost session"
    return said + (f"; scores under {', '.join(others)} do not count here." if others else ".")
