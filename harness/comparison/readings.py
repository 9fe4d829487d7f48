"""Many readings of one method against a baseline: every reading's difference, and what each field's other level adds.

A main effect is the mean score of the screening design's runs at a field's other level less that at its default. Its
interval is over replicates (benchmark and seed) where there are several; for a single one it is the margin of error by
Lenth's method (1989), which takes most effects to be noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.comparison.cells import Column, Difference, Grid
from harness.comparison.grids import grids
from harness.comparison.rows import Row
from harness.statistics import t_interval
from harness.studies import Study
from harness.studies.design import Point


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Of a field's other level, in points of a benchmark's first metric, with its 95 % interval; positive is better. ``replicates``: of
    how many estimates it is the mean."""

    field: str
    estimate: float
    low: float
    high: float
    replicates: int


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A reading and its difference to the baseline, by benchmark; ``validation``: what its runs scored there, mean over benchmarks, in
    points, None where one of these has no run."""

    point: Point
    differences: Mapping[str, Difference]
    validation: float | None = None

    @property
    def mean(self) -> float:
        """Over benchmarks."""
        return statistics.fmean(difference.mean for difference in self.differences.values())


def with_readings(
    records: Iterable[Record], study: Study, archive: Archive, *, protocol: str
) -> list[tuple[Grid, Study]]:
    """Each sheet of ``protocol`` that tables show of the study, with a run of a reading; and the study on its benchmarks."""
    here = [record for record in records if record.run.protocol == protocol]
    told = []
    for grid in grids(here, archive, study=study):
        if any(row.records for row in rows_of_readings(grid, study)):
            there = {record.run.benchmark for record in grid.records}
            kept = tuple(name for name in study.benchmarks if name in there)
            told.append((grid, replace(study, benchmarks=kept)))
    return told


def rows_of_readings(grid: Grid, study: Study) -> dict[Row, Point]:
    """Row of the grid -> reading."""
    assert study.readings is not None
    labels = {entry.label: point for entry, point in zip(study.readings.entries(), study.readings.points, strict=True)}
    return {row: labels[row.label] for row in grid.rows if row.label in labels}


def specification_curve(grid: Grid, study: Study, *, baseline: str) -> list[Specification]:
    """Every reading with a run, the one that says least for the method first; empty where the baseline has none."""
    base = grid.row(baseline)
    if base is None:
        return []
    curve = []
    for row, point in rows_of_readings(grid, study).items():
        differences = {
            benchmark: difference
            for benchmark, column in grid.first_columns.items()
            if (difference := grid.difference(row, base, column)) is not None
        }
        if differences:
            scores = [_validation(row, column) for column in grid.first_columns.values()]
            known = [score for score in scores if score is not None]
            validation = statistics.fmean(known) if len(known) == len(scores) else None
            curve.append(Specification(point=point, differences=differences, validation=validation))
    return sorted(curve, key=lambda specification: specification.mean)


def _validation(row: Row, column: Column) -> float | None:
    """Mean over seeds of what the chosen checkpoints scored on validation, in points; greater is better."""
    here = [record for record in row.on.get(column.benchmark, ()) if record.run.manifest == column.manifest]
    scores = [record.scores.get("best", {}).get("val", {}).get(column.metric) for record in here]
    known = [100 * column.sign * score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def main_effects(grid: Grid, study: Study) -> list[Effect]:
    """Of every field, from the replicates that have all runs of the design; empty where there is none."""
    readings = study.readings
    assert readings is not None
    rows = {row: point for row, point in rows_of_readings(grid, study).items() if point.screening}
    replicates: list[list[float]] = []
    for column in grid.first_columns.values():
        for seed in grid.seeds:
            scores = {
                row: 100 * column.sign * cell.values[seed]
                for row in rows
                if seed in (cell := grid.cells[row, column]).values
            }
            if rows and len(scores) == len(rows):
                replicates.append([_contrast(scores, rows, place=at) for at in range(len(readings.fields))])
    if not replicates:
        return []
    effects = [[values[at] for values in replicates] for at in range(len(readings.fields))]
    margin = lenth_margin([statistics.fmean(values) for values in effects])
    of_fields = []
    for field, values in zip(readings.fields, effects, strict=True):
        estimate = statistics.fmean(values)
        interval = t_interval(values)
        low, high = (interval.low, interval.high) if interval else (estimate - margin, estimate + margin)
        of_fields.append(Effect(field=field.name, estimate=estimate, low=low, high=high, replicates=len(values)))
    return of_fields


def _contrast(scores: Mapping[Row, float], rows: Mapping[Row, Point], *, place: int) -> float:
    level = {high: [scores[row] for row, point in rows.items() if point.levels[place] == high] for high in (0, 1)}
    return statistics.fmean(level[1]) - statistics.fmean(level[0])


def lenth_margin(effects: Sequence[float]) -> float:
    """The 95 % margin of error of each of ``effects`` that share one design without replicates (Lenth, 1989)."""
    sizes = [abs(value) for value in effects]
    first = 1.5 * statistics.median(sizes)
    kept = [size for size in sizes if size < 2.5 * first] or sizes
    from scipy import stats  # a second, which --help need not wait for

    return 1.5 * statistics.median(kept) * float(stats.t.ppf(0.975, len(effects) / 3))
