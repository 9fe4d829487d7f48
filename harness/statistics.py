"""Statistics of comparisons with few seeds: estimates with the parts of their variance, and their intervals.

The parts of a variance (seeds, images, a paper's runs) have degrees of freedom of their own. The interval of their sum uses Student's
quantile at the effective degrees of freedom of Satterthwaite 1946 and Welch 1947; one part alone gives Student's interval. Many rows
against one baseline have intervals that hold for all rows at once (max-T; Dunnett 1955, Westfall and Young 1993).
``results/analysis/pair_coverage.py`` simulates how often the intervals contain the true value.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class VarianceShare(NamedTuple):
    """A share of an estimate's variance.

    Args:
        variance: variance of the estimate, not of single values; negative where it subtracts what two other parts both contain.
        df: degrees of freedom of that variance; infinite where it is known.
    """

    variance: float
    df: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with the parts of its variance.

    Args:
        mean: the estimate.
        seeds: the part due to the seeds; None for a single seed, which has no interval.
        rest: the parts due to the images, and to what is not ours (a paper's runs).
        n: number of seeds.
    """

    mean: float
    n: int
    seeds: VarianceShare | None
    rest: tuple[VarianceShare, ...] = ()

    def interval(self) -> tuple[float, float] | None:
        """The ends of the mean's 95 % interval; None for a single seed, which has no spread."""
        if self.seeds is None:
            return None
        parts = (self.seeds, *self.rest)
        variance = math.fsum(part.variance for part in parts)
        half = quantile(_effective_df(parts)) * math.sqrt(variance) if variance else 0.0
        return self.mean - half, self.mean + half


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
    """The mean of one value per seed."""
    spread = sd(values)
    part = None if spread is None else VarianceShare(variance=spread**2 / len(values), df=len(values) - 1)
    return Estimate(mean=statistics.fmean(values), n=len(values), seeds=part)


def crossed(table: NDArray[np.float64], *, clusters: NDArray[np.intp] | None = None) -> Estimate | None:
    """The mean over seeds and images, with the variance due to the choice of seeds and of images.

    Seeds and images are crossed: every seed scores the same test images, so no number of seeds narrows what only more images can. The
    model is the analysis of variance of a random two-way model (Searle, Casella, McCulloch 1992, ch. 4). Let a be the seeds' deviations
    from the mean, b the images', e the rest (the interaction), R the seeds and C the images. Σa² / R(R - 1) and Σb² / C(C - 1) each
    contain the variance σ²ₑ / RC of the interaction. So its unbiased estimate Σe² / RC(R - 1)(C - 1) is subtracted once, as a third part.
    The sum is never below the larger of the first two parts, like REML's where a component would be negative.

    Args:
        table: (R, C) scores, or differences of two rows.
        clusters: as in `cluster_sums`, which sums b and e.

    Returns None for fewer than two seeds, images or clusters.
    """
    if len(table) < 2:
        return None
    mean, seeds = float(table.mean()), len(table)
    of_seed, of_image = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    summed, scale = cluster_sums(np.vstack([of_image, table - mean - of_seed[:, None] - of_image]), clusters)
    groups = summed.shape[1]
    if groups < 2:
        return None
    between = float((summed[0] ** 2).sum()) * scale
    interaction_df = (seeds - 1) * (groups - 1)
    interaction = float((summed[1:] ** 2).sum()) * scale / (seeds * (seeds - 1))
    images_part = VarianceShare(variance=between, df=groups - 1)
    seeds_part = VarianceShare(variance=float((of_seed**2).sum()) / (seeds * (seeds - 1)), df=seeds - 1)
    # Both contain the interaction: it is subtracted once, and no more than leaves the larger of the two.
    interaction_part = VarianceShare(variance=-min(interaction, between, seeds_part.variance), df=interaction_df)
    return Estimate(mean=mean, n=seeds, seeds=seeds_part, rest=(images_part, interaction_part))


def cluster_sums(
    deviations: NDArray[np.float64], clusters: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.float64], float]:
    """(…, G) sums of deviations from a mean over images within clusters, and the factor that makes their squares a variance of that mean.

    With w the clusters' shares of the C images, the factor is Σw² / Σw²(1 - 2w + Σw²) / C². For G clusters of equal size it is
    G / (G - 1) / C²; one cluster has no variance, and the factor is 0.

    ``deviations`` are (…, C); ``clusters`` (C,) numbers of the images' clusters, where images are not independent (frames of one video).
    """
    images = deviations.shape[-1]
    index = np.arange(images) if clusters is None else clusters
    share = np.bincount(index) / images
    squares = float((share**2).sum())
    correction = squares / float((share**2 * (1 - 2 * share + squares)).sum()) if len(share) > 1 else 0.0
    summed = np.apply_along_axis(lambda row: np.bincount(index, weights=row), -1, deviations)
    return summed, correction / images**2


