"""Weighted F-measure of one image (Margolin et al., "How to Evaluate Foreground Maps?", CVPR 2014).

Distances to the foreground are exact, by OpenCV where it is installed and else by SciPy, with the same numbers.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt, find_objects, label

from harness.evaluation.saliency import EPS, Floats, Mask, SaliencyMap

try:  # here and not at the first image: two threads that import it at once meet half of it
    import cv2
except ImportError:  # not installed, or without the libraries of a screen that its wheel may ask for
    opencv: ModuleType | None = None
else:
    cv2.setNumThreads(1)  # an evaluation already gives each core an image
    opencv = cv2

_CELL = 32  # pixels


def squared_distances(foreground: Mask, *, reach: int) -> NDArray[np.float32]:
    """(H, W) squared distance of each pixel to the nearest of the foreground, which must hold a pixel.

    Whole numbers, exact where the distance is at most ``reach`` (and below 700), larger than its square elsewhere.
    A transform costs its area, so it runs on boxes around what is close together. A pixel within reach of the foreground
    lies in a box with the foreground pixel nearest to it, and where boxes overlap the smaller distance is right.
    """
    transform = by_scipy if opencv is None else functools.partial(_by_opencv, opencv=opencv)
    boxes = _boxes(foreground, reach=reach)
    if sum(foreground[box].size for box in boxes) > 0.8 * foreground.size:
        return transform(foreground)
    squared = np.full(foreground.shape, np.inf, dtype=np.float32)
    for box in boxes:
        np.minimum(squared[box], transform(foreground[box]), out=squared[box])
    return squared


def _boxes(foreground: Mask, *, reach: int) -> list[tuple[slice, slice]]:
    """Boxes around what is within ``reach`` pixels of each group of objects; groups are some cells apart."""
    height, width = foreground.shape
    rows = np.stack([foreground[top : top + _CELL].any(axis=0) for top in range(0, height, _CELL)])
    cells = np.logical_or.reduceat(rows, np.arange(0, width, _CELL), axis=1)
    groups, _ = label(binary_dilation(cells, iterations=2), structure=np.ones((3, 3)))
    boxes = find_objects(np.where(cells, groups, 0))  # None for a label that is nowhere
    occupied = [box for box in boxes if box is not None]
    return [(_within(down, reach, height), _within(right, reach, width)) for down, right in occupied]


def _within(cells: slice, reach: int, size: int) -> slice:
    return slice(max(cells.start * _CELL - reach, 0), min(cells.stop * _CELL + reach, size))


def by_scipy(foreground: Mask) -> NDArray[np.float32]:
    """`squared_distances` by SciPy's transform.

    SciPy walks down columns; rows that are a power of two apart share their cache lines, and it takes twice as long.
    So rows are padded to an odd multiple of 8.
    """
    height, width = foreground.shape
    background = np.ones((height, width + (8 - width) % 16), dtype=np.bool_)
    np.logical_not(foreground, out=background[:, :width])
    indices: NDArray[np.int32] = distance_transform_edt(background, return_distances=False, return_indices=True)
    squared = np.square(indices[0, :, :width] - np.arange(height, dtype=np.int32)[:, None], dtype=np.float32)
    squared += np.square(indices[1, :, :width] - np.arange(width, dtype=np.int32), dtype=np.float32)
    return squared


def _by_opencv(foreground: Mask, opencv: ModuleType) -> NDArray[np.float32]:
    """`squared_distances` by OpenCV, whose distances are single precision (relative error 5e-7); squares are whole numbers."""
    background = np.logical_not(foreground).view(np.uint8)
    squared: NDArray[np.float32] = opencv.distanceTransform(background, opencv.DIST_L2, opencv.DIST_MASK_PRECISE)
    np.square(squared, out=squared)
    return np.rint(squared, out=squared)


_SIGMA, _REACH = 5.0, 3  # a 7×7 Gaussian
_CAP = 100  # pixels; an error beyond weighs 2 − 2^(−100 / 5) = 2 − 1e-6, taken as 2
_TRIFLE = 5e-7  # of false positives, by the foreground's area
_FALLOFF = np.float32(math.log(0.5) / 5)  # an error at distance d weighs 2 − exp(_FALLOFF · d)
_TAPS = np.exp(-(np.arange(_REACH + 1) ** 2) / (2 * _SIGMA**2))
_TAPS = (_TAPS / (2 * _TAPS.sum() - 1)).astype(
    np.float32
)  # the 7×7 kernel is the outer product of this one with itself
_FAR = 4  # pixels along an axis to the farthest foreground that a pixel read by the blur can be nearest to: 4² ≤ 2 · 3²
_STEPS = {  # squared distance: steps right and down, those that SciPy's transform prefers first
    apart: [
        (right, down)
        for right in range(-_FAR, _FAR + 1)
        for down in range(-_FAR, _FAR + 1)
        if right**2 + down**2 == apart
    ]
    for apart in sorted({a * a + b * b for a in range(_FAR + 1) for b in range(a + 1)})
    if 0 < apart <= 2 * _REACH**2
}
_ROWS = 32  # rows a step: what a step makes stays in the core's cache


def weighted_f(image: SaliencyMap, *, beta2: float = 1.0) -> float:
    """(1 + β²) P R / (β² P + R) of a precision and a recall that weigh errors by position and blur them inside.

    An error outside counts 1 to 2 times, by its distance to the foreground. An error inside is at most the Gaussian
    mean of the errors around it, in which a background pixel takes the error of the nearest foreground pixel. The blur
    reads what is within ``_REACH`` of the foreground. Far from it errors weigh almost 2. They are taken to weigh 2 from
    the distance on at which that changes the result by less than 3e-7. So only the part of the image near the
    foreground is worked on.

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
    outside = image.outside_sum
    margin = _margin(outside / image.inside.size)
    near = (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + margin + 1),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + margin + 1),
    )
    squared = squared_distances(foreground[near], reach=max(margin, _FAR))
    lost = _lost(image.probability[near], foreground[near], squared)
    # Outside: Σ p (2 − falloff) = 2 Σ p − Σ p falloff. The foreground lies at distance 0, where the falloff is 1.
    valid = None if image.valid is None else image.valid[near]
    false_positives = 2.0 * outside + image.inside_sum - _discount(image.probability[near], valid, squared)

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


