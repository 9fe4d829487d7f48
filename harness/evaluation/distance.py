"""Exact distances to the foreground: by OpenCV where it is installed, by SciPy where it is not; the same numbers."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt, find_objects, label

try:  # here and not at the first image: two threads that import it at once meet half of it
    import cv2
except ImportError:  # not installed, or without the libraries of a screen that its wheel may ask for
    opencv: ModuleType | None = None
else:
    cv2.setNumThreads(1)  # an evaluation already gives each core an image
    opencv = cv2

_CELL = 32  # pixels
Mask = NDArray[np.bool_]


def squared_distances(foreground: Mask, *, reach: int) -> NDArray[np.float32]:
    """(H, W) squared distance of each pixel to the nearest of the foreground, which must hold a pixel.

    Whole numbers, exact where the distance is at most ``reach`` (and below 700), larger than its square elsewhere.
    A transform costs its area, so it runs on boxes around what lies together. A pixel within reach of the foreground
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
    """Boxes around what lies within ``reach`` pixels of each group of objects; groups are some cells apart."""
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
