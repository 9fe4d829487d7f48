"""Estimates with the parts of their variance, and the intervals that follow: Student's, Welch's, crossed.

A variance that is a sum of parts with degrees of freedom of their own (seeds, images, a paper's runs) is judged by
Student's quantile at the effective degrees of freedom of Satterthwaite 1946 and Welch 1947. One part alone is Student's
interval. ``benchmarks/coverage.py`` simulates how often these intervals hold the truth; docs/tables.md has its table.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
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

    def __format__(self, number: str) -> str:
        """``[low, high]``, each bound as ``number`` says: ``f"{interval:+.2f}"``."""
        return f"[{self.low:{number}}, {self.high:{number}}]"


@dataclass(frozen=True, kw_only=True)
class VarianceShare:
    """A share of an estimate's variance.

    Args:
        variance: of the estimate, not of single values; negative where it takes back what two other parts both hold.
        df: degrees of freedom of that variance; infinite where it is known.
        narrows: the share of it, in [0, 1], that falls as one over the number of seeds.
    """

    variance: float
    df: float
    narrows: float = 0.0

    def at(self, factor: float) -> VarianceShare:
        """This share with ``factor`` times as many seeds."""
        return replace(self, variance=self.variance * (1 - self.narrows + self.narrows / factor))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with the parts of its variance.

    Args:
        mean: the estimate.
        seeds: the part of the seeds; None for a single seed, which has no interval.
        rest: parts of the images, which seeds narrow in part or not, and what is not ours (a paper's runs).
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

    def parts_at(self, count: int) -> tuple[VarianceShare, ...]:
        """The parts of the variance with ``count`` seeds; that of the seeds first, if there is one.

        Of R seeds and C images the seeds' part has R - 1 degrees of freedom, and what is taken back (R - 1)(C - 1):
        both gain with seeds. The images' C - 1 do not, however much of that part seeds narrow, and neither do a
        paper's.
        """
        if self.seeds is None:
            return self.rest
        factor, more = count / self.n, (count - 1) / (self.n - 1)
        taken_back = (replace(part, df=part.df * more) if part.variance < 0 else part for part in self.rest)
        parts = (replace(self.seeds, df=self.seeds.df * more), *taken_back)
        return tuple(part.at(factor) for part in parts)

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
    part = None if spread is None else VarianceShare(variance=spread**2 / len(values), df=len(values) - 1, narrows=1)
    return Estimate(mean=statistics.fmean(values), n=len(values), seeds=part)


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean; None for fewer than two values."""
    return of_seeds(values).interval() if values else None


Scores = Mapping[int, Mapping[str, float]]
"""seed -> image stem -> score"""


def paired(first: Scores, second: Scores) -> dict[int, dict[str, float]]:
    """first − second, image by image, for seeds that both have. Raises ValueError: the two scored different images
    under one seed; such a difference is not paired."""
    differences = {}
    for seed in sorted(first.keys() & second.keys()):
        _same_images(first[seed], second[seed])
        differences[seed] = {stem: first[seed][stem] - second[seed][stem] for stem in sorted(first[seed])}
    return differences


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
    part = VarianceShare(
        variance=between, df=groups_count - 1, narrows=min(1.0, interaction / between) if between else 0.0
    )
    of_seeds = VarianceShare(variance=float((of_seed**2).sum()) / (seeds * (seeds - 1)), df=seeds - 1, narrows=1)
    return Estimate(mean=mean, n=seeds, seeds=of_seeds, rest=(part, _held_by_both(of_seeds, part, df=free)))


def _held_by_both(seeds: VarianceShare, images: VarianceShare, *, df: float) -> VarianceShare:
    """The interaction that both parts hold, to be taken back once; no more than would leave the larger of the two."""
    return VarianceShare(variance=-min(images.variance * images.narrows, seeds.variance), df=df, narrows=1)


def with_pooled_runs(difference: Estimate, rows: Sequence[Sequence[float]]) -> Estimate:
    """A crossed difference whose part of the seeds comes from the spread of single runs, pooled over the rows of its
    benchmark.

    Two rows' means over R runs differ with variance 2 σ² / R, if runs of all rows have one SD σ and a seed shared by
    two rows ties them in nothing; K rows know σ with K(R - 1) degrees of freedom in place of R - 1.

    Args:
        difference: from `crossed`.
        rows: scores of each row's runs, in the unit of the difference; a row of one run adds nothing.

    Raises:
        ValueError: no row has two runs, or a difference without parts of seeds and images.
    """
    df = sum(len(runs) - 1 for runs in rows)
    if df < 1 or difference.seeds is None or len(difference.rest) != 2:
        raise ValueError("the spread of runs is pooled over rows of two runs, for a difference over seeds and images")
    within = math.fsum((value - statistics.fmean(runs)) ** 2 for runs in rows for value in runs) / df
    seeds = VarianceShare(variance=2 * within / difference.n, df=df, narrows=1)
    images, both = difference.rest
    return replace(difference, seeds=seeds, rest=(images, _held_by_both(seeds, images, df=both.df)))


