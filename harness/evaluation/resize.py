"""Resizing of scores and masks in NumPy, the same wherever sizes are compared."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Label = TypeVar("Label", bound=np.integer)


def resize_bilinear(scores: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear, half-pixel centres, no antialiasing: ``torch.nn.functional.interpolate(…, align_corners=False)``.

    Args:
        scores: (..., h, w).
        size: (H, W).

    Returns:
        (..., H, W) float32.
    """
    scores = np.asarray(scores, dtype=np.float32)
    height, width = scores.shape[-2:]
    if (height, width) == size:
        return scores
    top, bottom, dy = _taps(height, size[0])
    left, right, dx = _taps(width, size[1])
    rows = scores[..., top, :] * (1 - dy)[:, None]
    rows += scores[..., bottom, :] * dy[:, None]
    out = np.take(rows, left, axis=-1) * (1 - dx)
    out += np.take(rows, right, axis=-1) * dx
    # Rounding may leave the range of the values: 1 must not become 1.0000001.
    return np.clip(out, scores.min(), scores.max(), out=out)


def _taps(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two source positions of every target position, and the weight of the second."""
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    first = np.minimum(position.astype(np.intp), source - 1)
    return first, np.minimum(first + 1, source - 1), (position - first).astype(np.float32)


def resize_nearest(labels: NDArray[Label], size: tuple[int, int]) -> NDArray[Label]:
    """Nearest by pixel centres, as Pillow's NEAREST: labels stay labels.

    Args:
        labels: (h, w).
        size: (H, W).
    """
    height, width = labels.shape
    if (height, width) == size:
        return labels
    rows = ((np.arange(size[0]) + 0.5) * (height / size[0])).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * (width / size[1])).astype(np.intp)
    return np.ascontiguousarray(labels[rows[:, None], columns])
