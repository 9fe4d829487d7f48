"""Kept masks side by side: image, truth, and every row's prediction with its errors coloured; or one photograph of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.archive.files import is_of_record
from harness.archive.masks import MASKS, KeptMask, read_masks
from harness.archive.schema import Record
from harness.comparison.cells import Column
from harness.comparison.rows import Row
from harness.registry import BENCHMARKS
from harness.report.figures.material import Drawing, Material, on_each_benchmark
from harness.report.figures.style import PAGE, new_figure
from harness.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Picture = NDArray[np.uint8]
Image = tuple[str, str]
"""split, stem"""

COLOURS = ((0, 0, 0), (235, 235, 235), (44, 107, 214), (255, 140, 0), (170, 0, 120), (110, 110, 110))
"""Of each of `kinds`. They differ in brightness too."""

ACROSS = 8
LARGEST = 256
"""Pixels of a tile; larger ones are thinned, so that a page stays small."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The masks of one row by one run."""

    row: Row
    record: Record
    masks: dict[Image, KeptMask]


def masks(material: Material) -> list[Drawing]:
    """Image, truth, and every row's prediction with its errors coloured."""

    def draw(column: Column) -> Drawing | None:
        shown = kept(material, column.benchmark)
        return _side_by_side(material, column, shown) if shown else None

    what = "record" if material.seed is None else f"run of seed {material.seed}"
    lacking = (
        f"no {what} has masks beside it (runs keep them since `keep_masks` is a field of the protocol;"
        " sam-peft predict writes those of older runs)"
    )
    return on_each_benchmark(material, draw, lacking=lacking)


def strip(material: Material) -> list[Drawing]:
    """One photograph: image, truth, and what the first row of every method marks on it, the fewest trained parameters first."""

    def draw(column: Column) -> Drawing | None:
        first_rows = {run.row.method: run for run in reversed(kept(material, column.benchmark))}
        shown = sorted(first_rows.values(), key=lambda run: run.record.parameters.get("encoder", 0))
        return _on_the_photograph(material, column, shown[: ACROSS - 2]) if shown else None

    lacking = "no image is at hand of which several methods kept masks (give --data)"
    return on_each_benchmark(material, draw, lacking=lacking)


def kept(material: Material, benchmark: str) -> list[Shown]:
    """Every row's masks, of the seed that was asked for, else of the most usual one that has any."""
    seeds = _seeds(material, benchmark) if material.seed is None else [material.seed]
    return next(filter(None, (_of_seed(material, benchmark, seed) for seed in seeds)), [])


def _seeds(material: Material, benchmark: str) -> list[int]:
    """Those that most rows have masks of first; of these, those whose scores are nearest to the rows' medians, as a run that
    collapsed is no example."""
    apart: dict[int, list[float]] = {}
    for row in material.rows():
        cell = material.grid.cells[row, material.grid.first_columns[benchmark]]
        for record in row.finished(benchmark):
            if _path(material, record):
                value = cell.values.get(record.run.seed)
                distance = math.inf if value is None else abs(value - median(cell.by_seed))
                apart.setdefault(record.run.seed, []).append(distance)
    return sorted(apart, key=lambda seed: (-len(apart[seed]), sum(apart[seed]), seed))


def _path(material: Material, record: Record) -> Path | None:
    path = material.archive.store.masks_path(record.key)
    return path if path.is_file() and is_of_record(MASKS, record.beside) else None


def _of_seed(material: Material, benchmark: str, seed: int) -> list[Shown]:
    shown = []
    for row in material.rows():
        for record in row.finished(benchmark):
            if record.run.seed != seed or (path := _path(material, record)) is None:
                continue
            try:
                of_run = read_masks(path, expected=record.beside.get(MASKS, ""))
            except ValueError:
                continue
            by_image = {(mask.split, mask.stem): mask for mask in of_run}
            shown.append(Shown(row=row, record=record, masks=by_image))
    return shown


def best_median_worst(scores: dict[Image, float], *, lower_is_better: bool = False) -> dict[str, Image]:
    """Word -> image; of fewer than three images as many as there are."""
    ranked = sorted(scores, key=lambda image: (scores[image] if lower_is_better else -scores[image], image))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}


def kinds(predicted: Picture, truth: Picture) -> Picture:
    """(H, W): foreground that was 1 found, 2 missed, 3 invented, 4 taken for another class; 5 does not count; 0 nothing."""
    right, there = predicted == truth, truth > 0
    cases = [truth == 255, there & right, there & (predicted == 0), there, predicted > 0]
    return np.select(cases, [5, 1, 2, 4, 3]).astype(np.uint8)


def painted(predicted: Picture, truth: Picture) -> Picture:
    """(H, W, 3): what a prediction found, missed and invented."""
    return np.array(COLOURS, np.uint8)[kinds(predicted, truth)]


def chosen(material: Material, column: Column, shown: Sequence[Shown]) -> tuple[Shown, int, dict[str, Image]]:
    """The run that images are chosen by (the baseline's, else the first), how many images all runs kept, and word -> image."""
    base, common, ranked = _ranked(material, column, shown)
    return base, len(common), ranked or best_median_worst(dict.fromkeys(common, 0.0))


def _ranked(
    material: Material, column: Column, shown: Sequence[Shown], *, alone: bool = True
) -> tuple[Shown, list[Image], dict[str, Image]]:
    """The same with the images that all runs kept; where there are none, and ``alone``, with those of the run itself."""
    base = next((run for run in shown if run.row is material.baseline), shown[0])
    common = sorted(set.intersection(*(set(run.masks) for run in shown)) or (base.masks if alone else ()))
    scores = {image: score_of(material, base.record, image, column.metric) for image in common}
    known = {image: value for image, value in scores.items() if value is not None}
    return base, common, best_median_worst(known, lower_is_better=column.measure.lower_is_better)


