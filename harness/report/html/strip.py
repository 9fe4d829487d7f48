"""Kept masks as tiles over their photograph: photograph, truth, then rows with their errors coloured.

A tile is a small transparent picture of the mask; the photograph lies behind all tiles of its image, once in the page. Where a
photograph may not be passed on, or is not at hand, the tiles lie on a dark ground.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.comparison.cells import GENERATED, Column
from harness.comparison.rows import Row
from harness.registry import BENCHMARKS, is_own
from harness.report.figures.masks import COLOURS, chosen, kept, kinds, score_of
from harness.report.figures.masks import Shown as Kept
from harness.report.figures.material import Material
from harness.report.html.headline import Name
from harness.system.errors import UsageError

Photographs = Literal["redistributable", "all", "none"]

AT_FIRST = 6
"""Tiles of an image before somebody asks for the rest."""
LARGEST = 256
"""Pixels of a tile."""
_PALETTE = (COLOURS[0], (255, 255, 255), *COLOURS[2:])
_OPACITY = bytes((0, 165, 235, 235, 235, 160))
"""Of each of `kinds`."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The picture of one mask: what it shows, its source as data, the score of this image, words for who does not see it, and its
    row, for filters."""

    name: Name
    source: str
    score: str
    spoken: str
    method: str = ""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One test image: best, median or worst; its photograph as data, empty where it is not shown; tiles of the truth, then of the rows."""

    word: str
    stem: str
    photograph: str
    tiles: Sequence[Tile]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The images of one benchmark, how they were chosen, and why there are no photographs, where there are none."""

    benchmark: str
    title: str
    shots: Sequence[Shot]
    about: str
    withheld: str


def strips(
    material: Material, names: Mapping[Row, Name], *, first: Sequence[Row], photographs: Photographs
) -> list[Strip]:
    """One a benchmark whose runs kept masks, those with photographs first; ``first``: rows that are shown before others."""
    made = []
    for benchmark, column in material.grid.first_columns.items():
        if shown := kept(material, benchmark):
            shown.sort(key=lambda run: first.index(run.row) if run.row in first else len(first))
            made.append(_strip(material, column, shown, names, photographs=photographs))
    return sorted(made, key=lambda strip: not any(shot.photograph for shot in strip.shots))


def why_withheld(column: Column, photographs: Photographs) -> str:
    """Why the photographs of a benchmark are left out; empty where they are not."""
    if photographs == "none":
        return "Photographs were not asked for."
    if photographs == "all" or column.note.startswith(GENERATED):
        return ""
    try:
        licence = "" if is_own(column.benchmark) else BENCHMARKS.get(column.benchmark).redistribution
    except UsageError:  # of a plug-in that is not here
        licence = ""
    if licence:
        return ""
    return f"The photographs of {column.benchmark_title} may not be passed on: masks alone."


def _strip(
    material: Material, column: Column, shown: Sequence[Kept], names: Mapping[Row, Name], *, photographs: Photographs
) -> Strip:
    base, common, images = chosen(material, column, shown)
    withheld, shots = why_withheld(column, photographs), []
    for word, image in images.items():
        picture = None if withheld else material.pictures(base.record, *image)
        truth = base.masks[image].truth
        tiles = [Tile(name=Name(text="truth", hint=""), source=_tile(truth, truth), score="", spoken="the true mask")]
        for run in shown:
            if (mask := run.masks.get(image)) is not None:
                value = score_of(material, run.record, image, column.metric)
                score = "" if value is None else f"{100 * value:.1f}"
                tiles.append(
                    Tile(
                        name=names[run.row], source=_tile(mask.predicted, mask.truth), score=score, method=run.row.label,
                        spoken=f"mask of {names[run.row].text}" + (f", {column.measure.title} {score} %" if score else ""),
                    )
                )  # fmt: skip
        shots.append(
            Shot(word=word, stem=image[1], photograph="" if picture is None else _photograph(picture), tiles=tiles)
        )
    about = (
        f"Seed {base.record.run.seed}; best, median and worst by {names[base.row].text} of the {common} test images that every run"
        f" keeps, chosen by a hash of their names. Numbers: the image's {column.measure.title} in %."
    )
    if not withheld and not any(shot.photograph for shot in shots):
        withheld = "The photographs are not at hand here (--data DIR): masks alone."
    return Strip(benchmark=column.benchmark, title=column.benchmark_title, shots=shots, about=about, withheld=withheld)


def _tile(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> str:
    """A palette of six colours, transparent where nothing is."""
    from PIL import Image

    step = max(1, -(-max(truth.shape) // LARGEST))
    picture = Image.fromarray(kinds(predicted, truth)[::step, ::step])
    picture.putpalette([value for colour in _PALETTE for value in colour])
    return _data(picture, "png", transparency=_OPACITY, bits=3)


def _photograph(picture: Any) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _data(image, "webp", quality=78, method=4)


def _data(image: Any, form: str, **how: Any) -> str:
    out = io.BytesIO()
    image.save(out, format=form, **how)
    return f"data:image/{form};base64,{base64.b64encode(out.getvalue()).decode()}"
