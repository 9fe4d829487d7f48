"""Weighted F-measure of one image (Margolin et al., "How to Evaluate Foreground Maps?", CVPR 2014).

Distances to the foreground are exact, by OpenCV where it is installed and otherwise by SciPy, with the same numbers.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from harness.evaluation.saliency import EPS, Floats, Mask, SaliencyMap

try:  # not at the first image: a thread could meet a module that another is still importing
    import cv2
except ImportError:  # not installed, or without the libraries of a screen that its wheel may ask for
    opencv: ModuleType | None = None
else:
    cv2.setNumThreads(1)  # an evaluation already gives each core an image
    opencv = cv2

_SIGMA, _REACH = 5.0, 3  # a 7×7 Gaussian
_TAPS = np.exp(-(np.arange(_REACH + 1) ** 2) / (2 * _SIGMA**2))
_TAPS = (_TAPS / (2 * _TAPS.sum() - 1)).astype(
    np.float32
)  # the 7×7 kernel is the outer product of this one with itself
_ROWS = 32  # rows per step: the results of a step stay in the core's cache
_FALLOFF = np.float32(math.log(0.5) / 5)  # an error at distance d weighs 2 − exp(_FALLOFF · d)
_CAP = 100  # pixels; an error beyond weighs 2 − 2^(−100 / 5) = 2 − 1e-6, taken as 2
_FAR = 4  # pixels along an axis to the farthest foreground that a pixel read by the blur can be nearest to: 4² ≤ 2 · 3²
_AXIS = range(-_FAR, _FAR + 1)
_STEPS = [
    (right**2 + down**2, right, down) for right in _AXIS for down in _AXIS if 0 < right**2 + down**2 <= 2 * _REACH**2
]
"""(squared distance, steps right, steps down); among equal distances, those that SciPy's transform prefers come first."""


def squared_distances(foreground: Mask) -> NDArray[np.float32]:
    """(H, W) squared distance of each pixel to the nearest foreground pixel, of which there must be one: whole numbers, exact below 700²
    (OpenCV's distances are single precision)."""
    background = np.logical_not(foreground)
    if opencv is None:
        distances = distance_transform_edt(background).astype(np.float32)
    else:
        distances = opencv.distanceTransform(background.view(np.uint8), opencv.DIST_L2, opencv.DIST_MASK_PRECISE)
    return np.rint(np.square(distances, out=distances), out=distances)


def weighted_f(image: SaliencyMap, *, beta2: float = 1.0) -> float:
    """(1 + β²) P R / (β² P + R) of a precision and a recall that weigh errors by position and blur them inside.

    An error outside counts 1 to 2 times, by its distance to the foreground. An error inside is at most the Gaussian
    mean of the errors around it, in which a background pixel takes the error of the nearest foreground pixel. Only the part of the
    image near the foreground is worked on.

    Args:
        image: prediction and ground truth; ignored pixels have no error of their own, and count as background in the blur.
        beta2: β²; 1 in the paper, 0.3 in several releases.

    Returns:
        The measure; 0 for an empty mask.
    """
    rows, columns = np.flatnonzero(image.foreground.any(axis=1)), np.flatnonzero(image.foreground.any(axis=0))
    if rows.size == 0:
        return 0.0
    near = tuple(slice(max(int(at[0]) - _CAP, 0), int(at[-1]) + _CAP + 1) for at in (rows, columns))
    probability, foreground = image.probability[near], image.foreground[near]
    squared = squared_distances(foreground)
    lost = _lost(probability, foreground, squared)
    # Outside: Σ p (2 − falloff) = 2 Σ p − Σ p falloff. The foreground lies at distance 0, where the falloff is 1.
    valid = None if image.valid is None else image.valid[near]
    discount = _discount(probability, valid, squared)
    false_positives = 2.0 * image.outside_sum + image.inside_sum - discount

    positives = image.inside.size
    recall = 1.0 - lost / positives
    precision = (positives - lost) / (positives - lost + false_positives + EPS)
    return (1 + beta2) * recall * precision / (recall + beta2 * precision + EPS)


def _lost(probability: Floats, foreground: Mask, squared: NDArray[np.float32]) -> float:
    """Σ over the foreground of min(error, blurred error); all arguments (H, W), near the foreground."""
    height, width = foreground.shape
    # Beyond the image there is no error. A foreground pixel's is 1 − p, one near it takes that of the nearest.
    error = np.zeros((height + 2 * _REACH, width + 2 * _REACH), dtype=np.float32)
    inner = error[_REACH:-_REACH, _REACH:-_REACH]
    np.subtract(1.0, probability, out=inner, casting="same_kind")
    at, nearest = _nearest(foreground, squared)
    inner[at] = inner[nearest]
    lost = 0.0
    for top in range(0, height, _ROWS):
        near = error[top : top + _ROWS + 2 * _REACH]
        blurred = np.minimum(_blur(_blur(near).T).T, near[_REACH:-_REACH, _REACH:-_REACH])
        lost += float((blurred * foreground[top : top + _ROWS]).sum(axis=0).sum(dtype=np.float64))
    return lost


Positions = tuple[NDArray[np.intp], NDArray[np.intp]]  # rows and columns


def _nearest(foreground: Mask, squared: NDArray[np.float32]) -> tuple[Positions, Positions]:
    """The background that the blur can read, and the foreground pixel that is nearest to each of it.

    Of several that are equally near, it is the leftmost, and of these the upper one, as in SciPy's transform.
    """
    known = np.pad(foreground, _FAR)
    rows, columns = np.nonzero((squared > 0) & (squared <= 2 * _REACH**2))
    apart, down, right = squared[rows, columns], np.zeros_like(rows), np.zeros_like(columns)
    for distance, beside, below in _STEPS:
        there = np.flatnonzero(apart == distance)
        hit = there[known[rows[there] + below + _FAR, columns[there] + beside + _FAR]]
        down[hit], right[hit], apart[hit] = below, beside, 0
    return (rows, columns), (rows + down, columns + right)


def _blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n + 6, m) to (n, m): one factor of the Gaussian, along the first axis; single precision costs 1e-7 at most."""
    count = len(values) - 2 * _REACH
    out = values[_REACH : _REACH + count] * _TAPS[0]
    for k in range(1, _REACH + 1):
        pair = values[_REACH - k : _REACH - k + count] + values[_REACH + k : _REACH + k + count]
        pair *= _TAPS[k]
        out += pair
    return out


def _discount(probability: Floats, valid: Mask | None, squared: NDArray[np.float32]) -> float:
    """Σ of p · exp(ln ½ / 5 · distance); all arguments (H, W)."""
    total = 0.0
    for top in range(0, len(probability), _ROWS):
        rows = slice(top, top + _ROWS)
        weight = np.sqrt(squared[rows])
        weight *= _FALLOFF
        np.exp(weight, out=weight)
        if valid is not None:
            weight *= valid[rows]
        total += float(np.vdot(weight.astype(np.float64), probability[rows]))
    return total
