"""Many rows against one baseline: intervals that hold for all of them at once (max-T; Dunnett 1955, Westfall and
Young 1993)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIMULATIONS = 20_000


@dataclass(frozen=True, kw_only=True)
class Family:
    """The differences of K rows to one baseline on one benchmark.

    Their variance is that of other seeds, with the spread of single runs pooled over the rows and the baseline, plus
    that of other images. Two rows' differences correlate through the baseline's runs and through images that are
    easy or hard for both.

    Args:
        means: (K,) row minus baseline.
        seeds: variance of a difference due to the seeds; two rows' covariance is half of it.
        df: degrees of freedom of that pooled variance.
        images: (K, K) covariance of the differences due to the images; zeros where scores are no means over images.
    """

    means: NDArray[np.float64]
    seeds: float
    df: int
    images: NDArray[np.float64]


def family(
    runs: NDArray[np.float64],
    images: NDArray[np.float64] | None = None,
    *,
    clusters: NDArray[np.intp] | None = None,
    test_share: float = 0.0,
) -> Family:
    """The differences of all rows but the first to the first.

    Args:
        runs: (1 + K, R) score of each row's run under each seed; the same R >= 2 seeds for all.
        images: (1 + K, R, C) score by image, of the same C images everywhere; None where a score is no mean over
            images.
        clusters: (C,) number of each image's cluster, where images are not independent.
        test_share: images tested over images trained on where every seed has its own split (Nadeau and Bengio
            2003), else 0. Then seeds are blocks: what a split does to all rows is no spread.
    """
    import numpy as np

    rows, count = runs.shape
    left = runs - runs.mean(axis=1, keepdims=True)
    left = left[
        left.any(axis=1)
    ]  # a row whose runs are all the same, such as zero-shot's, knows nothing of the others' spread
    df = max(len(left), 1) * (count - 1)
    if test_share and len(left) > 1:
        left, df = left - left.mean(axis=0, keepdims=True), (len(left) - 1) * (count - 1)
    run_variance = float((left**2).sum()) / df
    seeds = 2 * run_variance * (1 / count + test_share)
    means = (runs[1:] - runs[0]).mean(axis=1)
    if images is None:
        return Family(means=means, seeds=seeds, df=df, images=np.zeros((rows - 1, rows - 1)))
    difference = images[1:] - images[0]
    group = np.arange(images.shape[2]) if clusters is None else clusters
    summed = np.zeros((*difference.shape[:2], int(group.max()) + 1))
    np.add.at(
        summed.transpose(2, 0, 1), group, (difference - difference.mean(axis=2, keepdims=True)).transpose(2, 0, 1)
    )
    groups = summed.shape[2]
    scale = groups / (groups - 1) / images.shape[2] ** 2
    of_image = summed.mean(axis=1)  # (K, G)
    interaction = summed - of_image[:, None]
    covariance = of_image @ of_image.T * scale
    both = np.einsum("krg,lrg->kl", interaction, interaction) * scale / (count * (count - 1))
    # Seeds and images both hold the interaction: it is taken back once, but never below what the larger of the two says.
    taken = np.minimum(np.diag(both), np.minimum(np.diag(covariance), seeds))
    share = np.sqrt(np.divide(taken, np.diag(both), out=np.zeros_like(taken), where=np.diag(both) > 0))
    return Family(means=means, seeds=seeds, df=df, images=covariance - both * np.outer(share, share))


def max_t(families: Sequence[Family], *, level: float = 0.95) -> NDArray[np.float64]:
    """(K,) half-widths of intervals for the mean of the families' differences that hold the truth for all K rows at
    once.

    The largest of K studentised differences is simulated with the families' covariances, each pooled variance of
    runs with its χ²; K = 1 of one family is the usual interval.

    Args:
        families: one a benchmark, of the same rows in the same order.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    rows = len(families[0].means)
    drawn, estimated, variance = np.zeros((SIMULATIONS, rows)), np.zeros((SIMULATIONS, 1)), np.zeros(rows)
    for each in families:
        covariance = each.images + each.seeds * (np.eye(rows) + 1) / 2
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0))
        drawn += generator.standard_normal((SIMULATIONS, rows)) @ root.T
        estimated = (
            estimated + np.diag(each.images) + each.seeds * generator.chisquare(each.df, (SIMULATIONS, 1)) / each.df
        )
        variance += np.diag(each.images) + each.seeds
    known = variance > 0
    if not known.any():
        return np.zeros(rows)
    largest = (np.abs(drawn[:, known]) / np.sqrt(estimated[:, known])).max(axis=1)
    return np.asarray(np.quantile(largest, level) * np.sqrt(variance) / len(families))
