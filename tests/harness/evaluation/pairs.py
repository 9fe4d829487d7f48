"""Predictions with masks, from the ordinary to the degenerate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]
"""name, prediction (H, W) of levels 0..255, mask (H, W) of {0, 1}."""


def random_pairs(count: int, *, seed: int = 0) -> Iterator[Pair]:
    """``count`` pairs of every kind in turn, of odd sizes up to 97."""
    rng = np.random.default_rng(seed)
    kinds = (_soft, _binary, _noise, _off, _one_pixel, _empty, _full, _silent, _certain, _dense)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        height, width = (int(side) for side in rng.integers(12, 98, size=2))
        prediction, mask = kind(rng, height, width)
        yield f"{index}:{kind.__name__[1:]} {height}x{width}", prediction, mask


def blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A mask of a few smooth objects, neither empty nor full, clear of the last row and column's centroid."""
    field = gaussian_filter(rng.standard_normal((height, width)), max(2.0, min(height, width) / 10))
    return (field > np.quantile(field, rng.uniform(0.5, 0.95))).astype(np.uint8)


def soft(rng: np.random.Generator, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A blurred, noisy, shifted version of the mask."""
    shifted = np.roll(mask, tuple(rng.integers(-3, 4, size=2)), axis=(0, 1)).astype(float)
    noisy = gaussian_filter(shifted, rng.uniform(0.5, 4)) * 200 + rng.uniform(0, 40, mask.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _soft(rng, height, width):
    mask = blob(rng, height, width)
    return soft(rng, mask), mask


def _binary(rng, height, width):
    mask = blob(rng, height, width)
    return (soft(rng, mask) > 120).astype(np.uint8) * 255, mask


def _noise(rng, height, width):
    return rng.integers(0, 256, (height, width), dtype=np.uint8), blob(rng, height, width)


def _off(rng, height, width):
    mask = blob(rng, height, width)
    return 255 - soft(rng, mask), mask


def _one_pixel(rng, height, width):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[rng.integers(0, height - 1), rng.integers(0, width - 1)] = 1
    return soft(rng, mask), mask


def _empty(rng, height, width):
    return rng.integers(0, 256, (height, width), dtype=np.uint8), np.zeros((height, width), dtype=np.uint8)


def _full(rng, height, width):
    return rng.integers(0, 256, (height, width), dtype=np.uint8), np.ones((height, width), dtype=np.uint8)


def _silent(rng, height, width):
    return np.zeros((height, width), dtype=np.uint8), blob(rng, height, width)


def _certain(rng, height, width):
    return np.full((height, width), 255, dtype=np.uint8), blob(rng, height, width)


def _dense(rng, height, width):
    return rng.integers(0, 256, (height, width), dtype=np.uint8), (rng.random((height, width)) < 0.4).astype(np.uint8)
