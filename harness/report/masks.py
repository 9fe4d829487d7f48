"""Saved masks side by side: photograph, ground truth, and every row's prediction with its errors in colour."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.archive.files import is_of_record
from harness.archive.masks import MASKS_FILE, KeptMask, chosen_images, extremes, read_masks
from harness.archive.schema import Record
from harness.comparison.grid import Column
from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import metric_title
from harness.report.sentences import caption
from harness.report.style import PAGE, cut, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]
Pictures = Callable[[Record, str, str], Any]
"""(a record, split, stem) -> image (S, S, 3) uint8 at the network's input size; None where it is not available."""
Image = tuple[str, str]
"""split, stem"""

COLOURS = ((0, 0, 0), (235, 235, 235), (44, 107, 214), (255, 140, 0), (170, 0, 120), (110, 110, 110))
"""Colours of `kinds`: nothing, found, missed, invented, another class, ignored. They also differ in brightness."""
OPACITY = (0, 150, 225, 225, 225, 130)
_LARGEST = 256
"""Pixels of a tile's side."""
MOST_ROWS = 8
MOST_IMAGES = 3
"""Images under which all rows stand side by side."""


class Tile(NamedTuple):
    """One picture with its name and score.

    Args:
        picture: (S, S, 3) uint8.
        score: of this image in %; empty if it has no score.
    """

    name: str
    score: str
    picture: Picture


def tiles(board: Leaderboard, benchmark: str, pictures: Pictures | None) -> dict[str, list[Tile]]:
    """Title of a line -> its tiles, for the baseline and the best rows. Empty where no run kept masks.

    First up to three images that all these rows kept: photograph, truth, then a prediction a row. Then each row's own best, median and
    worst image of the whole test set, where its run kept them.
    """
    column, shown = board.columns[benchmark], _kept(board, benchmark)
    if not shown:
        return {}
    first, masks = next(iter(shown.values()))
    scores = {row: _scores(board, record, column) for row, (record, _) in shown.items()}

    def tile(row: str, image: Image, photograph: Picture | None) -> Tile:
        mask, value = shown[row][1][image], scores[row].get(image)
        painted = _painted(mask.predicted, mask.truth, photograph)
        return Tile(name=row, score="" if value is None else f"{100 * value:.1f}", picture=painted)

    lines: dict[str, list[Tile]] = {}
    common = set.intersection(*(set(kept) for _, kept in shown.values()))
    for image in chosen_images(common, MOST_IMAGES):
        truth, photograph = masks[image].truth, pictures(first, *image) if pictures else None
        line = [] if photograph is None else [Tile(name="image", score="", picture=_thinned(photograph))]
        line.append(Tile(name="truth", score="", picture=_painted(truth, truth, photograph)))
        lines[image[1]] = [*line, *(tile(row, image, photograph) for row in shown)]
    for row, (record, kept) in shown.items():
        for word, image in extremes(scores[row], sign=column.sign).items():
            if image in kept:
                own = lines.setdefault(f"{word} of {len(scores[row])} test images, each row's own", [])
                own.append(tile(row, image, pictures(record, *image) if pictures else None))
    return lines


