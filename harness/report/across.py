"""Rows across benchmarks: mean differences, ranks, and a view of all runs that a few bad ones do not turn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from harness import statistics as stats
from harness.comparison import names, provenance
from harness.comparison.grid import Grid
from harness.comparison.paired import Difference
from harness.report.headings import Heading
from harness.report.page import Block, texts


def across_blocks(
    grid: Grid,
    base: int,
    places: Sequence[int],
    differences: Mapping[int, Mapping[int, Difference]],
    *,
    heading: Heading,
) -> list[Block]:
    """Up to three: mean differences over benchmarks, ranks, and median, interquartile mean and mean of all runs.

    Args:
        base: the row that the others are compared with.
        places: one column a benchmark.
        differences: row -> column -> its difference to the baseline.
    """
    complete = [index for index in range(len(grid.rows)) if all(grid.cells[index, place].complete for place in places)]
    left_out = _left_out(grid, places, complete)
    alike = {index: found for index, found in differences.items() if {base, index} <= {*complete}}
    blocks = [_means(grid, base, places, alike, heading=heading), _ranks(grid, base, places, complete, heading)]
    found = [block for block in (*blocks, _robust(grid, places, complete, heading)) if block]
    return [*found[:-1], _with_note(found[-1], left_out)] if found and left_out else found


def _with_note(block: Block, note: str) -> Block:
    return Block(**{**vars(block), "below": [*block.below, note]})


def _left_out(grid: Grid, places: Sequence[int], complete: Sequence[int]) -> str:
    """``3 of 14 rows are left out across benchmarks: ssf (OOM on CAMO, …), …``"""
    reasons = []
    for index, row in enumerate(grid.rows):
        if index in complete:
            continue
        missing: dict[str, list[str]] = {}
        for place in places:
            cell = grid.cells[index, place]
            if not cell.complete:
                why = "/".join(sorted(set(cell.codes.values()))) or "not planned"
                missing.setdefault(why, []).append(grid.columns[place].benchmark_title)
        words = "; ".join(f"{why} on {', '.join(dict.fromkeys(on))}" for why, on in missing.items())
        reasons.append(f"{row.shown} ({words})")
    if not reasons:
        return ""
    return f"{len(reasons)} of {len(grid.rows)} rows are left out across benchmarks: {', '.join(reasons)}."


def _means(
    grid: Grid,
    base: int,
    places: Sequence[int],
    differences: Mapping[int, Mapping[int, Difference]],
    *,
    heading: Heading,
) -> Block | None:
    """The mean of a row's differences over the benchmarks; None with fewer than two benchmarks."""
    if len(places) < 2:
        return None
    rows = []
    for index, found in differences.items():
        if not all(place in found for place in places):
            continue
        mean = stats.average_of([found[place].estimate for place in places])
        these, others = mean.interval(), stats.t_interval([found[place].mean for place in places])
        better = sum(found[place].mean > 0 for place in places)
        words = (
            grid.rows[index].shown, f"{mean.mean:+.2f}", _bounds(these), _bounds(others), f"{better}/{len(places)}",
        )  # fmt: skip
        behind = partial(_behind_mean, grid=grid, pair=(index, base), differences={p: found[p] for p in places})
        rows.append(texts(words, behind=behind))
    if not rows:
        return None
    return Block(
        heading=f"{heading.title}: mean difference to {grid.rows[base].label} over {len(places)} benchmarks",
        level=3,
        columns=["method", "mean Δ", "95 % CI, these benchmarks", "95 % CI, other benchmarks", "better on"],
        rows=rows,
        below=[
            "Mean Δ: each benchmark's difference in points of its first metric, all weighted alike. These benchmarks: over"
            " seeds and images of each. Other benchmarks: Student's t over the benchmarks, as if they were drawn.",
        ],
    )


def _behind_mean(
    folder: provenance.Folder, grid: Grid, pair: tuple[int, int], differences: Mapping[int, Difference]
) -> list[str]:
    lines = []
    for place, difference in differences.items():
        interval = difference.interval
        lines.append(
            f"  {grid.columns[place].short}: {difference.mean:+.4f}"
            + (f" {interval:+.4f}" if interval else " (one seed)")
        )
        for index in pair:
            keys = ", ".join(record.key for record in grid.cells[index, place].records)
            lines.append(f"    {grid.rows[index].shown}: {keys}")
    return lines


def _bounds(interval: stats.Interval | None) -> str:
    return "–" if interval is None else f"{interval:+.2f}"


