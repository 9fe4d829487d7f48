"""The page of scores: a table for each protocol hash, backbone and checkpoint, and published numbers beside ours.

With a baseline row, every row against it: differences by benchmark, then across benchmarks, and whether models rank rows
alike. The same records give the same bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.archive.schema import Record, Run
from harness.comparison.cells import Cell, Column, Difference, Grid
from harness.comparison.grids import Contrast, contrasts
from harness.comparison.judging import judge
from harness.comparison.papers import PARAMETERS, Papers, Published, against, shortly
from harness.comparison.rankings import ModelPair, chance_in_words, model_pairs, pair_with, read_elsewhere
from harness.comparison.rows import Row, is_entry, placeholder
from harness.report.page import Line, Page, Table, Told, heads
from harness.report.score_tables import footnotes, numbers_of, score_tables, tuning_tables
from harness.report.titles import Titled, titled_grids
from harness.studies import Study

NOTES = (
    "Δ: mean difference in points, paired by seed, positive is better (n pairs). 95 % CI: over seeds and images (crossed),"
    " so it speaks of other seeds and other images; over seeds alone (marked t) where a score is not a mean over images.",
    "p seeds: sign flips of the seeds' differences. p images: sign flips of each image's difference, averaged over the"
    " seeds at hand; it says nothing of other seeds. Both adjusted after Holm over the methods of a benchmark.",
)


def contrast_tables(grid: Grid, base: Row, against: Sequence[Contrast], *, title: str) -> list[Table]:
    """Differences to a row by benchmark, and what follows across benchmarks."""
    notes = list(NOTES)
    clusters = [
        f"{contrast.column.short}: {contrast.difference.clusters}"
        for contrast in against
        if contrast.difference.clusters
    ]
    if clusters:
        notes.append(f"Images that are not independent count by cluster ({', '.join(dict.fromkeys(clusters))}).")
    if any(contrast.difference.folds for contrast in against):
        notes.append(
            "folds: every seed splits the images anew, and the interval over the seeds counts what folds share (variance"
            " s² (1/k + tested/trained), Nadeau and Bengio 2003)."
        )
    few_seeds = all(contrast.p_seeds is None for contrast in against)
    differences = Table(
        heading=f"{title}: differences to {base.label}",
        level=3,
        columns=heads(
            *("method", "number", "Δ (n)", "95 % CI", "p seeds", "p images"),
            words=("number", *["p seeds"] * few_seeds),
        ),
        rows=[_line(contrast) for contrast in against],
        below=notes,
    )
    return [differences, *_across(grid, base, against, title=title)]


def _line(contrast: Contrast) -> Line:
    row, column, difference = contrast.row, contrast.column, contrast.difference
    interval = difference.interval
    bounds = "–" if interval is None else f"[{_points(interval.low)}, {_points(interval.high)}]"
    words = (
        column.short,
        f"{_points(difference.mean)} ({len(difference.by_seed)})",
        bounds + _judged_by(difference),
        *contrast.p_in_words,
    )
    return Line.of_row(row, words, contrast, on=column)


def _judged_by(difference: Difference) -> str:
    """How an interval was made where it is not over seeds and images."""
    if difference.interval is None or difference.by_image is not None:
        return ""
    return " folds" if difference.folds else " t"


def _points(value: float) -> str:
    return f"{value:+z.2f}"


def _across(grid: Grid, base: Row, against: Sequence[Contrast], *, title: str) -> list[Table]:
    """Up to three: mean differences over benchmarks, ranks, and median, interquartile mean and mean of all runs."""
    columns = grid.one_each
    complete = [row for row in grid.rows if all(grid.cells[row, column].complete for column in columns)]
    differences: dict[Row, dict[Column, Difference]] = {}
    for contrast in against:
        if contrast.column in columns and {base, contrast.row} <= {*complete}:
            differences.setdefault(contrast.row, {})[contrast.column] = contrast.difference
    made = [_means(base, columns, differences, title=title), _robust(grid, columns, complete, title=title)]
    if len(complete) > 1 and len(columns) > 1 and base in complete:
        made.insert(1, _ranks(grid, base, columns, complete, title=title))
    tables = [table for table in made if table.rows]
    left_out = _left_out(grid, columns, complete)
    if tables and left_out:
        tables[-1] = replace(tables[-1], below=[*tables[-1].below, left_out])
    return tables


def _left_out(grid: Grid, columns: Sequence[Column], complete: Sequence[Row]) -> str:
    """``3 of 14 rows are left out across benchmarks: ssf (OOM on CAMO, …), …``"""
    reasons = []
    for row in (row for row in grid.rows if row not in complete):
        missing: dict[str, list[str]] = {}
        for column in columns:
            if not (cell := grid.cells[row, column]).complete:
                missing.setdefault(cell.code or "not planned", []).append(column.benchmark_title)
        words = "; ".join(f"{why} on {', '.join(dict.fromkeys(on))}" for why, on in missing.items())
        reasons.append(f"{row.shown} ({words})")
    if not reasons:
        return ""
    return f"{len(reasons)} of {len(grid.rows)} rows are left out across benchmarks: {', '.join(reasons)}."


def _sides(by_column: Mapping[Column, Difference]) -> list[str]:
    """What stands behind the mean over benchmarks of a row's differences to the baseline."""
    lines = []
    for column, difference in by_column.items():
        interval = difference.interval
        lines.append(f"  {column.short}: {difference.mean:+.4f}" + (f" {interval:+.4f}" if interval else " (one seed)"))
        for cell in (difference.first, difference.second):
            lines.append(f"    {cell.row.shown}: {', '.join(record.key for record in cell.records)}")
    return lines


