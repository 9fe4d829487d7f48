"""Every row against one baseline row: paired differences and tests by benchmark, ranks across benchmarks."""

from __future__ import annotations

import statistics

from harness.reporting import names
from harness.reporting import statistics as stats
from harness.reporting.grid import Column, Grid
from harness.reporting.page import Block, Text
from harness.reporting.paired import Difference, ImagesOf, paired_difference

NOTES = (
    "Δ: mean difference in points, paired by seed, positive is better (n pairs). 95 % CI: hierarchical bootstrap over"
    " seeds and images (crossed, widened for small n), so it speaks of other seeds and other images; t interval over"
    " seeds (marked t) where a score is not a mean over images.",
    "p seeds: sign flips of the seeds' differences. p images: sign flips of each image's difference, averaged over the"
    " seeds at hand; it says nothing of other seeds. Both adjusted after Holm over the methods of a benchmark.",
)


def difference_blocks(grid: Grid, *, baseline: str, images_of: ImagesOf) -> list[Block]:
    """Two blocks, or none where the grid has no row ``baseline`` or nothing to compare it with."""
    labels = [row.label for row in grid.rows]
    if baseline not in labels:
        return []
    base = labels.index(baseline)
    places = _first_metrics(grid)
    rows = [row for place in places for row in _benchmark(grid, base, place, images_of)]
    if not rows:
        return []
    differences = Block(
        heading=f"{grid.protocol} · {grid.backbone}: differences to {baseline}",
        above=[f"Protocol: {grid.protocol}, hash {grid.protocol_hash}"],
        columns=["method", "number", "Δ (n)", "95 % CI", "p seeds", "p images"],
        rows=[[Text(text=text) for text in row] for row in rows],
        below=NOTES,
    )
    across = _across(grid, base, _one_each(grid, places))
    return [differences, across] if across else [differences]


def _first_metrics(grid: Grid) -> list[int]:
    """The first column of every benchmark, split and manifest: one number each."""
    first: dict[tuple[str, str, str], int] = {}
    for place, column in enumerate(grid.columns):
        first.setdefault((column.benchmark, column.split, column.manifest), place)
    return list(first.values())


def _one_each(grid: Grid, places: list[int]) -> list[int]:
    """One column a benchmark, so that none counts twice: all test images together, else what most rows have."""
    best: dict[str, int] = {}
    for place in places:
        name = grid.columns[place].benchmark
        best[name] = max(best.get(name, place), place, key=lambda one: _fitness(grid, one))
    return list(best.values())


def _fitness(grid: Grid, place: int) -> tuple[bool, int, int]:
    complete = sum(grid.cells[index, place].complete for index in range(len(grid.rows)))
    return (grid.columns[place].split in ("all", "test"), complete, -place)


def _benchmark(grid: Grid, base: int, place: int, images_of: ImagesOf) -> list[list[str]]:
    column = grid.columns[place]
    found: dict[str, Difference] = {}
    for index, row in enumerate(grid.rows):
        scored = (row.score, grid.rows[base].score)
        cells = (grid.cells[index, place], grid.cells[base, place])
        difference = paired_difference(*cells, column, scored=scored, images_of=images_of)
        if index != base and difference is not None:
            found[row.label] = difference
    by_seed = {label: stats.sign_flip(one.by_seed) for label, one in found.items()}
    by_image = {
        label: stats.sign_flip(one.by_image, resamples=2_000)
        for label, one in found.items()
        if one.by_image is not None
    }
    seeds_p = stats.holm({label: test.p for label, test in by_seed.items() if test.p is not None})
    images_p = stats.holm({label: test.p for label, test in by_image.items() if test.p is not None})
    return [
        [
            label,
            _title(column),
            f"{_points(one.mean)} ({len(one.by_seed)})",
            _bounds(one),
            f"{seeds_p[label]:.2g}" if label in seeds_p else f"n too small ({by_seed[label].n})",
            f"{images_p[label]:.2g}" if label in images_p else "–",
        ]
        for label, one in found.items()
    ]


def _title(column: Column) -> str:
    title = f"{names.benchmark_title(column.benchmark)} {names.metric(column.metric).title}"
    return title + (f" {column.split}" if column.split != "test" else "")


def _bounds(difference: Difference) -> str:
    interval = difference.interval
    if interval is None:
        return "–"
    return f"[{_points(interval.low)}, {_points(interval.high)}]" + (" t" if difference.by_image is None else "")


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "+0.00")


def _across(grid: Grid, base: int, places: list[int]) -> Block | None:
    """Ranks over benchmarks of the rows that are complete on each; None with fewer than two rows or benchmarks."""
    complete = [index for index in range(len(grid.rows)) if all(grid.cells[index, place].complete for place in places)]
    if len(complete) < 2 or len(places) < 2 or base not in complete:
        return None
    scores: dict[str, list[list[float]]] = {}
    for index in complete:
        scores[grid.rows[index].label] = [_signed(grid, index, place) for place in places]
    labels = list(scores)
    table = [[statistics.fmean(scores[label][number]) for label in labels] for number in range(len(places))]
    ranks = stats.average_ranks(table)
    stability = stats.rank_stability(scores, resamples=1_000)
    reference = scores[grid.rows[base].label]
    rows = []
    for number, label in enumerate(labels):
        better = "–"
        if label != grid.rows[base].label:
            chance = stats.probability_of_improvement(scores[label], reference, resamples=1_000)
            better = f"{chance.estimate:.2f} [{chance.low:.2f}, {chance.high:.2f}]"
        texts = (label, f"{ranks[number]:.2f}", f"{100 * stability[label].get(1, 0.0):.0f} %", better)
        rows.append([Text(text=text) for text in texts])
    baseline = grid.rows[base].label
    below = [
        "Mean rank over benchmarks by mean score, 1 is best. First: how often the row is best when seeds are redrawn.",
        f"P(better): chance that a run beats a run of {baseline}, averaged over benchmarks [the middle 95 % of bootstrap"
        " resamples of the seeds: too narrow for a confidence interval where seeds are few].",
    ]
    if len(labels) > 2:
        test = stats.friedman(table)
        line = f"Friedman over {len(places)} benchmarks: {test.text}."
        if test.p is not None:
            gap = stats.nemenyi_critical_difference(methods=len(labels), blocks=len(places))
            line += f" Nemenyi: ranks {gap:.2f} apart differ at 5 %."
        below.append(line)
    return Block(
        heading=f"{grid.protocol} · {grid.backbone}: across benchmarks",
        above=[f"Protocol: {grid.protocol}, hash {grid.protocol_hash}"],
        columns=["method", "mean rank", "first", "P(better)"],
        rows=rows,
        below=below,
    )


def _signed(grid: Grid, index: int, place: int) -> list[float]:
    sign = -1 if names.metric(grid.columns[place].metric).lower_is_better else 1
    values = grid.cells[index, place].values
    return [sign * values[seed] for seed in sorted(values)]
