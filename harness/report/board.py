"""Leaderboards of a results folder: their baseline, their order, and the sentence of a page."""

from __future__ import annotations

from collections.abc import Iterable

from harness.archive.schema import Record
from harness.comparison.grid import Grid
from harness.comparison.leaderboard import Leaderboard, Standing, leaderboard
from harness.comparison.names import BASELINES, UNTUNED
from harness.comparison.scores import Cell, Column, Difference, over_images, simultaneous
from harness.studies import Study
from harness.system.errors import UsageError, did_you_mean
from harness.system.text import first_of


def boards(tables: Iterable[Grid], study: Study | None, baseline: str) -> list[Leaderboard]:
    """Every table with runs against a baseline: the row of that name, else the study's, else the default one, else the first row.

    Raises:
        UsageError: no row is called ``baseline``.
    """
    tables = [grid for grid in tables if grid.records and grid.columns]
    names = {row for grid in tables for row in grid.rows}
    if baseline and baseline not in names:
        raise UsageError(f"no row is called {baseline!r}{did_you_mean(baseline, names)}")
    return [leaderboard(grid, _baseline(grid, study, baseline)) for grid in tables]


def _baseline(grid: Grid, study: Study | None, name: str) -> str:
    ran = [row for row in grid.rows if grid.records_of(row)]
    methods = (*UNTUNED, *BASELINES) if grid.is_own else BASELINES
    usual = [row for method in methods for row in ran if grid.rows[row].method == method]
    wanted = [name, study.table.baseline if study else "", *usual, *ran]
    return next(row for row in wanted if row in ran)


def ran(board: Leaderboard) -> list[Standing]:
    """The rows that have a run, best first."""
    return [each for each in board.standings if board.grid.records_of(each.row)]


def on(board: Leaderboard, benchmark: str) -> list[Standing]:
    """The rows that have a run on a benchmark, best first, those with a gap last."""
    column = board.columns[benchmark]

    def rank(standing: Standing) -> tuple[bool, float]:
        cell = standing.cells[benchmark]
        return not cell.complete, -column.sign * cell.mean if cell.values else 0.0

    return sorted((each for each in ran(board) if each.cells[benchmark].planned), key=rank)


def in_order(board: Leaderboard) -> list[Standing]:
    """The rows that have a run, best first by the order of the first page; rows without that score last."""
    if not leading(board):
        return ran(board)
    first = on(board, leading(board))
    return [*first, *(each for each in ran(board) if each not in first)]


def ended_well(board: Leaderboard, row: str, benchmark: str) -> list[Record]:
    column = board.columns[benchmark]
    return [r for r in board.grid.records_of(row) if r.code == "OK" and column.holds(r.run)]


def has_mean(board: Leaderboard) -> bool:
    """Whether rows are ordered by their mean over benchmarks; else by the first one."""
    return len(board.complete) > 1


def leading(board: Leaderboard) -> str:
    """The benchmark that orders the rows; empty for the mean over benchmarks."""
    return "" if has_mean(board) else next(iter(board.complete or board.columns))


def against(standing: Standing, benchmark: str) -> Difference | None:
    """The difference of a row to the baseline on a benchmark; for an empty name their mean."""
    return standing.differences.get(benchmark) if benchmark else standing.mean


def cells_on(standing: Standing, benchmark: str) -> list[Cell]:
    """The cell of a row on a benchmark; for an empty name all of its cells."""
    return [cell for name, cell in standing.cells.items() if benchmark in ("", name)]


def named(board: Leaderboard, benchmark: str) -> str:
    """``Kvasir-SEG IoU``, ``mean of 3 benchmarks``"""
    return board.columns[benchmark].name if benchmark else f"mean of {len(board.complete)} benchmarks"