def _all_runs(grid: Grid, row: Row, columns: Sequence[Column]) -> list[str]:
    """All runs of a row, on one column a benchmark."""
    lines = []
    for column in columns:
        cell = grid.cells[row, column]
        values = ", ".join(f"seed {seed}: {100 * value:.4f}" for seed, value in sorted(cell.values.items()))
        lines += [f"  {column.short}: {values}", f"    {', '.join(record.key for record in cell.records)}"]
    return lines


def _means(
    base: Row, columns: Sequence[Column], differences: Mapping[Row, Mapping[Column, Difference]], *, title: str
) -> Table:
    """The mean of a row's differences over the benchmarks; empty with fewer than two benchmarks."""
    lines = []
    for row, by_column in differences.items() if len(columns) > 1 else ():
        if not all(column in by_column for column in columns):
            continue
        ordered = {column: by_column[column] for column in columns}
        mean = stats.average_of([difference.estimate for difference in ordered.values()])
        others = stats.t_interval([difference.mean for difference in ordered.values()])
        better = sum(difference.mean > 0 for difference in ordered.values())
        words = (f"{mean.mean:+.2f}", _bounds(mean.interval()), _bounds(others), f"{better} of {len(columns)}")
        lines.append(Line.of_row(row, words, Told(lines=partial(_sides, ordered))))
    return Table(
        heading=f"{title}: mean difference to {base.label} over {len(columns)} benchmarks",
        level=3,
        columns=heads("method", "mean Δ", "95 % CI, these benchmarks", "95 % CI, other benchmarks", "better on"),
        rows=lines,
        below=[
            "Mean Δ: each benchmark's difference in points of its first metric, all weighted alike. These benchmarks: over"
            " seeds and images of each. Other benchmarks: Student's t over the benchmarks, as if they were drawn.",
        ],
    )


def _bounds(interval: stats.Interval | None) -> str:
    return "–" if interval is None else f"{interval:+.2f}"


def _ranks(grid: Grid, base: Row, columns: Sequence[Column], complete: Sequence[Row], *, title: str) -> Table:
    """Ranks over two benchmarks or more of the rows that are complete on each, two or more."""
    scores = {row.label: [grid.cells[row, column].signed for column in columns] for row in complete}
    table = [[statistics.fmean(runs[number]) for runs in scores.values()] for number in range(len(columns))]
    ranks = stats.average_ranks(table)
    stability = stats.rank_stability(scores)
    single = min(len(runs) for by_column in scores.values() for runs in by_column) < 2
    lines = []
    for rank, row in zip(ranks, complete, strict=True):
        better = "–"
        if row is not base and not single:
            chance = stats.probability_of_improvement(scores[row.label], scores[base.label])
            better = f"{chance.estimate:.2f} {chance:.2f}"
        first = "–" if single else f"{100 * stability[row.label].get(1, 0.0):.0f} %"
        runs = Told(lines=partial(_all_runs, grid, row, columns))
        lines.append(Line.of_row(row, (f"{rank:.2f}", first, better), runs))
    below = [
        "Mean rank over benchmarks by mean score, 1 is best. First: how often the row is best when seeds are redrawn"
        " for all rows at once; rows that tie are both.",
        f"P(better): chance that a run beats a run of {base.label}, averaged over benchmarks [the middle 95 % of bootstrap"
        " resamples of the seeds: too narrow for a confidence interval where seeds are few].",
    ]
    if len(complete) > 2:
        test = stats.friedman(table)
        said = f"Friedman over {len(columns)} benchmarks (χ² approximation): {test.text}."
        if test.p is not None:
            gap = stats.nemenyi_critical_difference(methods=len(complete), blocks=len(columns))
            said += f" Nemenyi: ranks {gap:.2f} apart differ at 5 %."
        below.append(said)
    columns_shown = heads("method", "mean rank", "first", "P(better)")
    heading = f"{title}: ranks across benchmarks"
    return Table(heading=heading, level=3, columns=columns_shown, rows=lines, below=below)