def _side_by_side(material: Material, column: Column, shown: Sequence[Shown]) -> Drawing:
    base, _, images = chosen(material, column, shown)
    pictures = {image: material.pictures(base.record, *image) for image in images.values()}
    with_picture = any(picture is not None for picture in pictures.values())
    tiles = len(shown) + 1 + with_picture
    columns = min(ACROSS, tiles)
    lines = -(-tiles // columns)
    side = (PAGE - 0.3) / max(columns, 4)
    figure = new_figure(0.3 + side * max(columns, 4), len(images) * lines * (side + 0.24) + 0.2)
    axes = figure.subplots(len(images) * lines, max(columns, 4), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (word, image) in enumerate(images.items()):
        places = list(axes[number * lines : (number + 1) * lines].flat)
        if columns < 4:
            places = list(axes[number])
        truth = base.masks[image].truth
        head = [(pictures[image], "image")] if with_picture else []
        for ax, (picture, title) in zip(places, [*head, (_plain(truth), "truth")], strict=False):
            if picture is not None:
                _tile(ax, picture, title)
        places[0].text(
            -0.08, 0.5, word, transform=places[0].transAxes, rotation=90, ha="center", va="center", fontsize=7
        )
        for ax, run in zip(places[len(head) + 1 :], shown, strict=False):
            if (mask := run.masks.get(image)) is None:
                continue
            value = score_of(material, run.record, image, column.metric)
            said = "" if value is None else f"\n{100 * value:.1f}"
            _tile(ax, painted(mask.predicted, mask.truth), material.short(run.row, most=18) + said)
    stems = ", ".join(f"{word}: {stem}" for word, (_, stem) in images.items())
    caption = (
        f"Masks on {column.benchmark_title} by the best checkpoint of seed {base.record.run.seed}, with the image's"
        f" {column.measure.title} (%) under that metric's own conventions. Light: found; blue: missed; orange:"
        " invented; purple: another class; grey: does not count. Of the test images that every run keeps (chosen by a hash of"
        f" their names), the best, median and worst by {base.row.label} ({stems}). {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


def _on_the_photograph(material: Material, column: Column, shown: Sequence[Shown]) -> Drawing | None:
    base, _, ranked = _ranked(material, column, shown, alone=False)
    if not ranked:
        return None
    image = ranked.get("median", ranked["best"])
    if (photograph := material.pictures(base.record, *image)) is None:
        return None
    truth = base.masks[image].truth
    side = PAGE / max(len(shown) + 2, 4)
    figure = new_figure(side * (len(shown) + 2), side + 0.28)
    axes = figure.subplots(1, len(shown) + 2)
    for ax, title in zip(axes[:2], ("image", "truth"), strict=True):
        _photograph(ax, photograph, f"{title}\n", truth if title == "truth" else None)
    for ax, run in zip(axes[2:], shown, strict=True):
        value = score_of(material, run.record, image, column.metric)
        said = "" if value is None else f"{column.measure.title} {100 * value:.1f}"
        name = run.row.label.split(", ")[0]  # every row is of another method
        _photograph(ax, photograph, f"{name}\n{said}", truth, run.masks[image].predicted)
    caption = (
        f"{column.benchmark_title}, {image[1]} (terms of the images: {_terms(column.benchmark)}): of the test images that these runs"
        f" keep, chosen by a hash of their names, the median by {base.row.label}. White: contour of the truth; blue: missed;"
        f" orange: invented. {material.caption_of(run.record for run in shown)}"
    )
    return Drawing(figure=figure, caption=caption)


def _terms(benchmark: str) -> str:
    try:
        return BENCHMARKS.get(benchmark).terms
    except UsageError:  # of a plug-in that is not here
        return "not known"


def _photograph(
    ax: Axes, photograph: Picture, title: str, truth: Picture | None, predicted: Picture | None = None
) -> None:
    """A tile with the truth's contour and, of a prediction, its errors as a tint on the grey photograph."""
    from matplotlib.patheffects import withStroke

    ax.set_axis_off()
    grey = predicted is not None  # no tint is lost in the colours of what is shown
    ax.imshow(photograph.mean(axis=2) if grey else photograph, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    ax.set_title(title, fontsize=6.5, pad=3, linespacing=1.1)
    if truth is None:
        return
    if predicted is not None:
        wrong = (predicted != truth) & (truth != 255)
        ax.imshow(
            np.dstack([painted(predicted, truth), np.where(wrong, 180, 0).astype(np.uint8)]), interpolation="nearest"
        )
    contours = ax.contour((truth > 0) & (truth != 255), levels=[0.5], colors="white", linewidths=1.1)
    contours.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.6)])


def score_of(material: Material, record: Record, image: Image, metric: str) -> float | None:
    split, stem = image
    scores = material.archive.images(record, "best", split, metric)
    return None if scores is None else scores.scores.get(stem)


def _plain(truth: Picture) -> Picture:
    return painted(np.where(truth == 255, 0, truth).astype(np.uint8), truth)


def _tile(ax: Axes, picture: Picture, title: str) -> None:
    step = max(1, -(-max(picture.shape[:2]) // LARGEST))
    ax.imshow(picture[::step, ::step], interpolation="nearest")
    ax.set_title(title, fontsize=5.5, pad=1.5, linespacing=0.95)
