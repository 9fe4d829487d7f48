"""Estimates with the parts of their variance, and the intervals that follow: Student's, Welch's, crossed.

A variance that is a sum of parts with degrees of freedom of their own (seeds, images, a paper's runs) is judged by
Student's quantile at the effective degrees of freedom of Satterthwaite 1946 and Welch 1947. One part alone is Student's
interval. ``tests/harness/statistics/coverage.py`` simulates how often these intervals hold the truth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class VarianceShare:
    """A share of an estimate's variance.

    Args:
        variance: of the estimate, not of single values; negative where it takes back what two other parts both hold.
        df: degrees of freedom of that variance; infinite where it is known.
    """

    variance: float
    df: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with the parts of its variance.

    Args:
        mean: the estimate.
        seeds: the part of the seeds; None for a single seed, which has no interval.
        rest: parts of the images, and what is not ours (a paper's runs).
        n: seeds.
    """

    mean: float
    n: int
    seeds: VarianceShare | None
    rest: tuple[VarianceShare, ...] = ()

    @property
    def variance(self) -> float:
        """Of the mean."""
        return math.fsum(part.variance for part in (self.seeds, *self.rest) if part is not None)

    @property
    def df(self) -> float:
        """Satterthwaite's degrees of freedom of the interval; infinite where nothing varies."""
        parts = [part for part in (self.seeds, *self.rest) if part is not None]
        return _effective_df(parts) if self.variance else math.inf

    def interval(self) -> Interval | None:
        """The mean's 95 % interval; None for a single seed, which shows nothing of the spread."""
        if self.seeds is None:
            return None
        half = half_width((self.seeds, *self.rest))
        return Interval(estimate=self.mean, low=self.mean - half, high=self.mean + half, n=self.n)


def half_width(parts: Sequence[VarianceShare]) -> float:
    """Student's quantile at the effective degrees of freedom, times the standard error."""
    variance = math.fsum(part.variance for part in parts)
    if not variance:
        return 0.0
    return quantile(_effective_df(parts)) * math.sqrt(variance)


def _effective_df(parts: Sequence[VarianceShare]) -> float:
    """Satterthwaite's degrees of freedom of a sum of parts that is not zero."""
    return math.fsum(part.variance for part in parts) ** 2 / math.fsum(part.variance**2 / part.df for part in parts)


@lru_cache(maxsize=4096)
def quantile(df: float) -> float:
    """Two-sided 5 % quantile of Student's distribution; the normal one for infinite ``df``."""
    from scipy.special import ndtri, stdtrit  # scipy.stats takes half a second to import

    return float(stdtrit(df, 0.975) if math.isfinite(df) else ndtri(0.975))


def sd(values: Sequence[float]) -> float | None:
    """SD with ddof = 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)  # statistics.stdev computes in fractions, a hundred times slower
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def of_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed."""
    spread = sd(values)
    part = None if spread is None else VarianceShare(variance=spread**2 / len(values), df=len(values) - 1)
    return Estimate(mean=statistics.fmean(values), n=len(values), seeds=part)


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    return of_seeds(values).interval() if values else None


Scores = Mapping[int, Mapping[str, float]]
"""seed -> image stem -> score"""


