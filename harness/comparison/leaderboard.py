"""Every row of a study against its baseline: one number a benchmark, intervals that hold for all rows at once, and
what a row costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from harness.archive.measured import CostRecord, MethodCost, Ratio
from harness.comparison.grid import Grid
from harness.comparison.scores import Cell, Column, Difference, simultaneous
from harness.comparison.step_costs import costs_of, ratios_within, session_for

COLLAPSE = 0.2
"""A run that scores so far below the median of its row has collapsed; it stays in the mean and is marked."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One row.

    Args:
        cells: benchmark -> its score.
        differences: benchmark -> row minus baseline with a simultaneous interval; without one where a run collapsed.
        mean: of the differences over `Leaderboard.complete`; None where the row lacks one of these, or there are none.
        encoder: trained parameters in the encoder, None where nothing was run.
        time, memory: a training step's over the baseline's, from one cost session; None where it was not measured.
        merges: ``exact`` or ``calibrated``: the merge after which nothing of the method is left; ``not needed``
            where nothing is added; ``no``; empty where it was not measured.
    """

    row: str
    method: str
    cells: Mapping[str, Cell]
    differences: Mapping[str, Difference]
    mean: Difference | None
    encoder: int | None
    time: Ratio | None
    memory: Ratio | None
    merges: str

    @property
    def collapsed(self) -> bool:
        return any(map(is_collapsed, self.cells.values()))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The rows, best first.

    Args:
        columns: benchmark -> the column that is compared.
        complete: benchmarks on which every row that was run at all has all its seeds: what means are over.
        session: of the costs, None where no session measured these steps.
    """

    grid: Grid
    baseline: str
    columns: Mapping[str, Column]
    complete: tuple[str, ...]
    standings: tuple[Standing, ...]
    session: CostRecord | None


def leaderboard(grid: Grid, baseline: str) -> Leaderboard:
    """The standings of a grid that has a row of the name ``baseline``."""
    columns = grid.first_columns
    ran = [row for row in grid.rows if grid.records_of(row)]
    complete = tuple(
        name for name, column in columns.items() if ran and all(grid.cells[row, column].complete for row in ran)
    )
    steady = {
        name: {
            row: grid.sample(row, column)
            for row in ran
            if grid.cells[row, column].complete and not is_collapsed(grid.cells[row, column])
        }
        for name, column in columns.items()
    }
    found = {name: simultaneous([steady[name]], baseline) for name in columns if steady[name]}
    means = simultaneous([steady[name] for name in complete], baseline) if complete else {}
    session = session_for(grid, baseline=baseline)
    costs = costs_of(grid, session) if session else {}
    standings = []
    for row in grid.rows:
        differences = {}
        for name, column in columns.items():
            if row in found.get(name, {}):
                differences[name] = found[name][row][0]
            elif (
                row != baseline
                and grid.cells[row, column].complete
                and (alone := grid.difference(row, baseline, column))
            ):
                differences[name] = Difference(mean=alone.mean, low=None, high=None, n=alone.n)
        mean = means[row][-1] if row in means else None
        if mean is None and row != baseline and complete and all(name in differences for name in complete):
            over = [differences[name] for name in complete]
            mean = Difference(
                mean=statistics.fmean(each.mean for each in over), low=None, high=None, n=min(each.n for each in over)
            )
        counts = sorted(
            {record.parameters["encoder"] for record in grid.records_of(row) if "encoder" in record.parameters}
        )
        ratios = ratios_within(costs[row], costs[baseline]) if row in costs and row != baseline else {}
        standings.append(
            Standing(
                row=row, method=grid.rows[row].method, cells={name: grid.cells[row, column] for name, column in columns.items()},
                differences=differences, mean=mean, encoder=counts[-1] if counts else None, time=ratios.get("time"),
                memory=ratios.get("memory"), merges=_merges(costs[row], session) if row in costs and session else "",
            )
        )  # fmt: skip

    def place(standing: Standing) -> tuple[bool, float]:
        if standing.row == baseline:
            return False, 0.0
        known = (standing.differences[name] for name in (*complete, *columns) if name in standing.differences)
        difference = standing.mean or next(known, None)
        return difference is None, -difference.mean if difference else 0.0

    standings.sort(key=place)
    return Leaderboard(
        grid=grid, baseline=baseline, columns=columns, complete=complete, standings=tuple(standings), session=session
    )


def is_collapsed(cell: Cell) -> bool:
    """Whether one of its runs scores more than `COLLAPSE` below their median."""
    worst = min((cell.column.sign * value for value in cell.values.values()), default=0.0)
    return cell.n > 1 and cell.column.sign * statistics.median(cell.by_seed) - worst > COLLAPSE


def _merges(cost: MethodCost, session: CostRecord) -> str:
    plain = min(method.inference_parameters.get("unmerged", 0) for method in session.methods)
    if cost.inference_parameters.get("unmerged", 0) <= plain:
        return "not needed"
    for mode in ("exact", "calibrated"):
        if 0 < cost.inference_parameters.get(f"merged-{mode}", 0) <= plain:
            return mode
    return "no"