def of_folds(values: Sequence[float], *, test_share: float) -> Estimate:
    """The mean of one value per fold, every fold a new random split of the same images (Nadeau and Bengio 2003).

    Folds share images, so their values depend on each other: the variance is s² (1/k + n₂ / n₁) in place of s² / k.

    Args:
        test_share: n₂ / n₁, images tested over images trained on.
    """
    plain = of_seeds(values)
    if plain.seeds is None:
        return plain
    factor = 1 + len(values) * test_share
    return replace(plain, seeds=plain.seeds._replace(variance=plain.seeds.variance * factor))


def average_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as one per benchmark; it is valid for these benchmarks alone."""
    count = len(estimates)
    known = [estimate.seeds for estimate in estimates if estimate.seeds is not None]
    parts = [part for estimate in estimates for part in estimate.rest]
    pooled = None
    if len(known) == count:
        variance = math.fsum(part.variance for part in known)
        df = _effective_df(known) if variance else known[0].df
        pooled = VarianceShare(variance=variance / count**2, df=df)
    return Estimate(
        mean=statistics.fmean(estimate.mean for estimate in estimates),
        n=min(estimate.n for estimate in estimates),
        seeds=pooled,
        rest=tuple(part._replace(variance=part.variance / count**2) for part in parts),
    )


def to_printed(ours: Sequence[float], value: float, *, spread: float | None, is_sd: bool, runs: int) -> Estimate:
    """The mean of our scores, one per seed, minus a published value.

    Args:
        spread: the number after ±: a standard error, or with ``is_sd`` the SD of the runs. None where none is printed: the paper's
            runs are then assumed to vary as ours do.
        runs: how many the paper averaged; 0 where it does not say, which counts as one; a spread then has the df of three.
    """
    estimate = of_seeds(ours)
    seeds = estimate.seeds
    rest: tuple[VarianceShare, ...] = ()
    if spread is not None:  # Welch 1947
        error, df = spread / math.sqrt(max(runs, 1)) if is_sd else spread, max(runs - 1, 1) if runs else 2
        rest = (VarianceShare(variance=error**2, df=df),)
    elif seeds is not None:
        seeds = seeds._replace(variance=seeds.variance * (1 + len(ours) / max(runs, 1)))
    return Estimate(mean=estimate.mean - value, n=len(ours), seeds=seeds, rest=rest)


class Ratio(NamedTuple):
    """A method's cost over a baseline's, with a 95 % interval where there are several rounds; memory does not vary."""

    value: float
    low: float | None = None
    high: float | None = None


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Geometric mean of the ratios by round, with a 95 % t interval of their logarithms (none for a single round)."""
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    ends = map(math.exp, of_seeds(logs).interval() or ())
    return Ratio(math.exp(statistics.fmean(logs)), *ends)


SIMULATIONS, MANY = 20_000, 100


@dataclass(frozen=True, kw_only=True)
class Family:
    """The differences between K rows and one baseline on one benchmark.

    Their variance is that of other seeds plus that of other images. Two rows' differences correlate through the baseline's runs and through
    images that are easy or hard for both.

    Args:
        means: (K,) row minus baseline.
        seeds: (1 + K,) variance of each row's own mean due to the seeds, the baseline's first.
        df: degrees of freedom of each of these variances.
        pooled: whether they are one estimate, from the runs of all rows.
        images: (K, K) covariance of the differences due to the images; zeros where scores are not means over images.
        images_df: degrees of freedom of its variances; infinite from `MANY` images or clusters on, whose variances count as known.
    """

    means: NDArray[np.float64]
    seeds: NDArray[np.float64]
    df: float
    images: NDArray[np.float64]
    images_df: float = math.inf
    pooled: bool = True

    @property
    def of_seeds(self) -> NDArray[np.float64]:
        """(K,) variance of each difference due to the seeds."""
        return self.seeds[1:] + self.seeds[0]


