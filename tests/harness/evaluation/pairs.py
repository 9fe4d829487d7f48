"""Predictions with masks, from the ordinary to the degenerate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Pair = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]
"""name, prediction (H, W) of levels 0..255, mask (H, W) of {0, 1}."""


def blob(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A mask of a few smooth objects, neither empty nor full, clear of the last row and column's centroid."""
    field = gaussian_filter(rng.standard_normal((height, width)), max(2.0, min(height, width) / 10))
    return (field > np.quantile(field, rng.uniform(0.5, 0.95))).astype(np.uint8)


def soft(rng: np.random.Generator, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A blurred, noisy, shifted version of the mask."""
    shifted = np.roll(mask, tuple(rng.integers(-3, 4, size=2)), axis=(0, 1)).astype(float)
    noisy = gaussian_filter(shifted, rng.uniform(0.5, 4)) * 200 + rng.uniform(0, 40, mask.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return rng.integers(0, 256, mask.shape, dtype=np.uint8)


def _one_pixel(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[rng.integers(0, height - 1), rng.integers(0, width - 1)] = 1
    return mask


KINDS: dict[str, tuple[Callable[..., NDArray[np.uint8]], Callable[..., NDArray[np.uint8]]]] = {
    "soft": (blob, soft),
    "binary": (blob, lambda rng, mask: (soft(rng, mask) > 120).astype(np.uint8) * 255),
    "noise": (blob, _noise),
    "off": (blob, lambda rng, mask: 255 - soft(rng, mask)),
    "one pixel": (_one_pixel, soft),
    "empty": (lambda rng, *size: np.zeros(size, dtype=np.uint8), _noise),
    "full": (lambda rng, *size: np.ones(size, dtype=np.uint8), _noise),
    "silent": (blob, lambda rng, mask: np.zeros_like(mask)),
    "certain": (blob, lambda rng, mask: np.full_like(mask, 255)),
    "dense": (lambda rng, *size: (rng.random(size) < 0.4).astype(np.uint8), _noise),
}
"""Of each kind: how a mask is drawn, and a prediction of it."""


def random_pairs(count: int, *, seed: int = 0) -> Iterator[Pair]:
    """``count`` pairs of every kind in turn, of odd sizes up to 97."""
    rng = np.random.default_rng(seed)
    for index, kind in zip(range(count), itertools.cycle(KINDS), strict=False):
        height, width = (int(side) for side in rng.integers(12, 98, size=2))
        draw, predict = KINDS[kind]
        mask = draw(rng, height, width)
        yield f"{index}:{kind} {height}x{width}", predict(rng, mask), mask
