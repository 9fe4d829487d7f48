"""Saliency metrics of one image: MAE, S-measure, E-measure. The weighted F-measure has its own module.

All take a probability map (H, W) float64 in [0, 1], a foreground mask (H, W) bool, and ``valid`` (H, W) bool or None
where every pixel counts. A pixel that is not valid (label 255) is left out of every sum, count, mean and centroid, and its
prediction changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPS = float(np.spacing(1))  # MATLAB's eps, which the authors' code adds to denominators
_THRESHOLDS = 256


def min_max(probability: Floats, valid: Mask | None = None) -> Floats:
    """Stretch a map to [0, 1] (MATLAB's mapminmax, as the authors' code does first); a constant map stays as it is."""
    inside = probability if valid is None else probability[valid]
    if inside.size == 0:
        return probability
    low, high = inside.min(), inside.max()
    if low == high:
        return probability
    stretched = (probability - low) / (high - low)
    return stretched if valid is None else np.clip(stretched, 0.0, 1.0)


def mae(probability: Floats, foreground: Mask, valid: Mask | None = None) -> float:
    """Mean absolute error (Perazzi et al., CVPR 2012)."""
    error = np.abs(probability - foreground)
    return float(_mean(error if valid is None else error[valid]))


@dataclass(frozen=True, kw_only=True)
class EMeasure:
    """E-measures of one image.

    Args:
        curve: (256,) E-measure of the map binarised at ``floor(255 p) >= t`` for t = 255, 254, …, 0.
        adaptive: E-measure of the map binarised at twice its mean (at most 1).
    """

    curve: Floats
    adaptive: float


def e_measure(probability: Floats, foreground: Mask, valid: Mask | None = None) -> EMeasure:
    """Enhanced-alignment measure (Fan et al., IJCAI 2018).

    For binary maps the alignment matrix takes only four values, one for each pair (predicted, true), so the measure at
    a threshold follows from two counts; the counts at all 256 thresholds are cumulative sums of two histograms.
    """
    levels = (probability * 255).astype(np.uint8)  # truncation, as the authors' code does
    if valid is not None:
        levels, probability, foreground = levels[valid], probability[valid], foreground[valid]
    total, positives = foreground.size, int(np.count_nonzero(foreground))
    everywhere = np.bincount(levels.ravel(), minlength=_THRESHOLDS)
    inside = np.bincount(levels[foreground], minlength=_THRESHOLDS)
    hits = np.cumsum(inside[::-1])
    predicted = np.cumsum(everywhere[::-1])
    threshold = min(2.0 * float(_mean(probability)), 1.0)
    above = probability >= threshold
    adaptive = _enhanced_alignment(
        hits=np.array([np.count_nonzero(above & foreground)]),
        predicted=np.array([np.count_nonzero(above)]),
        positives=positives,
        total=total,
    )
    return EMeasure(
        curve=_enhanced_alignment(hits=hits, predicted=predicted, positives=positives, total=total),
        adaptive=float(adaptive[0]),
    )


def _enhanced_alignment(*, hits: NDArray[np.int64], predicted: NDArray[np.int64], positives: int, total: int) -> Floats:
    """Σ (1 + ξ)² / 4 over the pixels, by N − 1, ξ = 2ab / (a² + b²) with a, b the two maps minus their means.

    Args:
        hits: predicted pixels that are foreground, by threshold.
        predicted: predicted pixels, by threshold.
        positives: foreground pixels.
        total: pixels.
    """
    if total == 0:
        return np.zeros(len(hits))
    if positives == 0:
        aligned = (total - predicted).astype(np.float64)
    elif positives == total:
        aligned = predicted.astype(np.float64)
    else:
        mean_predicted, mean_true = predicted / total, positives / total
        false_hits, misses = predicted - hits, positives - hits
        cells = (
            (hits, 1 - mean_predicted, 1 - mean_true),
            (false_hits, 1 - mean_predicted, -mean_true),
            (misses, -mean_predicted, 1 - mean_true),
            (total - predicted - misses, -mean_predicted, -mean_true),
        )
        aligned = np.zeros(len(hits))
        for count, a, b in cells:
            aligned += count * (2 * a * b / (a * a + b * b + EPS) + 1) ** 2 / 4
    return aligned / (total - 1 + EPS)


def s_measure(probability: Floats, foreground: Mask, valid: Mask | None = None, *, alpha: float = 0.5) -> float:
    """Structure measure α·S_object + (1 − α)·S_region (Fan et al., ICCV 2017).

    On an empty mask it is 1 − the map's mean, on a full one the mean. The image is cut at the foreground's centroid into four quadrants, weighted by their share of the (valid) pixels. A
    quadrant without pixels (centroid in the last row or column) has weight 0; dividing 0 by 0 there, as PySODMetrics does,
    gives nan.
    """
    inside = foreground if valid is None else foreground[valid]
    total, positives = inside.size, int(np.count_nonzero(inside))
    if total == 0:
        return 0.0
    if positives in (0, total):
        mean = float(_mean(probability if valid is None else probability[valid]))
        return mean if positives else 1.0 - mean
    background = ~foreground
    if valid is not None:
        foreground, background = foreground & valid, background & valid
    share = positives / total
    objects = share * _object_score(probability[foreground]) + (1 - share) * _object_score(
        1.0 - probability[background]
    )
    regions = _region_score(probability, foreground, valid, total=total, positives=positives)
    return max(0.0, alpha * objects + (1 - alpha) * regions)


def _object_score(values: Floats) -> float:
    """2 x̄ / (x̄² + 1 + σ): how high and how even the map is over one object (equation 4, λ = 1/2)."""
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + deviation + EPS)


def _region_score(probability: Floats, foreground: Mask, valid: Mask | None, *, total: int, positives: int) -> float:
    height, width = foreground.shape
    in_row, in_column = np.count_nonzero(foreground, axis=1), np.count_nonzero(foreground, axis=0)
    # MATLAB's 1-based range 1:centre includes the centre: one more pixel in 0-based slices.
    middle = round(float(in_row @ np.arange(height)) / positives) + 1
    centre = round(float(in_column @ np.arange(width)) / positives) + 1
    score = 0.0
    for rows in (slice(0, middle), slice(middle, None)):
        for columns in (slice(0, centre), slice(centre, None)):
            predicted, true = probability[rows, columns], foreground[rows, columns]
            if valid is not None:
                predicted, true = predicted[valid[rows, columns]], true[valid[rows, columns]]
            if true.size:
                score += _similarity(predicted, true) * true.size / total
    return score


def _similarity(predicted: Floats, true: Mask) -> float:
    """SSIM of one quadrant in the form of equation 6: 4 x̄ ȳ σxy / ((x̄² + ȳ²)(σx² + σy²)); 1 where both are constant."""
    size, positives = true.size, int(np.count_nonzero(true))
    x, y = float(predicted.mean()), positives / size
    centred = np.ravel(predicted - x)
    scale = size - 1 + EPS
    variance = float(centred @ centred) / scale
    covariance = float(np.sum(centred, where=np.ravel(true)) - y * np.sum(centred)) / scale
    numerator = 4 * x * y * covariance
    denominator = (x * x + y * y) * (variance + positives * (1 - y) / scale)
    if numerator != 0:
        return numerator / (denominator + EPS)
    return 1.0 if denominator == 0 else 0.0


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else 0.0