def of_folds(values: Sequence[float], *, test_share: float) -> Estimate:
    """The mean of one value a fold, every fold a split of the same images drawn anew (Nadeau and Bengio 2003).

    Folds share images, so their values depend on each other and s² / k is too little: the variance is s² (1/k + n₂ /
    n₁).

    Args:
        test_share: n₂ / n₁, images tested over images trained on.
    """
    plain = of_seeds(values)
    if plain.seeds is None:
        return plain
    factor = 1 + len(values) * test_share
    return replace(plain, seeds=replace(plain.seeds, variance=plain.seeds.variance * factor, narrows=1 / factor))


def of_splits(scores: Scores, *, clusters: Mapping[str, str] | None = None) -> Estimate | None:
    """The mean over runs that draw their test images anew from one pool, with the variance of other runs and of
    other images.

    With d the K runs' means, Var(d̄) = s²/K + c: c is the covariance of two runs' means, averaged over the pairs of
    runs. It is that of the images which both test, Σ wₖᵢ wₗᵢ σᵢ² with wₖᵢ = 1/nₖ, estimated by Σ wₖᵢ wₗᵢ (yₖᵢ −
    dₖ)(yₗᵢ − dₗ), times what makes up for images that are in the dₖ which they are held against. Both parts are
    unbiased for images, or clusters of one spread; where one split serves all runs this is `crossed`. c is taken for
    0 where it comes out below. What runs share besides, images to train on, is not counted: as everywhere with one
    split for all runs, the interval is one at these images to train on. `of_folds` guesses at that too, and is wider.

    Args:
        scores: single scores, or differences from `paired`.
        clusters: stem -> its cluster, as in `crossed`: w and y are then the share and the mean of a cluster.

    None where fewer than two runs, or fewer than two images (or clusters) are tested by several.
    """
    by_run = [_means_by_group(images, clusters or {}) for images in scores.values()]
    times = Counter(group for groups in by_run for group in groups)
    several = sum(count > 1 for count in times.values())
    if several < 2:
        return None
    runs = of_seeds([_mean(groups) for groups in by_run])
    shared = statistics.fmean(_covariance(first, second) for first, second in combinations(by_run, 2))
    return replace(runs, rest=(VarianceShare(variance=max(0.0, shared), df=several - 1),))


def _covariance(first: Groups, second: Groups) -> float:
    """Of the means of two runs, from the clusters that both test."""
    of_first, of_second = _mean(first), _mean(second)
    both = [(*first[name], *second[name]) for name in first.keys() & second.keys()]
    weights = math.fsum(w * v for _, w, _, v in both)
    left = math.fsum(w * v * (1 - w - v + weights) for _, w, _, v in both)
    products = math.fsum(w * v * (y - of_first) * (z - of_second) for y, w, z, v in both)
    return products * weights / left if left > 0 else 0.0


Groups = Mapping[str, tuple[float, float]]
"""Cluster, or image -> its mean score and its share of the run's images."""


def _means_by_group(images: Mapping[str, float], clusters: Mapping[str, str]) -> Groups:
    groups: dict[str, list[float]] = {}
    for stem, score in images.items():
        groups.setdefault(clusters.get(stem, stem), []).append(score)
    return {group: (statistics.fmean(values), len(values) / len(images)) for group, values in groups.items()}


def _mean(groups: Groups) -> float:
    """Of a run's images."""
    return math.fsum(mean * weight for mean, weight in groups.values())


POWER = 0.8
"""Of what `detectable` calls seen."""


def detectable(estimate: Estimate, *, seeds: int | None = None) -> float | None:
    """The true difference whose 95 % interval leaves zero out with `POWER`, the variance being what was measured.

    Args:
        seeds: with so many in place of those that there are.

    None for a single seed.
    """
    if estimate.seeds is None:
        return None
    parts = estimate.parts_at(seeds or estimate.n)
    variance = math.fsum(part.variance for part in parts)
    if not variance:
        return 0.0
    return _noncentrality(_effective_df(parts)) * math.sqrt(variance)


@lru_cache(maxsize=4096)
def _noncentrality(df: float) -> float:
    """δ at which a noncentral t of mean parameter δ exceeds the two-sided 5 % quantile with `POWER`."""
    from scipy import optimize, stats

    edge = quantile(df)
    return float(optimize.brentq(lambda delta: stats.nct.sf(edge, df, delta) - POWER, 0.0, edge + 10 + 10 * edge))


def average_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as one a benchmark: it speaks of these and of no other benchmarks."""
    count = len(estimates)
    known = [estimate.seeds for estimate in estimates if estimate.seeds is not None]
    parts = [part for estimate in estimates for part in estimate.rest]
    pooled = None
    if len(known) == count:
        variance = math.fsum(part.variance for part in known)
        df = variance**2 / math.fsum(part.variance**2 / part.df for part in known) if variance else known[0].df
        narrows = math.fsum(part.variance * part.narrows for part in known) / variance if variance else 1.0
        pooled = VarianceShare(variance=variance / count**2, df=df, narrows=narrows)
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