def sentence(board: Leaderboard, benchmark: str) -> str:
    """The result in one sentence, on one benchmark or for the mean over benchmarks."""
    what = named(board, benchmark)
    what = what if benchmark else what.capitalize()
    if board.grid.is_generated:
        return "These images are generated: their scores show that everything works, and rank nothing."
    if board.grid.is_own and benchmark and (text := verdict(board.grid, board.columns[benchmark])):
        return text
    empty = {each.row for each in ran(board) if any(cell.blank for cell in cells_on(each, benchmark))}
    judged = {
        each.row: d
        for each in ran(board)
        if (d := against(each, benchmark)) and d.low is not None and each.row not in empty
    }
    if not judged:
        first = [each for each in on(board, benchmark) if each.cells[benchmark].complete] if benchmark else []
        best = next((each for each in first if each.row not in empty), None)
        if best is None:
            why = "the masks of every row are almost empty" if first else "no row has all of its seeds yet"
            return f"{what}: {why}, so nothing is ranked."
        return f"{what}: {best.row} is highest ({percent(best.cells[benchmark].mean)}). So few seeds, or gaps, rank nothing."
    better = sorted((row for row in judged if (judged[row].low or 0) > 0), key=lambda row: -judged[row].mean)
    worse = sorted((row for row in judged if (judged[row].high or 0) < 0), key=lambda row: judged[row].mean)
    count = f"{len(better) or 'none'} of {len(judged)} {'rows' if len(judged) > 1 else 'row'} with an interval"
    text = f"{what}: {count} {'is' if len(better) < 2 else 'are'} significantly better than {board.baseline}"
    if better:
        text += f", {'most of all ' if len(better) > 1 else ''}{better[0]} ({with_interval(judged[better[0]])} points)"
    text = f"{text}, and {len(worse) or 'none'} {'is' if len(worse) < 2 else 'are'} worse"
    return f"{text} ({first_of(worse)})." if worse else f"{text}."


def verdict(grid: Grid, column: Column) -> str:
    """Whether tuning helps on one's own images: the best row against the decoder alone, else against zero-shot. Empty where neither has a
    score. With two seeds or more, intervals hold for all rows at once."""
    complete = {row: cell for row in grid.rows if (cell := grid.cells[row, column]).complete}
    if complete and all(cell.blank for cell in complete.values()):
        return f"{column.name}: the masks of every row are almost empty, so nothing is ranked."
    cells = {row: cell for row, cell in complete.items() if not cell.blank}
    best = max(cells, key=lambda row: column.sign * cells[row].mean, default="")
    plain = [row for method in UNTUNED for row in complete if grid.rows[row].method == method]
    tuned = sorted(cells.keys() - set(plain), key=lambda row: -column.sign * cells[row].mean)
    other = next((row for row in [*plain, *tuned] if row != best), "")
    if not best or not plain or not other:
        return ""
    samples = {row: grid.sample(row, column) for row, cell in complete.items() if not cell.collapsed}
    joint = simultaneous([samples], other).get(best) if other in samples else None
    difference = joint[0] if joint else grid.difference(best, other, column)
    if difference is None or difference.low is None:
        difference = over_images(grid.sample(best, column), grid.sample(other, column)) or difference
    if difference is None:
        return ""
    seeds = f"{difference.n} seed{'s' * (difference.n > 1)}"
    if difference.low is None:
        return f"{column.name}: {best} is highest, {with_interval(difference)} points to {other}; {seeds}, so there is no interval."
    compared = "but not significantly different from" if difference.is_none else "and significantly better than"
    over = "its test images, and other seeds may differ" if difference.over == "images" else difference.over
    return (
        f"{column.name}: {best} is highest, {compared} {other}: {with_interval(difference)} points, {seeds},"
        f" 95 % interval over {over}."
    )


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def with_interval(difference: Difference) -> str:
    """``+1.2 [+0.3, +2.1]``"""
    # A bound below zero keeps its sign when it rounds to zero, since the verdict depends on it.
    bounds = "" if difference.low is None else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{difference.mean:+z.1f}{bounds}"


def axis_label(column: Column) -> str:
    return f"{column.name} (%)"


def caption(board: Leaderboard) -> str:
    """The end of every caption."""
    seeds = sorted({record.run.seed for record in board.grid.records})
    rules = f"protocol {board.grid.protocol}, hash {board.grid.protocol_hash}; backbone {board.grid.backbone}"
    return f"Seeds {', '.join(map(str, seeds))}; {rules}."
