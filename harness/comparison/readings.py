"""Many readings of one method against a baseline: every reading's difference, and what each field's other level adds.

A main effect is the mean score of the screening design's runs at a field's other level less that at its default. Its
interval is over replicates (benchmark and seed) where there are several; for a single one it is the margin of error by
Lenth's method (1989), which takes most effects to be noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.grid import Grid, first_columns
from harness.comparison.paired import Difference, ImagesOf, paired_difference
from harness.comparison.rules import CardOf, no_card
from harness.comparison.sheets import grids
from harness.statistics import t_interval
from harness.studies import Study
from harness.studies.design import Point


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Of a field's other level, in points of a benchmark's first metric; positive is better.

    Args:
        low, high: 95 %.
        replicates: how many estimates it is the mean of.
    """

    field: str
    estimate: float
    low: float
    high: float
    replicates: int


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A reading and its difference to the baseline, by benchmark.

    Args:
        validation: what its runs scored there, mean over benchmarks, in points; None where one of these has no run.
    """

    point: Point
    differences: Mapping[str, Difference]
    validation: float | None = None

    @property
    def mean(self) -> float:
        """Over benchmarks."""
        return statistics.fmean(one.mean for one in self.differences.values())


def with_readings(
    records: Iterable[Record], study: Study, *, protocol: str, card_of: CardOf = no_card
) -> list[tuple[Grid, Study]]:
    """Each sheet of ``protocol`` that tables show of the study, with a run of a reading; and the study on its benchmarks."""
    here = [record for record in records if record.run.protocol == protocol]
    found = []
    for grid in grids(here, study=study, card_of=card_of):
        if any(grid.members[row] for row in rows_of_readings(grid, study)):
            there = {record.run.benchmark for record in grid.records}
            kept = tuple(name for name in study.benchmarks if name in there)
            found.append((grid, replace(study, benchmarks=kept)))
    return found


def rows_of_readings(grid: Grid, study: Study) -> dict[int, Point]:
    """Row of the grid -> reading."""
    assert study.readings is not None
    labels = {entry.label: point for entry, point in zip(study.readings.entries(), study.readings.points, strict=True)}
    return {index: labels[row.label] for index, row in enumerate(grid.rows) if row.label in labels}


def specification_curve(grid: Grid, study: Study, images_of: ImagesOf, *, baseline: str) -> list[Specification]:
    """Every reading with a run, the one that says least for the method first; empty where the baseline has none."""
    rows, places = rows_of_readings(grid, study), first_columns(grid)
    base = next((i for i, row in enumerate(grid.rows) if row.label == baseline), None)
    found = []
    for row, point in rows.items():
        if base is None:
            break
        differences = {}
        for place in places:
            difference = paired_difference(
                grid.cells[row, place], grid.cells[base, place], grid.columns[place],
                scored=(grid.rows[row].score, grid.rows[base].score), images_of=images_of,
            )  # fmt: skip
            if difference is not None:
                differences[grid.columns[place].benchmark] = difference
        if differences:
            known = [_validation(grid, row, place) for place in places]
            validation = statistics.fmean(one for one in known if one is not None) if None not in known else None
            found.append(Specification(point=point, differences=differences, validation=validation))
    return sorted(found, key=lambda one: one.mean)


def _validation(grid: Grid, row: int, place: int) -> float | None:
    """Mean over seeds of what the chosen checkpoints scored on validation, in points; greater is better."""
    column = grid.columns[place]
    sign = -1 if names.metric(column.metric).lower_is_better else 1
    here = [
        one for one in grid.members[row] if (one.run.benchmark, one.run.manifest) == (column.benchmark, column.manifest)
    ]
    scores = [one.scores.get("best", {}).get("val", {}).get(column.metric) for one in here]
    known = [100 * sign * score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def main_effects(grid: Grid, study: Study) -> list[Effect]:
    """Of every field, from the replicates that have all runs of the design; empty where there is none."""
    readings = study.readings
    assert readings is not None
    rows = {index: point for index, point in rows_of_readings(grid, study).items() if point.screening}
    replicates: list[list[float]] = []
    for place in first_columns(grid):
        sign = -1 if names.metric(grid.columns[place].metric).lower_is_better else 1
        for seed in grid.seeds:
            scores = {row: grid.cells[row, place].values.get(seed) for row in rows}
            if None in scores.values() or not scores:
                continue
            known = {row: 100 * sign * value for row, value in scores.items() if value is not None}
            replicates.append([_contrast(known, rows, place=at) for at in range(len(readings.fields))])
    if not replicates:
        return []
    effects = [[one[at] for one in replicates] for at in range(len(readings.fields))]
    margin = lenth_margin([statistics.fmean(values) for values in effects])
    found = []
    for field, values in zip(readings.fields, effects, strict=True):
        estimate = statistics.fmean(values)
        interval = t_interval(values)
        low, high = (interval.low, interval.high) if interval else (estimate - margin, estimate + margin)
        found.append(Effect(field=field.name, estimate=estimate, low=low, high=high, replicates=len(values)))
    return found


def _contrast(scores: Mapping[int, float], rows: Mapping[int, Point], *, place: int) -> float:
    level = {high: [scores[row] for row, point in rows.items() if point.levels[place] == high] for high in (0, 1)}
    return statistics.fmean(level[1]) - statistics.fmean(level[0])


def lenth_margin(effects: Sequence[float], *, confidence: float = 0.95) -> float:
    """The margin of error of each of ``effects`` that share one design without replicates (Lenth, 1989)."""
    sizes = [abs(value) for value in effects]
    first = 1.5 * statistics.median(sizes)
    kept = [size for size in sizes if size < 2.5 * first] or sizes
    from scipy import stats  # a second, which --help need not wait for

    return 1.5 * statistics.median(kept) * float(stats.t.ppf((1 + confidence) / 2, len(effects) / 3))
