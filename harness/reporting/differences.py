"""Every row against one baseline row: paired differences and tests by benchmark, ranks across benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from harness.records.schema import Record
from harness.reporting import names
from harness.reporting import statistics as stats
from harness.reporting.grid import Column, Grid
from harness.reporting.page import Block, Text

ImagesOf = Callable[[Record, str, str, str], Mapping[str, float] | None]
"""(record, scored model, split, metric) -> stem -> score, None where there are no per-image scores."""

NOTES = (
    "Δ: mean difference in points, paired by seed, positive is better (n pairs). 95 % CI: hierarchical bootstrap over"
    " seeds and images; t interval over seeds (marked t) where a score is not a mean over images.",
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
    across = _across(grid, base, places)
    return [differences, across] if across else [differences]


def _first_metrics(grid: Grid) -> list[int]:
    """The first column of every benchmark, split and manifest: one number each, so that no benchmark counts twice."""
    first: dict[tuple[str, str, str], int] = {}
    for place, column in enumerate(grid.columns):
        first.setdefault((column.benchmark, column.split, column.manifest), place)
    return list(first.values())


def _benchmark(grid: Grid, base: int, place: int, images_of: ImagesOf) -> list[list[str]]:
    column = grid.columns[place]
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    reference = grid.cells[base, place].values
    title = f"{names.benchmark_title(column.benchmark)} {names.metric(column.metric).title}"
    title += f" {column.split}" if column.split != "test" else ""
    found: dict[str, tuple[list[float], stats.Interval | None, bool, stats.Test, stats.Test | None]] = {}
    for index, row in enumerate(grid.rows):
        values = grid.cells[index, place].values
        seeds = sorted(values.keys() & reference.keys())
        if index == base or not seeds:
            continue
        seen = [100 * sign * (values[seed] - reference[seed]) for seed in seeds]
        images = _paired_images(grid, index, base, column, images_of, sign=sign)
        interval, by_images = (stats.hierarchical_bootstrap(images, resamples=2_000), None) if images else (None, None)
        over_seeds = interval is None
        if images:
            stems = sorted(next(iter(images.values())))
            by_images = stats.sign_flip(
                [sum(images[s][stem] for s in images) / len(images) for stem in stems], resamples=2_000
            )
        found[row.label] = (seen, interval or stats.t_interval(seen), over_seeds, stats.sign_flip(seen), by_images)
    seeds_p = stats.holm({label: one[3].p for label, one in found.items() if one[3].p is not None})
    images_p = stats.holm({label: one[4].p for label, one in found.items() if one[4] and one[4].p is not None})
    lines = []
    for label, (seen, interval, over_seeds, by_seeds, _) in found.items():
        bounds = (
            f"[{_points(interval.low)}, {_points(interval.high)}]" + (" t" if over_seeds else "") if interval else "–"
        )
        seeds_text = f"{seeds_p[label]:.2g}" if label in seeds_p else f"n too small ({by_seeds.n})"
        images_text = f"{images_p[label]:.2g}" if label in images_p else "–"
        lines.append(
            [label, title, f"{_points(statistics.fmean(seen))} ({len(seen)})", bounds, seeds_text, images_text]
        )
    return lines


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "+0.00")


def _paired_images(
    grid: Grid, index: int, base: int, column: Column, images_of: ImagesOf, *, sign: int
) -> dict[int, dict[str, float]] | None:
    """seed -> stem -> difference in points; None unless all runs have image scores whose mean is their score."""
    place = grid.columns.index(column)
    sides: list[dict[int, Mapping[str, float]]] = []
    for row in (index, base):
        cell = grid.cells[row, place]
        scores: dict[int, Mapping[str, float]] = {}
        for record in cell.records:
            seed = record.run.seed
            if seed not in cell.values:
                continue
            one = images_of(record, grid.rows[row].score, column.split, column.metric)
            if one is None or abs(statistics.fmean(one.values()) - cell.values[seed]) > 1e-6:
                return None
            scores[seed] = {stem: 100 * sign * score for stem, score in one.items()}
        sides.append(scores)
    try:
        return stats.paired(sides[0], sides[1]) or None
    except ValueError:
        return None


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
        f"P(better): chance that a run beats a run of {baseline}, averaged over benchmarks [95 % bootstrap interval].",
    ]
    if len(labels) > 2:
        test = stats.friedman(table)
        gap = stats.nemenyi_critical_difference(methods=len(labels), blocks=len(places))
        below.append(
            f"Friedman over {len(places)} benchmarks: {test.text}. Nemenyi: ranks {gap:.2f} apart differ at 5 %."
        )
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