def _lost(probability: Floats, foreground: Mask, squared: NDArray[np.float32]) -> float:
    """Σ over the foreground of min(error, blurred error).

    Args:
        probability: (H, W) of the part near the foreground, which reaches ``_REACH`` beyond it or to the image's border.
        foreground: likewise.
        squared: likewise, the squared distance to the foreground.
    """
    height, width = foreground.shape
    # Beyond the image there is no error. A foreground pixel's is 1 − p, one near it takes that of the nearest.
    error = np.zeros((height + 2 * _REACH, width + 2 * _REACH), dtype=np.float32)
    inner = error[_REACH:-_REACH, _REACH:-_REACH]
    np.subtract(1.0, probability, out=inner, casting="same_kind")
    at, nearest = _nearest(foreground, squared)
    inner[at] = inner[nearest]
    lost = 0.0
    for top in range(0, height, _ROWS):
        rows = foreground[top : top + _ROWS]
        columns = np.flatnonzero(rows.any(axis=0))
        if columns.size == 0:
            continue
        left, right = int(columns[0]), int(columns[-1]) + 1
        near = error[top : top + len(rows) + 2 * _REACH, left : right + 2 * _REACH]
        blurred = _blur(_blur(near).T).T
        np.minimum(blurred, near[_REACH:-_REACH, _REACH:-_REACH], out=blurred)
        blurred *= rows[:, left:right]
        lost += float(blurred.sum(axis=0).sum(dtype=np.float64))
    return lost


Positions = tuple[NDArray[np.intp], NDArray[np.intp]]  # rows and columns


def _nearest(foreground: Mask, squared: NDArray[np.float32]) -> tuple[Positions, Positions]:
    """The background that the blur can read, and the foreground pixel that is nearest to each of it.

    Of several that are as near, it is the leftmost, and of these the upper one, as in SciPy's transform.
    """
    height, width = foreground.shape
    wide = width + 2 * _FAR
    padded = np.zeros((height + 2 * _FAR, wide), dtype=np.bool_)
    padded[_FAR:-_FAR, _FAR:-_FAR] = foreground
    known, near = padded.ravel(), np.flatnonzero((squared > 0) & (squared <= 2 * _REACH**2))
    distance = squared.ravel()[near]
    near += near // width * (2 * _FAR) + _FAR * wide + _FAR  # as indices into ``known``
    at, nearest = [near[:0]], [near[:0]]
    for apart, steps in _STEPS.items():
        left = near[distance == apart]
        for right, down in steps:
            candidate = left + (down * wide + right)
            hit = known[candidate]
            at.append(left[hit])
            nearest.append(candidate[hit])
            left = left[~hit]
    return _rows_and_columns(np.concatenate(at), wide), _rows_and_columns(np.concatenate(nearest), wide)


def _rows_and_columns(flat: NDArray[np.intp], wide: int) -> Positions:
    rows, columns = np.divmod(flat, wide)
    return rows - _FAR, columns - _FAR


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
