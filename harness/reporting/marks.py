"""Which cells of a column are best, which cannot be told from the best, and which is the best of the rest."""

from __future__ import annotations

from harness.comparison import names
from harness.comparison.grid import Grid
from harness.comparison.paired import ImagesOf, paired_difference
from harness.reporting.page import Mark


def best_marks(grid: Grid, images_of: ImagesOf) -> dict[tuple[int, int], Mark]:
    """Marks among complete cells with at least two seeds; rows that tie at the printed digit share one.

    ``tied`` rows cannot be told from the best: 0 lies in the 95 % interval of their paired difference. None is marked
    where fewer than two rows have two seeds: a single run says nothing of the next.
    """
    marks: dict[tuple[int, int], Mark] = {}
    for place in range(len(grid.columns)):
        marks |= {(index, place): mark for index, mark in _of_column(grid, place, images_of).items()}
    return marks


def _of_column(grid: Grid, place: int, images_of: ImagesOf) -> dict[int, Mark]:
    column = grid.columns[place]
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    cells = {index: grid.cells[index, place] for index in range(len(grid.rows))}
    means = {
        index: sign * round(100 * cell.mean, 1)
        for index, cell in cells.items()
        if cell.complete and len(cell.values) > 1
    }
    if len(means) < 2:
        return {}
    first = max(means, key=lambda index: (sign * cells[index].mean, -index))
    marks: dict[int, Mark] = {index: "best" for index, mean in means.items() if mean == means[first]}
    for index in means.keys() - marks.keys():
        scored = (grid.rows[index].score, grid.rows[first].score)
        difference = paired_difference(cells[index], cells[first], column, scored=scored, images_of=images_of)
        if difference is None or difference.is_none:
            marks[index] = "tied"
    rest = {index: mean for index, mean in means.items() if index not in marks}
    return marks | {index: "second" for index, mean in rest.items() if mean == max(rest.values())}
