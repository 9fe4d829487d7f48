"""The difference of two cells, paired by seed and image, and its interval: one mechanism for tables and claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.grid import Column, GridCell


@dataclass(frozen=True, kw_only=True)
class PerImage:
    """Scores of one run on one split.

    Args:
        scores: stem -> score.
        clusters: stem -> cluster, where images are not independent (frames of one video); else empty.
    """

    scores: Mapping[str, float]
    clusters: Mapping[str, str] = field(default_factory=dict)


ImagesOf = Callable[[Record, str, str, str], PerImage | None]
"""(record, scored model, split, metric) -> its per-image scores, None where there are none."""


def no_images(record: Record, score: str, split: str, metric: str) -> PerImage | None:
    """For pages that look at no images."""
    return None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, in points, positive is better.

    Args:
        by_seed: one difference a seed that both have.
        by_image: one difference an image, averaged over those seeds (one a cluster, summed over its images, where
            images are not independent); None where a score is not a mean over images.
        estimate: with the parts of its variance: seeds and images where there is ``by_image``, seeds else.
        clusters: how many clusters the images fall into; 0 where they are independent.
    """

    by_seed: tuple[float, ...]
    by_image: tuple[float, ...] | None
    estimate: stats.Estimate
    clusters: int = 0

    @property
    def mean(self) -> float:
        return self.estimate.mean

    @property
    def interval(self) -> stats.Interval | None:
        """95 %; None for a single seed."""
        return self.estimate.interval()

    @property
    def is_none(self) -> bool:
        """Whether the two cannot be told apart: 0 lies in the interval, or there is no interval."""
        return self.interval is None or self.interval.low <= 0 <= self.interval.high


def paired_difference(
    first: GridCell, second: GridCell, column: Column, *, scored: tuple[str, str], images_of: ImagesOf
) -> Difference | None:
    """None where the two have no seed in common; a seed whose records disagree is none.

    Args:
        scored: the scored model of each side (``best``, ``merged-exact``, …).
    """
    seeds = sorted((first.values.keys() - first.codes.keys()) & (second.values.keys() - second.codes.keys()))
    if not seeds:
        return None
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    by_seed = tuple(100 * sign * (first.values[seed] - second.values[seed]) for seed in seeds)
    sides = [
        runs_images(cell, column, score=score, images_of=images_of, seeds=seeds)
        for cell, score in zip((first, second), scored, strict=True)
    ]
    mine, other = sides
    images = _between(mine, other, seeds=seeds) if mine and other else None
    estimate = stats.crossed(images.scores, clusters=images.clusters) if images else None
    if images is None or estimate is None:
        return Difference(by_seed=by_seed, by_image=None, estimate=stats.of_seeds(by_seed))
    sums: dict[str, float] = {}
    for stem in sorted(images.scores[seeds[0]]):
        name = images.clusters.get(stem, stem)
        sums[name] = sums.get(name, 0.0) + statistics.fmean(images.scores[seed][stem] for seed in seeds)
    clusters = len(sums) if images.clusters else 0
    return Difference(by_seed=by_seed, by_image=tuple(sums.values()), estimate=estimate, clusters=clusters)


@dataclass(frozen=True, kw_only=True)
class Side:
    """seed -> stem -> points, higher is better; and the clusters that all its runs agree on."""

    scores: Mapping[int, Mapping[str, float]]
    clusters: Mapping[str, str]


def runs_images(
    cell: GridCell, column: Column, *, score: str, images_of: ImagesOf, seeds: Sequence[int]
) -> Side | None:
    """None unless every run has per-image scores that average to its score."""
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    scores: dict[int, dict[str, float]] = {}
    clusters: dict[str, str] = {}
    for record in cell.records:
        seed = record.run.seed
        if seed not in seeds or record.code != "OK":  # one that failed beside one that did not
            continue
        one = images_of(record, score, column.split, column.metric)
        if one is None or abs(math.fsum(one.scores.values()) / len(one.scores) - cell.values[seed]) > 1e-6:
            return None
        scores[seed] = {stem: 100 * sign * value for stem, value in one.scores.items()}
        clusters.update(one.clusters)
    return Side(scores=scores, clusters=clusters)


def _between(first: Side, second: Side, *, seeds: Sequence[int]) -> Side | None:
    """First minus second; None unless all runs score the same images."""
    try:
        differences = stats.paired(first.scores, second.scores)
    except ValueError:
        return None
    if any(one.keys() != differences[seeds[0]].keys() for one in differences.values()):
        return None
    return Side(scores=differences, clusters={**second.clusters, **first.clusters})