def figure(board: Leaderboard, benchmark: str, pictures: Pictures | None = None) -> tuple[Figure, str] | None:
    examples = tiles(board, benchmark, pictures)
    if not examples:
        return None
    across = max(map(len, examples.values()))
    side = PAGE / max(across, 4)
    drawing = new_figure(side * across, len(examples) * (side + 0.24))
    axes = drawing.subplots(len(examples), across, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, of_image in zip(axes, examples.values(), strict=True):
        for ax, tile in zip(line, of_image, strict=False):
            ax.imshow(tile.picture, interpolation="nearest")
            ax.set_title(f"{cut(tile.name, 18)}\n{tile.score}", fontsize=5.5, pad=1.5, linespacing=0.95)
    return drawing, f"{about(board, benchmark)} Images: {', '.join(examples)}. {caption(board)}"


def about(board: Leaderboard, benchmark: str) -> str:
    """The meaning of the colours and numbers of tiles."""
    column = board.columns[benchmark]
    record, _ = next(iter(_kept(board, benchmark).values()))
    model = "the last state" if record.run.rule("select") == "last" else "the best checkpoint on validation"
    return (
        f"Masks of test images on {column.title} by {model}, of one seed, with the image's {metric_title(column.metric)} in %."
        " Light: found; blue: missed; orange: invented. Images under which all rows stand are chosen by a hash of their names."
    )


def _kept(board: Leaderboard, benchmark: str) -> dict[str, tuple[Record, dict[Image, KeptMask]]]:
    """Row -> a run and its masks: the baseline and the best rows under one seed, for which most of them kept masks. Of several such seeds
    it is the one with the most typical scores, since a collapsed run would mislead."""
    cells = {row: cell for row in board.on(benchmark) if (cell := board.cell(row, benchmark)).values}
    by_seed: dict[int, dict[str, Record]] = {}
    apart: dict[int, float] = {}
    for row in sorted(cells, key=lambda row: row != board.baseline):
        cell = cells[row]
        for record in board.grid.finished(row, benchmark):
            if board.grid.archive.store.masks_path(record.key).is_file() and is_of_record(MASKS_FILE, record.sidecars):
                by_seed.setdefault(record.run.seed, {}).setdefault(row, record)
                value = cell.values.get(record.run.seed)
                far = math.inf if value is None else abs(value - median(cell.scores))
                apart[record.run.seed] = apart.get(record.run.seed, 0.0) + far
    for seed in sorted(by_seed, key=lambda seed: (-len(by_seed[seed]), apart[seed], seed)):
        shown = {row: (record, read) for row, record in by_seed[seed].items() if (read := _read(board, record))}
        if shown:
            return dict(list(shown.items())[:MOST_ROWS])
    return {}


def _read(board: Leaderboard, record: Record) -> dict[Image, KeptMask]:
    try:
        masks = read_masks(
            board.grid.archive.store.masks_path(record.key), expected=record.sidecars.get(MASKS_FILE, "")
        )
    except ValueError:  # not what was written
        return {}
    return {(mask.split, mask.stem): mask for mask in masks}


def _scores(board: Leaderboard, record: Record, column: Column) -> dict[Image, float]:
    """The scores that rank, of every test image."""
    scores: dict[Image, float] = {}
    for split in (name for name in record.scores["best"] if name not in ("val", "all")):
        table = board.grid.archive.image_table(record, "best", split)
        values = table.scores.get(column.metric) if table else None
        if table is not None and values is not None:
            scores |= {(split, stem): float(value) for stem, value in zip(table.stems, values, strict=True)}
    return scores


def kinds(predicted: Picture, truth: Picture) -> Picture:
    """(H, W): foreground that is 1 found, 2 missed, 3 invented or 4 of another class; 5 is ignored, 0 nothing."""
    right, there = predicted == truth, truth > 0
    cases = [truth == 255, there & right, there & (predicted == 0), there, predicted > 0]
    return np.select(cases, [5, 1, 2, 4, 3]).astype(np.uint8)


def _painted(predicted: Picture, truth: Picture, photograph: Picture | None) -> Picture:
    """(S, S, 3): found, missed and invented foreground in colours, over the grey photograph where there is one."""
    kind = _thinned(kinds(predicted, truth))
    if photograph is None:
        return np.array(COLOURS, np.uint8)[kind]
    grey = _thinned(photograph).mean(axis=2, keepdims=True)
    opacity = (np.array(OPACITY, float) / 255)[kind][..., None]
    return (opacity * np.array(COLOURS, float)[kind] + (1 - opacity) * grey).round().astype(np.uint8)


def _thinned(picture: Any) -> Any:
    step = max(1, -(-max(picture.shape[:2]) // _LARGEST))
    return picture[::step, ::step]
