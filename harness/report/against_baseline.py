"""Every row against one baseline row: differences by benchmark, then across benchmarks, and whether models rank rows alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.comparison.cells import Column, Difference, Grid
from harness.comparison.contrasts import Contrast, Contrasts
from harness.comparison.rankings import ModelPair, chance_in_words, model_pairs, pair_with, read_elsewhere
from harness.comparison.rows import Row
from harness.report.page import Line, Table, heads
from harness.report.titles import Titled
from harness.studies import Study

NOTES = (
    "Δ: mean difference in points, paired by seed, positive is better (n pairs). 95 % CI: over seeds and images (crossed),"
    " so it speaks of other seeds and other images; over seeds alone (marked t) where a score is not a mean over images.",
    "p seeds: sign flips of the seeds' differences. p images: sign flips of each image's difference, averaged over the"
    " seeds at hand; it says nothing of other seeds. Both adjusted after Holm over the methods of a benchmark.",
)


def contrast_tables(contrasts: Contrasts, *, title: str) -> list[Table]:
    """Differences by benchmark, and what follows across benchmarks."""
    notes = list(NOTES)
    clusters = [
        f"{contrast.column.short}: {contrast.difference.clusters}"
        for contrast in contrasts.by_column
        if contrast.difference.clusters
    ]
    if clusters:
        notes.append(f"Images that are not independent count by cluster ({', '.join(dict.fromkeys(clusters))}).")
    if any(contrast.difference.folds for contrast in contrasts.by_column):
        notes.append(
            "folds: every seed splits the images anew, and the interval over the seeds counts what folds share (variance"
            " s² (1/k + tested/trained), Nadeau and Bengio 2003)."
        )
    few_seeds = all(contrast.p_seeds is None for contrast in contrasts.by_column)
    differences = Table(
        heading=f"{title}: differences to {contrasts.baseline.label}",
        level=3,
        columns=heads(
            *("method", "number", "Δ (n)", "95 % CI", "p seeds", "p images"),
            words=("number", *["p seeds"] * few_seeds),
        ),
        rows=[_line(contrast) for contrast in contrasts.by_column],
        below=notes,
    )
    return [differences, *_across(contrasts, title=title)]


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
    return Line.of_row(row, words, contrast, label=row.label, on=column)


def _judged_by(difference: Difference) -> str:
    """How an interval was made where it is not over seeds and images."""
    if difference.interval is None or difference.by_image is not None:
        return ""
    return " folds" if difference.folds else " t"


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "+0.00")


def _across(contrasts: Contrasts, *, title: str) -> list[Table]:
    """Up to three: mean differences over benchmarks, ranks, and median, interquartile mean and mean of all runs."""
    grid, base, columns = contrasts.grid, contrasts.baseline, contrasts.grid.one_each
    complete = [row for row in grid.rows if all(grid.cells[row, column].complete for column in columns)]
    differences: dict[Row, dict[Column, Difference]] = {}
    for contrast in contrasts.by_column:
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


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanDifference:
    """The mean over benchmarks of a row's differences to the baseline."""

    by_column: Mapping[Column, Difference]

    def why(self, archive: Archive) -> list[str]:
        lines = []
        for column, difference in self.by_column.items():
            interval = difference.interval
            lines.append(
                f"  {column.short}: {difference.mean:+.4f}" + (f" {interval:+.4f}" if interval else " (one seed)")
            )
            for cell in (difference.first, difference.second):
                lines.append(f"    {cell.row.shown}: {', '.join(record.key for record in cell.records)}")
        return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class AllRuns:
    """All runs of a row, on one column a benchmark."""

    grid: Grid
    row: Row
    columns: Sequence[Column]

    def why(self, archive: Archive) -> list[str]:
        lines = []
        for column in self.columns:
            cell = self.grid.cells[self.row, column]
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
        words = (f"{mean.mean:+.2f}", _bounds(mean.interval()), _bounds(others), f"{better}/{len(columns)}")
        lines.append(Line.of_row(row, words, MeanDifference(by_column=ordered)))
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
        runs = AllRuns(grid=grid, row=row, columns=columns)
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
        lines.append(Line.of_row(row, words, AllRuns(grid=grid, row=row, columns=columns)))
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
