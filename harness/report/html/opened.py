"""What a cell opens before its provenance: the scores or differences by seed, and the command that makes its runs again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.archive.schema import Record
from harness.comparison.cells import Cell, Difference, Grid
from harness.comparison.contrasts import Contrast
from harness.comparison.rows import Row, is_run
from harness.comparison.rules import card, from_card
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
            return {"lanes": lanes, "unit": _unit(shown.first), "command": command(shown.first.records)}
        if not isinstance(shown, Cell) or shown.row not in grid_of:
            return None
        grid = grid_of[shown.row]
        base = baselines[grid]
        lanes = [lane(shown)]
        if base is not shown.row and shown.column in grid.columns:
            lanes.append(lane(grid.cells[base, shown.column]))
        return {"lanes": lanes, "unit": _unit(shown), "command": command(shown.records)}

    return opened


def _unit(cell: Cell) -> str:
    return f"{cell.column.measure.heading} on {cell.column.benchmark_title} (%), a dot a seed"


def command(records: Iterable[Record]) -> str:
    """``python -m harness.run …`` that plans the same runs; empty where there is none. Options that were tuned are given as they
    were chosen. Data and checkpoint are where the reader's own settings say."""
    runs = sorted((record.run for record in records if is_run(record)), key=lambda run: run.seed)
    if not runs:
        return ""
    run = runs[0]
    options = ",".join(f"{name}={_value(value)}" for name, value in sorted(run.changed.items()))
    seeds = ",".join(dict.fromkeys(str(one.seed) for one in runs))
    words = [
        *("python", "-m", "harness.run", "--methods", f"{run.method}[{options}]" if options else run.method),
        *("--datasets", run.benchmark, "--protocol", run.protocol, "--backbone", run.backbone),
        *("--seeds", seeds if "," in seeds else f"{seeds},"),
    ]
    of_card = card(run.protocol, run.benchmark)
    for name, (ours, _) in from_card(run.rules, of_card).items() if of_card is not None else ():
        words += ["--set", f"{name}={_value(ours)}"]
    return shlex.join(words)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    text = str(value)
    return f"'{text}'" if "," in text else text