def _robust(grid: Grid, columns: Sequence[Column], complete: Sequence[Row], *, title: str) -> Table:
    """Median, interquartile mean and mean of all runs of a row; empty where no row has two seeds."""
    lines = []
    for row in complete:
        signed = [grid.cells[row, column].signed for column in columns]
        runs = [
            [100 * (1 + value if column.sign < 0 else value) for value in values]
            for column, values in zip(columns, signed, strict=True)
        ]
        if min(map(len, runs)) < 2:
            continue
        intervals = [
            stats.stratified_interval(runs, statistic) for statistic in (statistics.median, stats.iqm, statistics.fmean)
        ]
        words = [f"{interval.estimate:.1f} {interval:.1f}" for interval in intervals]
        lines.append(Line.of_row(row, words, Told(lines=partial(_all_runs, grid, row, columns))))
    metrics = ", ".join(column.short for column in columns)
    return Table(
        heading=f"{title}: all runs together",
        level=3,
        columns=heads("method", "median", "IQM", "mean"),
        rows=lines,
        below=[
            f"Over all seeds of {metrics} in % (errors as 100 − error): the median and the interquartile mean do not follow"
            " a run that collapsed, the mean does. [The middle 95 % of resamples of the seeds within each benchmark: too"
            " narrow for a confidence interval where seeds are few.]",
        ],
    )


def agreement_tables(titled: Sequence[Titled], *, title: str) -> list[Table]:
    """Whether the rows rank alike under every two models; none where there are no two."""
    pairs = model_pairs([titled_grid.grid for titled_grid in titled if not titled_grid.grid.is_generated])
    if not pairs:
        return []
    left_out = [
        f"{' – '.join(pair.models)}: too few rows are complete on {', '.join(pair.left_out)}, which is left out."
        for pair in pairs
        if pair.left_out
    ]
    below = [
        f"Kendall's τ-b between two models' scores of the same rows ({_ranked(pairs)}): 1 is the same order, −1 the"
        " reverse. [The middle 95 % of resamples of seeds and images, the same for all rows and both"
        " models: too narrow for a confidence interval where seeds are few.]",
        "By chance: how many orders of the rows agree at least so well. It is what speaks of other methods; the"
        " resamples speak of other seeds and images for these.",
        *left_out,
    ]
    return [replace(_of_pairs(pairs), heading=f"{title}: do the methods rank alike?", below=below)]


def elsewhere_table(titled: Sequence[Titled], study: Study) -> Table:
    """Whether the rows rank here as in a comparison of another project, which says so itself where nothing ran yet."""
    there = read_elsewhere(study.table.ranking)
    grids = [titled_grid.grid for titled_grid in titled if not titled_grid.grid.is_generated]
    pairs = [pair for grid in grids if (pair := pair_with(there, grid)) is not None]
    return replace(
        _of_pairs(pairs),
        heading=f"{study.title}: the same order as there?",
        above=[] if pairs else ["No data: fewer than two of these rows have all their runs on a benchmark."],
        below=[
            f"There ({there.name}, {there.trials} answers a method, one seed, commit {there.commit[:8]}): {there.in_words()}.",
            *(f"Ranked: {', '.join(pair.rows)} ({len(pair.rows)} of {len(there.correct)})." for pair in pairs),
            "Kendall's τ-b between the scores here and there: 1 is the same order, −1 the reverse. [The middle 95 % of resamples of seeds"
            " and images here, and of the answers there for each method apart.] By chance: how many orders of the rows agree at"
            " least so well.",
        ],
    )


