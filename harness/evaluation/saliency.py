"""Saliency metrics of one image: MAE, S-measure, E-measure. The weighted F-measure has its own module.

A pixel with label 255 is left out of every sum, count, mean and centroid, and its prediction has no effect.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPS = float(np.spacing(1))  # MATLAB's eps, which the authors' code adds to denominators
_LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class SaliencyMap:
    """A prediction and its ground truth, split once for all metrics. Make one with `saliency_map`.

    Args:
        probability: (H, W) in [0, 1].
        foreground: (H, W), False where ignored.
        valid: (H, W) pixels that count, None where all do.
        inside: (P,) probabilities on the foreground.
        outside: (N,) probabilities on the background, ignored pixels left out.
    """

    probability: Floats
    foreground: Mask
    valid: Mask | None
    inside: Floats
    outside: Floats

    @property
    def size(self) -> int:
        """Pixels that count."""
        return self.inside.size + self.outside.size

    @functools.cached_property
    def hits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(256,) pixels of the foreground, and of the background, that are predicted where the map is binarised at ``floor(255 p) >= t``
        for t = 255, 254, …, 0: cumulative sums of two histograms."""
        return _count_from(self.inside), _count_from(self.outside)

    @functools.cached_property
    def inside_sum(self) -> float:
        return float(self.inside.sum())

    @functools.cached_property
    def outside_sum(self) -> float:
        return float(self.outside.sum())


def saliency_map(probability: Floats, foreground: Mask, valid: Mask | None = None, *, min_max: bool) -> SaliencyMap:
    """Prepare one image.

    Args:
        probability: (H, W) in [0, 1].
        foreground: (H, W).
        valid: (H, W) pixels that count, None where all do.
        min_max: stretch the map to [0, 1] over the valid pixels (MATLAB's mapminmax, with which the authors' code
            begins); a constant map stays as it is.
    """
    if valid is not None:
        # An ignored prediction becomes a harmless one: the lowest that counts.
        low = probability.min(initial=1.0, where=valid)
        probability, foreground = np.where(valid, probability, low), foreground & valid
    if min_max and probability.size:
        low, high = probability.min(), probability.max()
        if low != high and (low, high) != (0.0, 1.0):
            probability = probability - low
            probability /= high - low
    background = ~foreground if valid is None else valid & ~foreground
    return SaliencyMap(
        probability=probability,
        foreground=foreground,
        valid=valid,
        inside=probability[foreground],
        outside=probability[background],
    )


def mae(image: SaliencyMap) -> float:
    """Mean absolute error (Perazzi et al., CVPR 2012)."""
    return (image.inside.size - image.inside_sum + image.outside_sum) / image.size


def e_curve(image: SaliencyMap) -> Floats:
    """(256,) Enhanced-alignment measure (Fan et al., IJCAI 2018) at every threshold of `SaliencyMap.hits`.

    For binary maps the alignment matrix takes only four values, one for each pair (predicted, true), so the measure at
    a threshold follows from two counts.
    """
    return _enhanced_alignment(*image.hits, positives=image.inside.size, total=image.size)


def e_adaptive(image: SaliencyMap) -> float:
    """Enhanced-alignment measure of the map binarised at twice its mean (at most 1)."""
    mean = (image.inside_sum + image.outside_sum) / max(image.size, 1)
    predicted = [np.array([np.count_nonzero(part >= min(2.0 * mean, 1.0))]) for part in (image.inside, image.outside)]
    return float(_enhanced_alignment(*predicted, positives=image.inside.size, total=image.size)[0])


def mean_overlaps(image: SaliencyMap) -> tuple[float, float]:
    """Dice and IoU as in PraNet's evaluation (Fan et al., MICCAI 2020): means over the thresholds of `SaliencyMap.hits`, with 0
    wherever no foreground is hit, including on an empty mask."""
    hits, false_hits = image.hits
    both = image.inside.size + hits + false_hits  # |A| + |B|, and with no hit the numerator is 0
    return float((2 * hits / both.clip(1)).mean()), float((hits / (both - hits).clip(1)).mean())


def _count_from(probabilities: Floats) -> NDArray[np.int64]:
    """(256,) number of probabilities at or above each level, from the highest level down."""
    levels = (probabilities * 255).astype(np.uint8)  # truncation, as the authors' code does
    return np.cumsum(np.bincount(levels, minlength=_LEVELS)[::-1])


