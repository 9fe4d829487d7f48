"""Pictures whose masks a tiny network can find within a few epochs: objects differ from their background in colour."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.uint8]
Shape = tuple[int, int]

# (height, width) factors of the sample's side: odd sizes, portrait, landscape and square.
_ASPECTS = ((1.0, 1.0), (0.8, 1.1), (1.15, 0.9), (0.77, 1.03), (1.0, 1.31), (0.93, 0.71))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """image (H, W, 3) uint8; classes (H, W) uint8 class indices."""

    image: Array
    classes: Array


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of a benchmark's scenes.

    Args:
        background: RGB of the background.
        foreground: RGB of class 1, 2, …
        outlines: ``blobs`` or ``lines`` (roads).
    """

    background: tuple[int, int, int]
    foreground: tuple[tuple[int, int, int], ...]
    outlines: str = "blobs"


def wheel(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` colours that differ in hue."""
    colours = (colorsys.hsv_to_rgb(index / count, 0.8, 0.6 + 0.4 * (index % 2)) for index in range(count))
    return tuple((int(255 * red), int(255 * green), int(255 * blue)) for red, green, blue in colours)


def shape_of(index: int, side: int, *, square: bool) -> Shape:
    """(height, width) of the sample's ``index``-th image."""
    if square:
        return side, side
    height, width = _ASPECTS[index % len(_ASPECTS)]
    return round(side * height) | 1 if index % 2 else round(side * height), round(side * width)


def draw_scene(generator: np.random.Generator, shape: Shape, palette: Palette) -> Scene:
    """One scene: smooth noise over the background, one to three coloured objects, each of one class."""
    height, width = shape
    classes = np.zeros(shape, dtype=np.uint8)
    for _ in range(int(generator.integers(1, 4))):
        outline = _line(generator, shape) if palette.outlines == "lines" else _blob(generator, shape)
        classes[outline] = generator.integers(1, len(palette.foreground) + 1)
    colours = np.array([palette.background, *palette.foreground], dtype=np.float64)
    colours += generator.normal(0, 8, size=(1, 3))
    coarse = generator.normal(0, 1, size=(-(-height // 8), -(-width // 8), 3))
    texture = ndimage.zoom(coarse, (8, 8, 1), order=1)[:height, :width] * 14
    image = colours[classes] + texture + generator.normal(0, 6, size=(height, width, 3))
    return Scene(image=np.clip(image, 0, 254).astype(np.uint8), classes=classes)


def _grid(shape: Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return rows / shape[0], columns / shape[1]


def _blob(generator: np.random.Generator, shape: Shape) -> NDArray[np.bool_]:
    rows, columns = _grid(shape)
    row, column = generator.uniform(0.2, 0.8, size=2)
    tall, wide = generator.uniform(0.12, 0.3, size=2)
    angle = np.arctan2(rows - row, columns - column)
    ripple = 1 + 0.15 * np.sin(3 * angle + generator.uniform(0, 6))
    return ((rows - row) / tall) ** 2 + ((columns - column) / wide) ** 2 <= ripple


def _line(generator: np.random.Generator, shape: Shape) -> NDArray[np.bool_]:
    rows, columns = _grid(shape)
    angle = generator.uniform(0, np.pi)
    offset = generator.uniform(0.25, 0.75, size=2)
    distance = (rows - offset[0]) * np.cos(angle) + (columns - offset[1]) * np.sin(angle)
    return np.abs(distance + 0.03 * np.sin(6 * columns)) <= 0.035