def _of_pairs(pairs: Sequence[ModelPair]) -> Table:
    """A line a pair of models; of none there is no table."""
    columns = list(dict.fromkeys(column for pair in pairs for column in pair.columns))
    titles = ("models", *(f"τ {column}" for column in columns), "mean τ", "95 % of resamples", "by chance")
    return Table(heading="", columns=heads(*titles) if pairs else (), rows=[_line_of(pair, columns) for pair in pairs])


def _line_of(pair: ModelPair, columns: Sequence[str]) -> Line:
    by_column = dict(zip(pair.columns, pair.agreement.by_benchmark, strict=True))
    interval = pair.agreement.interval
    words = (
        " – ".join(pair.models),
        *(f"{by_column[column]:+.2f}" if column in by_column else "–" for column in columns),
        f"{pair.agreement.mean:+.2f}",
        "– (one seed)" if interval is None else f"{interval:+.2f}",
        chance_in_words(pair.agreement),
    )
    return Line.of(words, pair)


def _ranked(pairs: Sequence[ModelPair]) -> str:
    """``decoder, lora, bitfit``, by pair where they differ"""
    if len({pair.rows for pair in pairs}) == 1:
        return ", ".join(pairs[0].rows)
    return "; ".join(f"{' – '.join(pair.models)}: {', '.join(pair.rows)}" for pair in pairs)


TOLERANCE = 1.0
"""Percentage points around a published score that count as the same: our choice, no paper states one."""

FOOTNOTES = (
    f"Verdict: reproduced if the 95 % interval of the difference lies inside ± {TOLERANCE:g} points, not reproduced if"
    " wholly outside, inconclusive where it reaches over an edge; parameters must agree in every printed digit.",
    "95 % CI: of the difference, over our seeds and the paper's runs (Welch); without a printed spread the paper's runs"
    " (one, if it names no number) are taken to vary as ours do.",
    "Not judged: another card or rule, backbone, checkpoint or other images than the paper's numbers were made with.",
    "Marks of sources: P a public page about the paper, S quoted by third parties that had it (a typo is possible).",
)


def score_page(
    records: Iterable[Record],
    archive: Archive,
    *,
    papers: Papers,
    study: Study | None = None,
    runs: Iterable[Run] | None = None,
    metrics: Sequence[str] = (),
) -> Page:
    """One page, what says most first.

    Args:
        records: of the archive, any order.
        papers: whose numbers a study with ``table.paper`` shows beside ours.
        study: rows, benchmarks and seeds to show; without one, everything there is.
        runs: show these planned runs and nothing else, under their own labels; those without a record show as missing.
        metrics: columns of these instead of the study's or the papers' choice.
    """
    chosen = list(records) if runs is None else of_runs(records, runs)
    title = study.title if study else ", ".join(sorted({record.run.protocol for record in chosen})) or "no records"
    titled = titled_grids(chosen, archive, study=study, metrics=metrics)
    tables: list[Table] = []
    numbers = []
    for titled_grid in titled:
        scores = score_tables(titled_grid)
        if study and study.note:
            scores[0] = replace(scores[0], above=[study.note, *scores[0].above])
        tables += [*scores, *tuning_tables(titled_grid)]
        base = titled_grid.grid.row(study.table.baseline) if study else None
        against = contrasts(titled_grid.grid, base) if base else []
        numbers += numbers_of(titled_grid, against)
        if base and against:
            tables += contrast_tables(titled_grid.grid, base, against, title=titled_grid.title)
        if study and study.table.paper and titled_grid.grid.sheet.protocol in {study.protocol, *papers.cards}:
            tables += _published_tables(titled_grid, papers)
    if not tables:
        tables = [Table(heading=study.name if study else title, above=["No record of this table yet."])]
    if study is not None:
        tables += agreement_tables(titled, title=study.title)
        if study.table.ranking:
            tables.append(elsewhere_table(titled, study))
    generated = bool(titled) and all(titled_grid.grid.is_generated for titled_grid in titled)
    return Page(
        title=title + (": generated images, whose numbers rank nothing" if generated else ""),
        tables=tables, foot=footnotes([titled_grid.grid for titled_grid in titled]), numbers=numbers, grids=titled,
    )  # fmt: skip