def family(
    runs: NDArray[np.float64],
    images: NDArray[np.float64] | None = None,
    *,
    clusters: NDArray[np.intp] | None = None,
    test_share: float = 0.0,
    prior: float = math.inf,
) -> Family:
    """The differences of all other rows to the first.

    The spread of single runs, s², is pooled over all rows. With a finite ``prior`` each row has its own, shrunk towards the pooled one
    (moderated variances, Smyth 2004): (prior · s² + (R - 1) · s²ₖ) / (prior + R - 1), with prior + R - 1 degrees of freedom.

    Args:
        runs: (1 + K, R) score of each row's run under each seed; the same R >= 2 seeds for all.
        images: (1 + K, R, C) score by image, of the same C images everywhere; None where a score is not a mean over
            images.
        clusters: as in `cluster_sums`.
        test_share: images tested over images trained on where every seed has its own split (Nadeau and Bengio
            2003), else 0. Seeds are then blocks: an effect of the split on all rows does not count as spread.
        prior: weight of the pooled variance in each row's own, in degrees of freedom; infinite for the pooled one alone.
    """
    rows, count = runs.shape
    residual = runs - runs.mean(axis=1, keepdims=True)
    # A row whose runs are all equal, such as zero-shot's, says nothing about the others' spread.
    varies = np.ptp(runs, axis=1) > 0
    free = varying = max(int(varies.sum()), 1)
    if test_share and varying > 1:
        residual, free = residual - residual[varies].mean(axis=0), varying - 1
    own = np.where(varies, (residual**2).sum(axis=1) * varying / free, 0.0)
    df = free * (count - 1)
    run_variance = float(own.sum()) / (varying * (count - 1))
    spreads, pooled = np.full(rows, run_variance), math.isinf(prior)
    if not pooled:
        spreads, df = (prior * spreads + own) / (prior + count - 1), prior + count - 1
    seeds = spreads * (1 / count + test_share)
    means = (runs[1:] - runs[0]).mean(axis=1)
    if images is None:
        return Family(means=means, seeds=seeds, df=df, images=np.zeros((rows - 1, rows - 1)), pooled=pooled)
    difference = images[1:] - images[0]
    summed, scale = cluster_sums(difference - difference.mean(axis=2, keepdims=True), clusters)
    of_image = summed.mean(axis=1)  # (K, G)
    interaction = summed - of_image[:, None]
    covariance = of_image @ of_image.T * scale
    overlap = np.einsum("krg,lrg->kl", interaction, interaction) * scale / (count * (count - 1))
    # Seeds and images both contain the interaction: it is subtracted once, but never to less than the larger of the two.
    subtracted = np.minimum(np.diag(overlap), np.minimum(np.diag(covariance), seeds[1:] + seeds[0]))
    share = np.sqrt(np.divide(subtracted, np.diag(overlap), out=np.zeros_like(subtracted), where=np.diag(overlap) > 0))
    images_df = math.inf if (groups := summed.shape[2]) >= MANY else groups - 1
    covariance = covariance - overlap * np.outer(share, share)
    return Family(means=means, seeds=seeds, df=df, images=covariance, images_df=images_df, pooled=pooled)


def max_t(families: Sequence[Family], *, level: float = 0.95, simulations: int = SIMULATIONS) -> NDArray[np.float64]:
    """(K,) half-widths of intervals for the mean of the families' differences, which hold for all K rows at once.

    The largest of K studentised differences is simulated with the families' covariances, each estimated variance of
    runs, and of few images, with its χ²; for one family with K = 1 it is the usual interval.

    Args:
        families: one per benchmark, of the same rows in the same order.
    """

    def drawn(df: float, of: int = 1) -> Any:
        """Simulated estimates of a variance that is 1."""
        return 1.0 if math.isinf(df) else generator.chisquare(df, (simulations, of)) / df

    generator = np.random.default_rng(0)
    rows = len(families[0].means)
    simulated, estimated, variance = np.zeros((simulations, rows)), np.zeros((simulations, 1)), np.zeros(rows)
    for each in families:
        covariance = each.images + np.diag(each.seeds[1:]) + each.seeds[0]
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        simulated += generator.standard_normal((simulations, rows)) @ root.T
        seeds = each.seeds * drawn(each.df, of=1 if each.pooled else 1 + rows)
        estimated = estimated + seeds[:, 1:] + seeds[:, :1] + np.diag(each.images) * drawn(each.images_df)
        variance += np.diag(each.images) + each.of_seeds
    varies = variance > 0
    if not varies.any():
        return np.zeros(rows)
    largest = (np.abs(simulated[:, varies]) / np.sqrt(estimated[:, varies])).max(axis=1)
    return np.asarray(np.quantile(largest, level) * np.sqrt(variance) / len(families))