def _enhanced_alignment(
    hits: NDArray[np.int64], false_hits: NDArray[np.int64], *, positives: int, total: int
) -> Floats:
    """Σ (1 + ξ)² / 4 over the pixels, divided by N − 1 (by 1 for one pixel), ξ = 2ab / (a² + b²) with a, b the two maps minus their means.

    Args:
        hits: predicted pixels that are foreground, by threshold.
        false_hits: predicted pixels that are background, by threshold.
        positives: foreground pixels.
        total: pixels.
    """
    predicted = hits + false_hits
    if positives == 0:
        aligned = (total - predicted).astype(np.float64)
    elif positives == total:
        aligned = predicted.astype(np.float64)
    else:
        mean_predicted, mean_true = predicted / total, positives / total
        misses = positives - hits
        cells = (
            (hits, 1 - mean_predicted, 1 - mean_true),
            (false_hits, 1 - mean_predicted, -mean_true),
            (misses, -mean_predicted, 1 - mean_true),
            (total - predicted - misses, -mean_predicted, -mean_true),
        )
        aligned = np.zeros(len(hits))
        for count, a, b in cells:
            aligned += count * (2 * a * b / (a * a + b * b + EPS) + 1) ** 2 / 4
    return aligned / max(total - 1, 1)


def s_measure(image: SaliencyMap, *, alpha: float = 0.5) -> float:
    """Structure measure α·S_object + (1 − α)·S_region (Fan et al., ICCV 2017).

    On an empty mask it is 1 − the map's mean, on a full one the mean. The image is cut at the foreground's centroid
    into four quadrants, weighted by their share of the pixels. A quadrant without pixels (centroid in the last row or
    column) weighs nothing; PySODMetrics divides 0 by 0 there and returns nan.
    """
    total, positives = image.size, image.inside.size
    if positives in (0, total):
        return image.inside_sum / total if positives else 1.0 - image.outside_sum / total
    share = positives / total
    inside = _object_score(image.inside, image.inside_sum)
    outside = _object_score(image.outside, image.outside_sum, inverted=True)
    objects = share * inside + (1 - share) * outside
    return max(0.0, alpha * objects + (1 - alpha) * _region_score(image))


def _object_score(values: Floats, total: float, *, inverted: bool = False) -> float:
    """2 x̄ / (x̄² + 1 + σ) for x = values or 1 − values: how high and how even one object is (equation 4, λ = 1/2)."""
    mean = total / values.size
    deviation = 0.0
    if values.size > 1:
        # Sums of squares of numbers in [0, 1]: cancellation costs σ at most 1e-7, where it is zero.
        deviation = math.sqrt(max(0.0, float(values @ values) - values.size * mean * mean) / (values.size - 1))
    if inverted:
        mean = 1.0 - mean
    return 2 * mean / (mean * mean + 1 + deviation + EPS)


def _region_score(image: SaliencyMap) -> float:
    counts = [np.count_nonzero(image.foreground, axis=axis) for axis in (1, 0)]
    row, column = (round(float(count @ np.arange(count.size) / count.sum())) for count in counts)  # halves to even
    score = 0.0
    # MATLAB's 1-based range 1:centre includes the centre: one more pixel in 0-based slices.
    for rows in (slice(0, row + 1), slice(row + 1, None)):
        for columns in (slice(0, column + 1), slice(column + 1, None)):
            predicted, true = image.probability[rows, columns], image.foreground[rows, columns]
            if image.valid is not None:
                counted = image.valid[rows, columns]
                predicted, true = predicted[counted][None], true[counted][None]
            score += _similarity(predicted, true) * true.size / image.size if true.size else 0.0
    return score


def _similarity(predicted: Floats, true: Mask) -> float:
    """SSIM of one quadrant in the form of equation 6: 4 x̄ ȳ σxy / ((x̄² + ȳ²)(σx² + σy²)) of pixels (H, W).

    Where the truth is constant, σxy and so the score are 0, but two constants are alike and score 1. Otherwise the truth's variance is in
    the denominator, and rounding of the prediction's has no effect.
    """
    size, positives = true.size, int(np.count_nonzero(true))
    if positives in (0, size):
        return float(predicted.min() == predicted.max())
    total, scale = float(predicted.sum()), size - 1 + EPS
    x, y = total / size, positives / size
    squares, hit = (float(np.einsum("ij,ij->", predicted, other)) for other in (predicted, true))
    variance = (squares - size * x * x) / scale
    covariance = (hit - y * total) / scale
    return 4 * x * y * covariance / ((x * x + y * y) * (variance + positives * (1 - y) / scale) + EPS)
