"""Metrics that follow from counts of pixels: IoU, Dice, Jaccard, BER; mIoU and accuracy from a confusion matrix.

Counts are integers, so sums over images are exact whatever their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Confusion = NDArray[np.int64]
"""(C, C): true class by predicted class."""


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Pixels of a binary prediction by truth; ignored pixels are in none of them."""

    hits: int = 0
    false_alarms: int = 0
    misses: int = 0
    rejections: int = 0

    def __add__(self, other: Areas) -> Areas:
        return Areas(
            hits=self.hits + other.hits,
            false_alarms=self.false_alarms + other.false_alarms,
            misses=self.misses + other.misses,
            rejections=self.rejections + other.rejections,
        )


def areas(predicted: NDArray[np.bool_], foreground: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None) -> Areas:
    """Count the four outcomes; all arrays (H, W)."""
    total = predicted.size
    if valid is not None:
        predicted, foreground, total = predicted & valid, foreground & valid, int(np.count_nonzero(valid))
    hits = int(np.count_nonzero(predicted & foreground))
    alarms, positives = int(np.count_nonzero(predicted)), int(np.count_nonzero(foreground))
    return Areas(
        hits=hits, false_alarms=alarms - hits, misses=positives - hits, rejections=total - alarms - positives + hits
    )


def iou(counts: Areas, *, empty: float) -> float:
    """Intersection over union, also called Jaccard index; ``empty`` where mask and prediction both are empty."""
    union = counts.hits + counts.false_alarms + counts.misses
    return counts.hits / union if union else empty


def dice(counts: Areas, *, empty: float) -> float:
    """2 |A ∩ B| / (|A| + |B|); ``empty`` where mask and prediction both are empty."""
    both = 2 * counts.hits + counts.false_alarms + counts.misses
    return 2 * counts.hits / both if both else empty


def ber(counts: Areas) -> float:
    """Balanced error rate in [0, 1]: the mean of the error rates inside and outside the shadow.

    A class that the mask does not have has no error rate and drops out of the mean; without either it is 0.
    """
    rates = []
    if counts.hits + counts.misses:
        rates.append(counts.misses / (counts.hits + counts.misses))
    if counts.false_alarms + counts.rejections:
        rates.append(counts.false_alarms / (counts.false_alarms + counts.rejections))
    return sum(rates) / len(rates) if rates else 0.0


def confusion(
    predicted: NDArray[np.integer],
    true: NDArray[np.integer],
    *,
    num_classes: int,
    valid: NDArray[np.bool_] | None = None,
) -> Confusion:
    """Confusion matrix of class indices (H, W) below ``num_classes``."""
    pairs = true.astype(np.intp) * num_classes + predicted
    if valid is not None:
        pairs = pairs[valid]
    return np.bincount(pairs.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def miou(matrix: Confusion) -> float:
    """Mean of hits / union over the classes in mask or prediction, background included; 0 where there is none."""
    hits = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    seen = union > 0
    return float(np.mean(hits[seen] / union[seen])) if seen.any() else 0.0


def accuracy(matrix: Confusion) -> float:
    """Share of pixels with the right class; 0 where there is no pixel."""
    total = int(matrix.sum())
    return int(np.trace(matrix)) / total if total else 0.0