def of_runs(records: Iterable[Record], runs: Iterable[Run]) -> list[Record]:
    """The records of ``runs`` under the labels of ``runs`` (one may serve several sweeps); placeholders else."""
    known = {record.key: record for record in records}
    return [_under_label(known[run.key], run) if run.key in known else placeholder(run) for run in runs]


def _under_label(record: Record, run: Run) -> Record:
    """What is said of data and checkpoint stays the record's own: it was made from those."""
    made_from = ("split_rule", "data_note", "data_fingerprint", "checkpoint")
    return replace(record, run=replace(run, **{name: getattr(record.run, name) for name in made_from}))


def _published_tables(titled: Titled, papers: Papers) -> list[Table]:
    """One line for every number that a paper has for a cell of the grid; none where there is no such number."""
    grid, lines = titled.grid, []
    for row in (row for row in grid.rows if row.score == "best"):
        for column in grid.columns:
            for number in papers.numbers_of(row.method, column.benchmark, column.split, column.metric):
                if _is_of(row, number):
                    lines.append(_score_line(grid.cells[row, column], number, papers))
        for number in papers.numbers_of(row.method, "", "", PARAMETERS):
            if _is_of(row, number):
                lines.append(_parameter_line(grid, row, number, papers))
    if not lines:
        return []
    columns = heads(
        *("method", "number", "paper", "source", "ours", "Δ", "95 % CI", "verdict"),
        words=("number", "source", "verdict"),
    )
    heading = f"{titled.title}: beside the papers"
    return [Table(heading=heading, level=3, columns=columns, rows=lines, below=FOOTNOTES)]


def _is_of(row: Row, number: Published) -> bool:
    """Whether a number is of this row: of the method with the options that the paper changed, and nothing else."""
    if row.records:
        return any(is_entry(record, number.settings) for record in row.records)
    return dict(row.options) == number.settings


@dataclass(frozen=True, kw_only=True, eq=False)
class BesidePaper:
    """Our cell, a paper's number for it, and how the two were made differently."""

    cell: Cell
    number: Published
    differs: Sequence[str]

    def why(self, archive: Archive) -> list[str]:
        lines = []
        if self.cell.complete:
            source = f"{self.number.cited}: {self.number.source}"
            lines = [f"  published: {self.number.text}, {source}"]
        lines += [f"  not the published set-up: {words}" for words in self.differs]
        return [*lines, *self.cell.why(archive)]


def _score_line(cell: Cell, number: Published, papers: Papers) -> Line:
    differs = papers.departures(number.paper, cell.records) if cell.complete else ()
    beside = BesidePaper(cell=cell, number=number, differs=differs)
    start = (cell.column.short, number.text, number.cited)
    if not cell.complete:
        return Line.of_row(cell.row, (*start, "–", "–", "–", "no data (no score)"), beside, on=cell.column)
    ours = [100 * value for value in cell.by_seed]
    difference = against(ours, number)
    interval = difference.interval()
    verdict: str = judge(interval, low=-TOLERANCE, high=TOLERANCE)
    verdict += " (n too small)" if interval is None else ""
    words = (
        f"{100 * cell.value:.1f} ({len(ours)})",
        f"{difference.mean:+.1f}",
        "–" if interval is None else f"{interval:+.1f}",
        f"not judged: {shortly(differs)}" if differs else verdict,
    )
    return Line.of_row(cell.row, (*start, *words), beside, on=cell.column)


def _parameter_line(grid: Grid, row: Row, number: Published, papers: Papers) -> Line:
    """A count is judged on the published backbone alone; weights, rules and data do not enter it."""
    assert number.number is not None
    counts = sorted({record.parameters["trainable"] for record in row.runs if record.parameters})
    start = ("params (M)", number.text, number.cited)
    if not counts:
        return Line.of_row(row, (*start, "–", "–", "–", "no data (no run)"), row)
    millions, setup, backbone = counts[0] / 1e6, papers.setup(number.paper), grid.sheet.backbone
    agrees = all(abs(count / 1e6 - number.number) <= number.half_digit for count in counts)
    verdict = "reproduced" if agrees else "not reproduced"
    if setup is None or setup.backbone != backbone:
        other = f"instead of {setup.backbone}" if setup else f"(what {number.paper} used is not known here)"
        verdict = f"not judged: backbone {backbone} {other}"
    return Line.of_row(row, (*start, f"{millions:.3f}", f"{millions - number.number:+.3f}", "exact", verdict), row)