def _same_images(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    if first.keys() != second.keys():
        stray = sorted(first.keys() ^ second.keys())[0]
        raise ValueError(f"not the same images ({stray} is only on one side)")


def crossed(
    scores: Scores | NDArray[np.float64], *, clusters: Mapping[str, str] | NDArray[np.intp] | None = None
) -> Estimate | None:
    """The mean over seeds and images, with the variance of other seeds and of other images.

    Seeds and images are crossed: every seed scores the same test images, so no number of seeds narrows what only more
    images can. With m the mean, a the seeds' deviations from it, b the images', R seeds and C images, Σa² / R(R - 1)
    and Σb² / C(C - 1) each hold the variance σ²ₑ / RC of what is left (the interaction e) beside their own, so it is
    taken back once: its unbiased estimate Σe² / RC(R - 1)(C - 1) is a third, negative part. That is the analysis of
    variance of a random two-way model (Searle, Casella, McCulloch 1992, ch. 4), and REML's where no component is
    negative; the sum is never less than the larger of the two parts, as REML has it where one is.

    Args:
        scores: (R, C) single scores, or differences of two rows; or seed -> stem -> score, the same stems under
            every seed.
        clusters: number of each image's cluster (or stem -> its cluster), where images are not independent (frames
            of one video): b and e are then summed within clusters before they are squared, and G clusters take the
            place of C images. With w the clusters' shares of the images, Σw² / Σw²(1 - 2w + Σw²) takes the place of
            G / (G - 1), which it is where they have one size.

    Raises:
        ValueError: two seeds scored different images.

    None for fewer than two seeds, images or clusters.
    """
    import numpy as np

    if isinstance(scores, Mapping):
        keys = sorted(scores)
        for key in keys[1:]:
            _same_images(scores[keys[0]], scores[key])
        stems = sorted(scores[keys[0]]) if keys else []
        table = np.array([[scores[key][stem] for stem in stems] for key in keys])
    else:
        stems, table = [], scores
    if len(table) < 2:
        return None
    seeds, images = table.shape
    if isinstance(clusters, Mapping):
        clusters = np.unique([clusters.get(stem, stem) for stem in stems], return_inverse=True)[1] if clusters else None
    index = np.arange(images) if clusters is None else clusters
    groups_count = len(np.unique(index))
    if groups_count < 2:
        return None
    mean = float(table.mean())
    of_seed = table.mean(axis=1) - mean
    of_image = table.mean(axis=0) - mean
    left = table - mean - of_seed[:, None] - of_image[None, :]
    by_group = np.bincount(index, weights=of_image)
    left_by_group = np.stack([np.bincount(index, weights=row) for row in left])
    share = np.bincount(index) / images
    squares = float((share**2).sum())
    made_up = squares / float((share**2 * (1 - 2 * share + squares)).sum())
    between = float((by_group**2).sum()) / images**2 * made_up
    free = (seeds - 1) * (groups_count - 1)
    interaction = float((left_by_group**2).sum()) / (seeds * images * images) * made_up / (seeds - 1)
    images_part = VarianceShare(variance=between, df=groups_count - 1)
    seeds_part = VarianceShare(variance=float((of_seed**2).sum()) / (seeds * (seeds - 1)), df=seeds - 1)
    # Both hold the interaction: it is taken back once, and no more than would leave the larger of the two.
    both = VarianceShare(variance=-min(interaction, between, seeds_part.variance), df=free)
    return Estimate(mean=mean, n=seeds, seeds=seeds_part, rest=(images_part, both))


def of_folds(values: Sequence[float], *, test_share: float) -> Estimate:
    """The mean of one value a fold, every fold a new random split of the same images (Nadeau and Bengio 2003).

    Folds share images, so their values depend on each other and s² / k is too little: the variance is s² (1/k + n₂ /
    n₁).

    Args:
        test_share: n₂ / n₁, images tested over images trained on.
    """
    plain = of_seeds(values)
    if plain.seeds is None:
        return plain
    factor = 1 + len(values) * test_share
    return replace(plain, seeds=replace(plain.seeds, variance=plain.seeds.variance * factor))


def average_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as one a benchmark: it speaks of these and of no other benchmarks."""
    count = len(estimates)
    known = [estimate.seeds for estimate in estimates if estimate.seeds is not None]
    parts = [part for estimate in estimates for part in estimate.rest]
    pooled = None
    if len(known) == count:
        variance = math.fsum(part.variance for part in known)
        df = variance**2 / math.fsum(part.variance**2 / part.df for part in known) if variance else known[0].df
        pooled = VarianceShare(variance=variance / count**2, df=df)
    return Estimate(
        mean=statistics.fmean(estimate.mean for estimate in estimates),
        n=min(estimate.n for estimate in estimates),
        seeds=pooled,
        rest=tuple(replace(part, variance=part.variance / count**2) for part in parts),
    )


def differ(ours: Estimate, value: float, *, error: float, df: float) -> Estimate:
    """Ours minus a published value that has a standard error of its own (Welch 1947)."""
    rest = (*ours.rest, VarianceShare(variance=error**2, df=df)) if error else ours.rest
    return Estimate(mean=ours.mean - value, n=ours.n, seeds=ours.seeds, rest=rest)
