"""Weighted F-measure of one image (Margolin et al., "How to Evaluate Foreground Maps?", CVPR 2014)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from harness.evaluation.saliency import EPS, Floats, Mask, SaliencyMap

_SIGMA, _REACH = 5.0, 3  # a 7×7 Gaussian
_CAP = 100  # pixels; an error beyond weighs 2 − 2^(−100 / 5) = 2 − 1e-6, taken as 2
_TRIFLE = 5e-7  # of false positives, by the foreground's area
_FALLOFF = np.exp(np.log(0.5) / 5 * np.sqrt(np.arange(_CAP**2 + 1)))  # by squared distance, which is an integer
_FALLOFF[-1] = 0.0
_TAPS = np.exp(-(np.arange(_REACH + 1) ** 2) / (2 * _SIGMA**2))
_TAPS = (_TAPS / (2 * _TAPS.sum() - 1)).astype(
    np.float32
)  # the 7×7 kernel is the outer product of this one with itself
_ROWS = 32  # rows a step: what a step makes stays in the core's cache


def weighted_f(image: SaliencyMap, *, beta2: float = 1.0) -> float:
    """(1 + β²) P R / (β² P + R) of a precision and a recall that weigh errors by place and blur them inside.

    An error outside counts 1 to 2 times, by its distance to the foreground. An error inside is at most the Gaussian
    mean of the errors around it, in which a background pixel takes the error of the nearest foreground pixel. The blur
    reads what lies within ``_REACH`` of the foreground; and where errors weigh 2 but for a trifle, they are taken to
    weigh 2: from the distance on at which that changes the result by less than 3e-7. So only the part of the image
    near the foreground is worked on.

    Args:
        image: prediction and ground truth; ignored pixels have no error of their own, and are background to the blur.
        beta2: β²; 1 in the paper, 0.3 in several releases.

    Returns:
        The measure; 0 for an empty mask.
    """
    foreground = image.foreground
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    if rows.size == 0:
        return 0.0
    bounds = (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
    outside = float(image.outside.sum())
    near = _grown(bounds, _margin(outside / image.inside.size), foreground.shape)
    close = _relative(_grown(bounds, _REACH, foreground.shape), near)

    probability, foreground = image.probability[near], foreground[near]
    nearest = _nearest(foreground)
    lost = _lost(probability, foreground, nearest, close)
    # Outside: Σ p (2 − falloff) = 2 Σ p − Σ p falloff.
    counted = probability if image.valid is None else np.where(image.valid[near], probability, 0.0)
    false_positives = 2.0 * outside - _discount(counted, foreground, nearest)

    positives = image.inside.size
    true_positives = positives - lost
    recall = 1.0 - lost / positives
    precision = true_positives / (true_positives + false_positives + EPS)
    return (1 + beta2) * recall * precision / (recall + beta2 * precision + EPS)


def _margin(false_share: float) -> int:
    """Pixels beyond which the falloff can be left out.

    Leaving it out adds at most δ = 2^(−m / 5) · Σ_outside p to the false positives. With β² = 1 the measure is
    2 TP / (T + TP + FP), T the foreground's area and TP ≤ T, so it changes by at most δ / 2T, here 2.5e-7.

    Args:
        false_share: Σ_outside p by the foreground's area.
    """
    if false_share <= _TRIFLE:
        return _REACH
    return max(_REACH, min(_CAP, math.ceil(5 * math.log2(false_share / _TRIFLE))))


def _nearest(foreground: Mask) -> NDArray[np.int32]:
    """(2, H, W) row and column of the nearest foreground pixel.

    SciPy walks down columns; rows that are a power of two apart share their cache lines, and it takes twice as long.
    So rows are padded to an odd multiple of 8.
    """
    height, width = foreground.shape
    background = np.ones((height, width + (8 - width) % 16), dtype=np.bool_)
    np.logical_not(foreground, out=background[:, :width])
    indices: NDArray[np.int32] = distance_transform_edt(background, return_distances=False, return_indices=True)
    return indices[:, :, :width]


Box = tuple[slice, slice]


def _grown(bounds: tuple[tuple[int, int], tuple[int, int]], margin: int, shape: tuple[int, ...]) -> Box:
    (top, bottom), (left, right) = bounds
    height, width = shape
    return (
        slice(max(top - margin, 0), min(bottom + margin, height)),
        slice(max(left - margin, 0), min(right + margin, width)),
    )


def _relative(inner: Box, outer: Box) -> Box:
    """``inner`` in the coordinates of ``outer``."""
    (rows, columns), top, left = inner, outer[0].start, outer[1].start
    return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def _lost(probability: Floats, foreground: Mask, nearest: NDArray[np.int32], close: Box) -> float:
    """Σ over the foreground of min(error, blurred error).

    Args:
        probability: (H, W).
        foreground: (H, W).
        nearest: (2, H, W) row and column of each pixel's nearest foreground pixel.
        close: the part that the blur of a foreground pixel reads.
    """
    rows, columns = close
    width = np.int32(probability.shape[1])
    values = np.ravel(probability)
    lost = 0.0
    for top in range(rows.start, rows.stop, _ROWS):
        bottom = min(top + _ROWS, rows.stop)
        above, below = max(top - _REACH, rows.start), min(bottom + _REACH, rows.stop)
        flat = nearest[0, above:below, columns] * width
        flat += nearest[1, above:below, columns]
        # A foreground pixel is its own nearest, and its error is 1 − p. Beyond the image there is no error.
        padded = np.zeros((bottom - top + 2 * _REACH, flat.shape[1] + 2 * _REACH), dtype=np.float32)
        start = above - (top - _REACH)
        np.subtract(1.0, values[flat], out=padded[start : start + len(flat), _REACH:-_REACH], casting="same_kind")
        blurred = _blur(_blur(padded).T).T
        np.minimum(blurred, padded[_REACH:-_REACH, _REACH:-_REACH], out=blurred)
        lost += float(np.sum(blurred, where=foreground[top:bottom, columns], dtype=np.float64))
    return lost


def _blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n + 6, m) to (n, m): one factor of the Gaussian, along the first axis; single precision costs 1e-7 at most."""
    count = len(values) - 2 * _REACH
    out = values[_REACH : _REACH + count] * _TAPS[0]
    for k in range(1, _REACH + 1):
        pair = values[_REACH - k : _REACH - k + count] + values[_REACH + k : _REACH + k + count]
        pair *= _TAPS[k]
        out += pair
    return out


def _discount(probability: Floats, foreground: Mask, nearest: NDArray[np.int32]) -> float:
    """Σ over the background of p · exp(ln ½ / 5 · distance)."""
    height, width = foreground.shape
    column = np.arange(width, dtype=np.int32)
    total = 0.0
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        squared = nearest[0, top:bottom] - np.arange(top, bottom, dtype=np.int32)[:, None]
        across = nearest[1, top:bottom] - column
        squared *= squared
        across *= across
        squared += across
        np.minimum(squared, _CAP**2, out=squared)
        weight = _FALLOFF[squared]
        weight *= probability[top:bottom]
        # A foreground pixel lies at distance 0, where the weight is 1.
        total += float(weight.sum()) - float(np.sum(probability[top:bottom], where=foreground[top:bottom]))
    return total
