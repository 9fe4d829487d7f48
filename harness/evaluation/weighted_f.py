"""Weighted F-measure of one image (Margolin et al., "How to Evaluate Foreground Maps?", CVPR 2014)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, distance_transform_edt

from harness.evaluation.saliency import EPS, Floats, Mask

_SIGMA, _REACH = 5.0, 3  # a 7×7 Gaussian
_CAP = 128  # pixels; beyond, an error weighs 2 − exp(ln ½ / 5 · 128) = 2 to within 2e-8
_FALLOFF = np.exp(np.log(0.5) / 5 * np.sqrt(np.arange(_CAP**2 + 1)))  # by squared distance, which is an integer


def weighted_f(probability: Floats, foreground: Mask, valid: Mask | None = None, *, beta2: float = 1.0) -> float:
    """(1 + β²) P R / (β² P + R) of a precision and a recall that weigh errors by place and blur them inside.

    An error outside counts 1 to 2 times, by its distance to the foreground. An error inside is at most the Gaussian mean
    of the errors around it, in which a background pixel takes the error of the nearest foreground pixel. Whatever needs a
    distance lies within ``_CAP`` of the foreground and whatever needs the blur within ``_REACH`` of it, so that is the
    part of the image that is worked on.

    Args:
        probability: (H, W) in [0, 1].
        foreground: (H, W).
        valid: pixels that count; the others carry no error of their own, as background pixels in the blur.
        beta2: β²; 1 in the paper, 0.3 in several releases.

    Returns:
        The measure; 0 for an empty mask.
    """
    if valid is not None:
        foreground = foreground & valid
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    if rows.size == 0:
        return 0.0
    bounds = (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
    near, close = _grown(bounds, _CAP, foreground.shape), _grown(bounds, _REACH, foreground.shape)

    error = np.where(foreground, 1.0 - probability, probability)
    if valid is not None:
        error[~valid] = 0.0
    positives = int(np.count_nonzero(foreground))

    nearest = distance_transform_edt(~foreground[near], return_distances=False, return_indices=True)
    blurred = _blurred_error(error[near], foreground[near], nearest, within=_relative(close, near))
    inside = foreground[close]
    lost = float(np.minimum(error[close], blurred)[inside].sum())

    # Outside: Σ e·(2 − falloff) = 2 Σ e − Σ e·falloff, the falloff being nought beyond _CAP.
    outside = 2.0 * (float(error.sum()) - float(error[foreground].sum()))
    false_positives = outside - _discount(error[near], foreground[near], nearest)

    true_positives = positives - lost
    recall = 1.0 - lost / positives
    precision = true_positives / (true_positives + false_positives + EPS)
    return (1 + beta2) * recall * precision / (recall + beta2 * precision + EPS)


Box = tuple[slice, slice]


def _grown(bounds: tuple[tuple[int, int], tuple[int, int]], margin: int, shape: tuple[int, ...]) -> Box:
    (top, bottom), (left, right) = bounds
    return slice(max(top - margin, 0), min(bottom + margin, shape[0])), slice(
        max(left - margin, 0), min(right + margin, shape[1])
    )


def _relative(inner: Box, outer: Box) -> Box:
    """``inner`` in the coordinates of ``outer``."""
    (rows, columns), (top, left) = inner, (outer[0].start, outer[1].start)
    return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def _blurred_error(error: Floats, foreground: Mask, nearest: NDArray[np.int32], *, within: Box) -> Floats:
    """The error under the Gaussian, background replaced by its nearest foreground pixel's; zero beyond the image."""
    y, x = nearest[0][within], nearest[1][within]
    spread = error[y, x]  # a foreground pixel is its own nearest
    taps = np.exp(-(np.arange(-_REACH, _REACH + 1) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()  # the 7×7 kernel is the outer product of this one with itself
    return correlate1d(correlate1d(spread, taps, axis=0, mode="constant"), taps, axis=1, mode="constant")


def _discount(error: Floats, foreground: Mask, nearest: NDArray[np.int32]) -> float:
    """Σ over the background of error · exp(ln ½ / 5 · distance)."""
    height, width = foreground.shape
    dy = nearest[0] - np.arange(height, dtype=np.int32)[:, None]
    dx = nearest[1] - np.arange(width, dtype=np.int32)
    squared = np.minimum(dy * dy + dx * dx, _CAP**2)
    return float(np.sum(error * _FALLOFF[squared], where=~foreground))
