"""Differences of two rows, and of many rows to one: paired by seed, and by image where a score is a mean over images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness import statistics as stats

StemScores = tuple[tuple[str, ...], NDArray[np.float64]]
"""The stems of the images, in order, and the score of each."""

Over = Literal["seeds and images", "seeds", "splits"]
"""What an interval covers. ``splits``: every seed has its own split (Nadeau and Bengio 2003)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second in points, positive is better.

    Args:
        low, high: the 95 % interval; None for a single seed.
        n: seeds that both have.
        estimate: the mean with the parts of its variance.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: Over = "seeds"
    estimate: stats.Estimate | None = None

    @classmethod
    def of(cls, estimate: stats.Estimate, *, over: Over = "seeds") -> Difference:
        low, high = estimate.interval() or (None, None)
        return cls(mean=estimate.mean, low=low, high=high, n=estimate.n, over=over, estimate=estimate)

    @property
    def is_none(self) -> bool:
        """Whether the two are not significantly different: the interval holds 0, or there is no interval."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class RowScores:
    """The scores of one row on one column, in points, higher is better.

    Args:
        by_seed: seed -> score.
        images: seed -> scores by image, where they average to the run's score.
        clusters: stem -> its cluster, where images are not independent.
        test_share: images tested over images trained on where every seed has its own split, else 0.
    """

    by_seed: Mapping[int, float]
    images: Mapping[int, StemScores] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    test_share: float = 0.0

    def minus(self, other: RowScores) -> Difference | None:
        """The difference to another row; None if they have no seed in common."""
        seeds = sorted(self.by_seed.keys() & other.by_seed.keys())
        if not seeds:
            return None
        by_seed = [self.by_seed[seed] - other.by_seed[seed] for seed in seeds]
        if share := max(self.test_share, other.test_share):
            return Difference.of(stats.of_folds(by_seed, test_share=share), over="splits")
        if paired := _common_images([self, other], seeds):
            (ours, theirs), clusters = paired
            if (crossed := stats.crossed(ours - theirs, clusters=clusters)) is not None:
                return Difference.of(crossed, over="seeds and images")
        return Difference.of(stats.of_seeds(by_seed))


def _common_images(
    samples: Sequence[RowScores], seeds: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
    """(samples, seeds, images) scores, and the number of each image's cluster. None where not all samples scored the same images under
    every seed, or where they are one image or one cluster, which says nothing about others."""
    by_run = {each.images[seed][0] if seed in each.images else () for each in samples for seed in seeds}
    stems = by_run.pop() if len(by_run) == 1 else ()
    group = {stem: name for each in samples for stem, name in each.clusters.items()}
    names = [group.get(stem, stem) for stem in stems]
    if len(set(names)) < 2:
        return None
    clusters = np.unique(names, return_inverse=True)[1] if group else np.arange(len(stems))
    return np.array([[each.images[seed][1] for seed in seeds] for each in samples]), clusters


def simultaneous(
    columns: Sequence[Mapping[str, RowScores]], baseline: str, *, prior: float = math.inf
) -> dict[str, list[Difference]]:
    """Every row against one baseline, with 95 % intervals that hold for all rows at once (max-T, `harness.statistics.max_t`).

    Args:
        columns: for each benchmark row -> its scores. Rows that lack a seed of the baseline's on any column are left out.
        prior: as in `harness.statistics.family`.

    Returns:
        Row -> its differences, one for each column, then their mean. Empty for a baseline of fewer than two seeds.
    """
    seeds = [sorted(column[baseline].by_seed) if baseline in column else [] for column in columns]
    rows = [
        row
        for row in (columns[0] if columns else ())
        if row != baseline and all(row in c and set(s) <= c[row].by_seed.keys() for c, s in zip(columns, seeds, strict=True))
    ]  # fmt: skip
    if not rows or min(map(len, seeds)) < 2:
        return {}
    families: list[stats.Family] = []
    over: list[Over] = []
    for column, here in zip(columns, seeds, strict=True):
        samples = [column[row] for row in (baseline, *rows)]
        runs = np.array([[each.by_seed[seed] for seed in here] for each in samples])
        share = max(each.test_share for each in samples)
        images, clusters = (None if share else _common_images(samples, here)) or (None, None)
        families.append(stats.family(runs, images, clusters=clusters, test_share=share, prior=prior))
        over.append("splits" if share else "seeds" if images is None else "seeds and images")
    parts = [*([each] for each in families), families]
    counts = [*map(len, seeds), min(map(len, seeds))]
    differences: dict[str, list[Difference]] = {row: [] for row in rows}
    for part, n, kind in zip(parts, counts, [*over, over[0]], strict=True):
        means, halves = np.mean([each.means for each in part], axis=0), stats.max_t(part)
        for row, mean, half in zip(rows, means.tolist(), halves.tolist(), strict=True):
            differences[row].append(Difference(mean=mean, low=mean - half, high=mean + half, n=n, over=kind))
    return differences
