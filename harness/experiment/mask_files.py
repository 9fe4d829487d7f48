"""Masks, contours and scores as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.system.files import replace_atomically

Array = NDArray[np.uint8]
Floats = NDArray[np.float32]


def as_image(mask: Array, *, binary: bool) -> Image.Image:
    """0 and 255, or class indices with the colours of `palette`."""
    if binary:
        return Image.fromarray(mask * np.uint8(255))
    indexed = Image.fromarray(mask)
    indexed.putpalette(palette().reshape(-1).tolist())
    return indexed


def save_image(path: Path, image: Image.Image) -> None:
    replace_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def save_array(path: Path, array: Floats) -> None:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array)

    replace_atomically(path, save)


def palette() -> Array:
    """(256, 3) RGB: the colours of PASCAL VOC's masks, bits of the index spread over the channels."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for shift in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * shift + channel)) & 1) << (7 - shift)).astype(np.uint8)
    return colours


def overlay(pixels: Array, mask: Array) -> Array:
    """The image with the contours of every class but the background, (H, W, 3); one pixel wide on 300."""
    from scipy.ndimage import binary_erosion

    drawn = pixels.copy()
    width = max(1, round(min(mask.shape) / 300))
    colours = palette()
    for index in np.unique(mask[mask > 0]):
        region = mask == index
        drawn[region & ~binary_erosion(region, iterations=width)] = colours[index]
    return drawn
