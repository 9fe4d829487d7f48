"""The sentence that answers first: which row is best on a benchmark, which cannot be told from it, which is worse."""

from __future__ import annotations

from harness.comparison import names
from harness.comparison.grid import Grid, first_metrics
from harness.comparison.paired import Difference, paired_difference
from harness.comparison.sources import Sources
from harness.report.marks import best_first, best_marks

MOST_NAMED = 5


def answers(grid: Grid, *, sources: Sources) -> list[str]:
    """One sentence a benchmark that at least two rows have two seeds on."""
    marks = best_marks(grid, sources.images_of)
    found = []
    for place in first_metrics(grid):
        mine = {index: marks[index, place] for index in range(len(grid.rows)) if (index, place) in marks}
        best = [index for index, mark in mine.items() if mark == "best"]
        if not best:
            continue
        column = grid.columns[place]
        sign = 1 if names.metric(column.metric).lower_is_better else -1
        first = best_first(grid, place)[0]  # of several that print alike
        tied = [index for index, mark in mine.items() if mark == "tied"]
        tied.sort(key=lambda index: sign * grid.cells[index, place].mean)
        where = column.short + (f" ({column.note})" if column.note else "")
        score = 100 * grid.cells[best[0], place].mean
        sentence = f"{where}: {_named(grid, best)} {'is' if len(best) == 1 else 'are'} best ({score:.1f})"
        if tied:
            sentence += f"; not distinguishable from it: {_named(grid, tied)}"
        found.append(sentence + _worse(grid, place, first, {*best, *tied}, sources) + ".")
    return found


def _worse(grid: Grid, place: int, best: int, others: set[int], sources: Sources) -> str:
    """``; 11 are worse, from samed (by 1.7 [0.6, 2.8] points) to full (by 27.8 [22.1, 33.5])``, and what is not: a row that
    has other seeds and is ahead on those that both have."""
    behind: dict[int, Difference] = {}
    for index in range(len(grid.rows)):
        cell = grid.cells[index, place]
        if index in others or not cell.complete or len(cell.values) < 2:
            continue
        scored = (grid.rows[best].score, grid.rows[index].score)
        difference = paired_difference(
            grid.cells[best, place], cell, grid.columns[place], scored=scored, images_of=sources.images_of
        )
        if difference is not None:
            behind[index] = difference
    ahead = [index for index in behind if behind[index].mean < 0]
    but = f"; on common seeds {_named(grid, ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of it" if ahead else ""
    order = sorted(behind.keys() - ahead, key=lambda index: (behind[index].mean, index))
    if not order:
        return but
    first, last = order[0], order[-1]
    near = f"{grid.rows[first].in_words} (by {_points(behind[first])} points)"
    if len(order) == 1:
        return f"; {near} is worse{but}"
    return f"; {len(order)} are worse, from {near} to {grid.rows[last].in_words} (by {_points(behind[last])}){but}"


def _points(difference: Difference) -> str:
    interval = difference.interval
    assert interval is not None  # otherwise it could not be told apart
    return f"{difference.mean:.1f} {interval:.1f}"


def _named(grid: Grid, rows: list[int]) -> str:
    labels = [grid.rows[index].in_words for index in rows]
    if len(labels) > MOST_NAMED:
        return f"{', '.join(labels[:MOST_NAMED])} and {len(labels) - MOST_NAMED} more"
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
