"""Which cells of a column are best, which cannot be told from the best, and which is the best of the rest."""

from __future__ import annotations

import math

from harness.comparison import names
from harness.comparison.grid import Grid
from harness.comparison.paired import ImagesOf, paired_difference
from harness.report.page import Mark


def best_marks(grid: Grid, images_of: ImagesOf) -> dict[tuple[int, int], Mark]:
    """Marks among complete cells with at least two seeds (`best_first`); rows that tie at the printed digit share one.

    ``tied`` rows cannot be told from the best: 0 lies in the 95 % interval of their paired difference. None is marked
    where fewer than two rows have two seeds: a single run says nothing of the next.
    """
    marks: dict[tuple[int, int], Mark] = {}
    for place in range(len(grid.columns)):
        marks |= {(index, place): mark for index, mark in _of_column(grid, place, images_of).items()}
    return marks


def _of_column(grid: Grid, place: int, images_of: ImagesOf) -> dict[int, Mark]:
    order = best_first(grid, place)
    if len(order) < 2:
        return {}
    column, first = grid.columns[place], order[0]
    printed = {index: round(100 * grid.cells[index, place].mean, 1) for index in order}
    marks: dict[int, Mark] = {index: "best" for index in order if printed[index] == printed[first]}
    for index in (index for index in order if index not in marks):
        scored = (grid.rows[index].score, grid.rows[first].score)
        cells = (grid.cells[index, place], grid.cells[first, place])
        difference = paired_difference(*cells, column, scored=scored, images_of=images_of)
        if difference is None or difference.is_none:
            marks[index] = "tied"
    rest = [index for index in order if index not in marks]
    return marks | {index: "second" for index in rest if printed[index] == printed[rest[0]]}


def best_first(grid: Grid, place: int) -> list[int]:
    """The complete rows with at least two seeds, by how many others each is ahead of on the seeds that both have, then by
    mean. Where all have the same seeds that is by mean; else a row that misses one which is bad for all would lead by that.
    """
    sign = -1 if names.metric(grid.columns[place].metric).lower_is_better else 1
    cells = {
        index: cell
        for index in range(len(grid.rows))
        if (cell := grid.cells[index, place]).complete and len(cell.values) > 1
    }

    def rank(index: int) -> tuple[int, float, int]:
        mine = cells[index].values
        ahead = 0
        for other in cells.values():
            common = mine.keys() & other.values.keys()
            ahead += math.fsum(sign * (mine[seed] - other.values[seed]) for seed in common) > 0
        return -ahead, -sign * cells[index].mean, index

    return sorted(cells, key=rank)
