"""The difference of two cells, paired by seed and image, and its interval: one mechanism for tables and claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.records.schema import Record
from harness.reporting import names
from harness.reporting import statistics as stats
from harness.reporting.grid import Cell, Column

ImagesOf = Callable[[Record, str, str, str], Mapping[str, float] | None]
"""(record, scored model, split, metric) -> stem -> score, None where there are no per-image scores."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, in points, positive is better.

    Args:
        by_seed: one difference a seed that both have.
        by_image: one difference an image, averaged over those seeds; None where a score is not a mean over images.
        interval: 95 %: over seeds and images where there is ``by_image``, over seeds else; None where n is too small.
    """

    by_seed: tuple[float, ...]
    by_image: tuple[float, ...] | None
    interval: stats.Interval | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed)


def paired_difference(
    first: Cell, second: Cell, column: Column, *, scored: tuple[str, str], images_of: ImagesOf
) -> Difference | None:
    """None where the two have no seed in common.

    Args:
        scored: the scored model of each side (``best``, ``merged-exact``, …).
    """
    seeds = sorted((first.values.keys() - first.codes.keys()) & (second.values.keys() - second.codes.keys()))
    if not seeds:
        return None
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    by_seed = tuple(100 * sign * (first.values[seed] - second.values[seed]) for seed in seeds)
    images = _images(first, second, column, scored=scored, images_of=images_of, seeds=seeds)
    interval = stats.hierarchical_bootstrap(images, resamples=2_000) if images else None
    if images is None or interval is None:
        return Difference(by_seed=by_seed, by_image=None, interval=stats.t_interval(by_seed))
    stems = sorted(images[seeds[0]])
    by_image = tuple(statistics.fmean(images[seed][stem] for seed in seeds) for stem in stems)
    return Difference(by_seed=by_seed, by_image=by_image, interval=interval)


def _images(
    first: Cell, second: Cell, column: Column, *, scored: tuple[str, str], images_of: ImagesOf, seeds: list[int]
) -> dict[int, dict[str, float]] | None:
    """seed -> stem -> difference in points; None unless all runs score the same images and average to their score."""
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    sides: list[dict[int, dict[str, float]]] = []
    for cell, score in zip((first, second), scored, strict=True):
        side = {}
        for record in cell.records:
            seed = record.run.seed
            if seed not in seeds:
                continue
            one = images_of(record, score, column.split, column.metric)
            if one is None or abs(statistics.fmean(one.values()) - cell.values[seed]) > 1e-6:
                return None
            side[seed] = {stem: 100 * sign * value for stem, value in one.items()}
        sides.append(side)
    try:
        differences = stats.paired(sides[0], sides[1])
    except ValueError:
        return None
    same = all(one.keys() == differences[seeds[0]].keys() for one in differences.values())
    return differences if same else None
