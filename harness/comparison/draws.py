"""Runs as draws: reruns on other processors beside the seeds, which runs collapsed, and the spread of single runs.

In reduced precision the same seed on another processor is another draw: a rerun moves a score by as much as a new seed does, so
both are draws of one kind.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness import statistics as stats
from harness.archive.archive import Archive, PerImage
from harness.archive.schema import Record
from harness.comparison.cells import Cell, Column, Difference, Grid
from harness.studies import Study

RERUN = 10_000
"""Added to the seed of a run that was made again: its draw has a number of its own."""
COLLAPSE = 20.0
"""A run has collapsed where its score lies more than so many points below the median of its row (docs/plan.md)."""


class Draws(Archive):
    """A results folder together with runs of it (the same keys) that were made again elsewhere, each a draw of its own."""

    def __init__(self, root: Path, *, again: Path) -> None:
        super().__init__(root)
        self._again = Archive(again)

    @cached_property
    def reruns(self) -> list[Record]:
        """Runs of this folder that were made again; a rerun of a run that it does not hold is left out."""
        runs = {
            record.key: record.run for record in super().records
        }  # labels are those of the folder, how a rate was tuned included
        again = [record for record in self._again.records if record.key in runs and record.code == "OK"]
        return [replace(record, run=replace(runs[record.key], seed=record.run.seed + RERUN)) for record in again]

    @cached_property
    def records(self) -> list[Record]:
        return [*super().records, *self.reruns]

    def images(self, record: Record, model: str, split: str, metric: str) -> PerImage | None:
        if record.run.seed >= RERUN:
            return self._again.images(record, model, split, metric)
        return super().images(record, model, split, metric)


def with_reruns(study: Study) -> Study:
    """The study with a draw more a seed, for `Draws`."""
    return replace(study, seeds=(*study.seeds, *(seed + RERUN for seed in study.seeds)))


def collapsed(cell: Cell) -> list[int]:
    """Seeds whose score lies more than `COLLAPSE` points below the median of their row."""
    signed = {seed: 100 * cell.column.sign * cell.values[seed] for seed in cell.seeds}
    middle = statistics.median(signed.values()) if signed else 0.0
    return [seed for seed, value in signed.items() if value < middle - COLLAPSE]


@dataclass(frozen=True, kw_only=True)
class Collapses:
    """How many of a set of runs collapsed."""

    runs: int
    collapsed: int

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Collapses:
        """Of cells with two runs or more: one run alone has no row to lie below."""
        several = [cell for cell in cells if len(cell.seeds) > 1]
        return cls(
            runs=sum(len(cell.seeds) for cell in several), collapsed=sum(len(collapsed(cell)) for cell in several)
        )


def without_collapsed(cell: Cell) -> Cell:
    """The cell of the runs that did not collapse."""
    return of_seeds(cell, cell.values.keys() - set(collapsed(cell)))


def of_seeds(cell: Cell, seeds: Collection[int]) -> Cell:
    """The cell of these runs alone."""
    values = {seed: value for seed, value in cell.values.items() if seed in seeds}
    return replace(cell, values=values, records=tuple(record for record in cell.records if record.run.seed in seeds))


def with_pooled_runs(difference: Difference, grid: Grid) -> stats.Estimate | None:
    """`harness.statistics.with_pooled_runs` over the rows of the grid on the difference's column, collapsed runs left out; None
    where the difference is not over seeds and images, or no row has two runs."""
    if difference.by_image is None:
        return None
    column: Column = difference.first.column
    cells = (without_collapsed(cell) for cell in grid.below(column))
    rows = [[100 * cell.values[seed] for seed in cell.seeds] for cell in cells if len(cell.seeds) > 1]
    return stats.with_pooled_runs(difference.estimate, rows) if rows else None