def _ranks(grid: Grid, base: int, places: Sequence[int], complete: Sequence[int], heading: Heading) -> Block | None:
    """Ranks over benchmarks of the rows that are complete on each; None with fewer than two rows or benchmarks."""
    if len(complete) < 2 or len(places) < 2 or base not in complete:
        return None
    scores = {str(index): [_signed(grid, index, place) for place in places] for index in complete}
    table = [[statistics.fmean(runs[number]) for runs in scores.values()] for number in range(len(places))]
    ranks = stats.average_ranks(table)
    stability = stats.rank_stability(scores, resamples=1_000)
    single = min(len(runs) for one in scores.values() for runs in one) < 2
    rows = []
    for number, index in enumerate(complete):
        better = "–"
        if index != base and not single:
            chance = stats.probability_of_improvement(scores[str(index)], scores[str(base)], resamples=1_000)
            better = f"{chance.estimate:.2f} {chance:.2f}"
        first = "–" if single else f"{100 * stability[str(index)].get(1, 0.0):.0f} %"
        words = (grid.rows[index].shown, f"{ranks[number]:.2f}", first, better)
        rows.append(texts(words, behind=_behind_runs(grid, index, places)))
    baseline = grid.rows[base].label
    below = [
        "Mean rank over benchmarks by mean score, 1 is best. First: how often the row is best when seeds are redrawn"
        " for all rows at once; rows that tie are both.",
        f"P(better): chance that a run beats a run of {baseline}, averaged over benchmarks [the middle 95 % of bootstrap"
        " resamples of the seeds: too narrow for a confidence interval where seeds are few].",
    ]
    if len(complete) > 2:
        test = stats.friedman(table)
        line = f"Friedman over {len(places)} benchmarks (χ² approximation): {test.text}."
        if test.p is not None:
            gap = stats.nemenyi_critical_difference(methods=len(complete), blocks=len(places))
            line += f" Nemenyi: ranks {gap:.2f} apart differ at 5 %."
        below.append(line)
    return Block(
        heading=f"{heading.title}: ranks across benchmarks",
        level=3,
        columns=["method", "mean rank", "first", "P(better)"],
        rows=rows,
        below=below,
    )


def _robust(grid: Grid, places: Sequence[int], complete: Sequence[int], heading: Heading) -> Block | None:
    """Median, interquartile mean and mean of all runs of a row; None where no row has two seeds."""
    rows = []
    for index in complete:
        runs = [[100 * value for value in _positive(grid, index, place)] for place in places]
        if min(len(one) for one in runs) < 2:
            continue
        words = [grid.rows[index].shown]
        for statistic in (statistics.median, stats.iqm, statistics.fmean):
            found = stats.stratified_interval(runs, statistic)
            words.append(f"{found.estimate:.1f} {found:.1f}")
        rows.append(texts(words, behind=_behind_runs(grid, index, places)))
    if not rows:
        return None
    metrics = ", ".join(grid.columns[place].short for place in places)
    return Block(
        heading=f"{heading.title}: all runs together",
        level=3,
        columns=["method", "median", "IQM", "mean"],
        rows=rows,
        below=[
            f"Over all seeds of {metrics} in % (errors as 100 − error): the median and the interquartile mean do not follow"
            " a run that collapsed, the mean does. [The middle 95 % of resamples of the seeds within each benchmark: too"
            " narrow for a confidence interval where seeds are few.]",
        ],
    )


def _behind_runs(grid: Grid, index: int, places: Sequence[int]) -> partial[list[str]]:
    return partial(_runs, grid=grid, index=index, places=tuple(places))


def _runs(folder: provenance.Folder, grid: Grid, index: int, places: Sequence[int]) -> list[str]:
    lines = []
    for place in places:
        cell = grid.cells[index, place]
        values = ", ".join(f"seed {seed}: {100 * value:.4f}" for seed, value in sorted(cell.values.items()))
        keys = ", ".join(record.key for record in cell.records)
        lines += [f"  {grid.columns[place].short}: {values}", f"    {keys}"]
    return lines


def _signed(grid: Grid, index: int, place: int) -> list[float]:
    sign = -1 if names.metric(grid.columns[place].metric).lower_is_better else 1
    values = grid.cells[index, place].values
    return [sign * values[seed] for seed in sorted(values)]


def _positive(grid: Grid, index: int, place: int) -> list[float]:
    """Scores in [0, 1], higher is better."""
    lower = names.metric(grid.columns[place].metric).lower_is_better
    return [1 + value if lower else value for value in _signed(grid, index, place)]
