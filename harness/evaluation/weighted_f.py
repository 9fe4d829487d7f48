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
_FALLOFF = np.float32(math.log(0.5) / 5)  # an error at distance d weighs 2 − exp(_FALLOFF · d)
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
    outside = float(image.outside.sum())
    margin = _margin(outside / image.inside.size)
    near = (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )
    nearest = _nearest(foreground[near])
    lost = _lost(image.probability, foreground[near], nearest, corner=(near[0].start, near[1].start))
    # Outside: Σ p (2 − falloff) = 2 Σ p − Σ p falloff.
    valid = None if image.valid is None else image.valid[near]
    false_positives = 2.0 * outside - _discount(image.probability[near], foreground[near], valid, nearest)

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


def _lost(probability: Floats, foreground: Mask, nearest: NDArray[np.int32], *, corner: tuple[int, int]) -> float:
    """Σ over the foreground of min(error, blurred error).

    Args:
        probability: of the whole image.
        foreground: (H, W) of the part near the foreground, which reaches ``_REACH`` beyond it or to the image's border.
        nearest: (2, H, W) row and column of each pixel's nearest foreground pixel in that part.
        corner: the part's first row and column in the image.
    """
    height, width = foreground.shape
    values, stride = np.ravel(probability), probability.shape[1]
    offset = corner[0] * stride + corner[1]
    lost = 0.0
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        columns = np.flatnonzero(foreground[top:bottom].any(axis=0))
        if columns.size == 0:
            continue
        left, right = max(int(columns[0]) - _REACH, 0), min(int(columns[-1]) + _REACH + 1, width)
        above, below = max(top - _REACH, 0), min(bottom + _REACH, height)
        flat = np.multiply(nearest[0, above:below, left:right], stride, dtype=np.intp)
        flat += nearest[1, above:below, left:right]
        flat += offset
        # A foreground pixel is its own nearest, and its error is 1 − p. Beyond the image there is no error.
        error = np.zeros((bottom - top + 2 * _REACH, right - left + 2 * _REACH), dtype=np.float32)
        start = above - (top - _REACH)
        inner = error[start : start + below - above, _REACH:-_REACH]
        np.subtract(1.0, values[flat], out=inner, casting="same_kind")
        blurred = _blur(_blur(error).T).T
        np.minimum(blurred, error[_REACH:-_REACH, _REACH:-_REACH], out=blurred)
        lost += float(np.sum(blurred, where=foreground[top:bottom, left:right], dtype=np.float64))
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


def _discount(probability: Floats, foreground: Mask, valid: Mask | None, nearest: NDArray[np.int32]) -> float:
    """Σ over the background of p · exp(ln ½ / 5 · distance); all arguments (H, W), ``nearest`` as in `_lost`."""
    height, width = foreground.shape
    row, column = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    total = 0.0
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        squared = np.square(nearest[0, rows] - row[rows], dtype=np.float32)
        squared += np.square(nearest[1, rows] - column, dtype=np.float32)
        weight = np.sqrt(squared, out=squared)
        weight *= _FALLOFF
        np.exp(weight, out=weight)
        counted = np.multiply(weight, probability[rows], dtype=np.float64)
        total += float(np.sum(counted, where=~foreground[rows] if valid is None else valid[rows] & ~foreground[rows]))
    return total
