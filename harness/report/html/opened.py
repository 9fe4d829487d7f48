"""What a cell opens before its provenance: the scores or differences by seed, and the command that makes its runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.comparison.cells import Cell, Difference, Grid
from harness.comparison.contrasts import Contrast
from harness.comparison.rows import Row
from harness.report.command import command_of
from harness.report.html.headline import Name
from harness.report.page import Explained

Opened = Mapping[str, Any]
"""``lanes``: [name, [[seed, number], …]] below each other on one axis; ``command``; ``unit``."""


def opener(
    grids: Iterable[Grid], names: Mapping[Row, Name], baselines: Mapping[Grid, Row]
) -> Callable[[Explained], Opened | None]:
    """Of what the cells of these grids show; None of what has no seeds."""
    grid_of = {row: grid for grid in grids for row in grid.rows}

    def lane(cell: Cell) -> tuple[str, list[tuple[int, float]]]:
        return names[cell.row].text, [(seed, round(100 * cell.values[seed], 3)) for seed in cell.seeds]

    def opened(shown: Explained) -> Opened | None:
        if isinstance(shown, Contrast):
            shown = shown.difference
        if isinstance(shown, Difference):
            lanes = [lane(shown.first), lane(shown.second)]
            return {"lanes": lanes, "unit": _unit(shown.first), "command": command_of(shown.first.records)}
        if not isinstance(shown, Cell) or shown.row not in grid_of:
            return None
        grid = grid_of[shown.row]
        base = baselines[grid]
        lanes = [lane(shown)]
        if base is not shown.row and shown.column in grid.columns:
            lanes.append(lane(grid.cells[base, shown.column]))
        return {"lanes": lanes, "unit": _unit(shown), "command": command_of(shown.records)}

    return opened


def _unit(cell: Cell) -> str:
    return f"{cell.column.measure.heading} on {cell.column.benchmark_title} (%), a dot a seed"
