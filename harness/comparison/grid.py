"""Records to a grid of cells: which runs stand behind each number, without deciding yet how it looks.

One grid holds records of one protocol hash, one backbone and one checkpoint, so no column can mix two protocols. Inside
it a column is also bound to one split manifest, and a row to one method configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from harness.archive.schema import Code, Record, Run
from harness.comparison.columns import Column, columns_of
from harness.comparison.names import SCORE_TITLES, benchmark_rank
from harness.comparison.rows import Group, by_benchmark, groups_of_records, groups_of_study, note_of, trials_of
from harness.statistics import sd
from harness.studies import Study

MISSING = "MISSING"
"""The code of a run that has no record."""


def quoted(label: str) -> str:
    """A label between others in a sentence: in quotation marks where its own commas would read as theirs."""
    return f"“{label}”" if ", " in label or "; " in label else label


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method configuration, and which of its models is scored (``best``, ``merged-exact``, …).

    Args:
        options: what is changed in the protocol's configuration.
        note: what its configuration says of itself, behind the label wherever that is printed.
        trials: how it was tuned, behind the label in tables.
    """

    label: str
    method: str
    score: str = "best"
    note: str = ""
    trials: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The label with what its configuration says of itself."""
        return self.label + self.note

    @property
    def in_words(self) -> str:
        """`named` as part of a sentence: in quotation marks where it holds a comma or a semicolon of its own."""
        return quoted(self.named)

    @property
    def shown(self) -> str:
        """The label in a table."""
        return self.named + self.trials


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """What is known of one number.

    Args:
        values: seed -> score of runs that ended well.
        codes: seed -> reason why there is no score, or why it counts for nothing.
        records: the records behind it, by seed.
    """

    values: Mapping[int, float]
    codes: Mapping[int, str]
    records: tuple[Record, ...] = ()

    @property
    def planned(self) -> tuple[int, ...]:
        """The seeds that were asked for; empty where this row was not planned on this benchmark."""
        return tuple(sorted(self.values.keys() | self.codes.keys()))

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.codes

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def sd(self) -> float | None:
        """SD with ddof = 1, None for a single run."""
        return sd([self.values[seed] for seed in sorted(self.values)])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table's content; ``cells`` is keyed by (row, column) indices."""

    protocol: str
    protocol_hash: str
    backbone: str
    checkpoint: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], GridCell]
    members: Mapping[int, tuple[Record, ...]] = field(default_factory=dict)
    """row index -> its records, of all columns."""

    @cached_property
    def records(self) -> list[Record]:
        """Everything that was run; a placeholder of a planned run is not."""
        unique = {record.key: record for members in self.members.values() for record in members if is_run(record)}
        return [unique[key] for key in sorted(unique)]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was planned for some cell."""
        return tuple(sorted({seed for cell in self.cells.values() for seed in cell.planned}))


Sheet = tuple[str, str, str, str]
"""protocol, its hash, backbone, checkpoint"""


def placeholder(run: Run) -> Record:
    """Stands for a planned run that has no record, so that its cell says so."""
    return Record(run=run, key=run.key, code=cast(Code, MISSING))


def is_run(record: Record) -> bool:
    return record.code != MISSING


def build_grid(
    sheet: Sheet, records: Sequence[Record], *, study: Study | None = None, metrics: Sequence[str] = ()
) -> Grid:
    """The grid of one sheet; with a study, all its rows, benchmarks and seeds, records or not.

    Without a study, a cell's seeds are those that its sweeps planned (`Run.planned_seeds`), and a row has a cell on the
    benchmarks that they planned it for.

    Args:
        metrics: what to show a benchmark by, where its records hold it; the study's or the papers' choice if empty.
    """
    if study is None:
        groups = groups_of_records(records)
        benchmarks = sorted({record.run.benchmark for record in records}, key=benchmark_rank)
        chosen = [record for group in groups for record in group.members]
    else:
        groups = groups_of_study(study, records)
        benchmarks = list(study.benchmarks)
        members = [record for group in groups for record in group.members]
        chosen = [one for one in members if one.run.benchmark in benchmarks and one.run.seed in study.seeds]
    chosen_keys = {record.key for record in chosen}
    on = by_benchmark(chosen)
    columns = [one for name in benchmarks for one in columns_of(name, on.get(name, []), study=study, metrics=metrics)]
    seeds = {column: study.seeds if study else _usual_seeds(column, groups) for column in columns}
    rows: list[Row] = []
    cells: dict[tuple[int, int], GridCell] = {}
    kept: dict[int, tuple[Record, ...]] = {}
    for group in groups:
        for score in group.scores:
            index = len(rows)
            title = SCORE_TITLES.get(score, score)
            label = group.label + (f" ({title})" if title and len(group.scores) > 1 else "")
            kept[index] = tuple(record for record in group.members if record.key in chosen_keys)
            rows.append(
                Row(
                    label=label,
                    method=group.method,
                    score=score,
                    note=note_of(group.members),
                    trials=trials_of(kept[index]),
                    options=group.options,
                )
            )
            for position, column in enumerate(columns):
                planned = study.seeds if study else _planned_seeds(column, group, usual=seeds[column])
                cells[index, position] = cell_of(column, score, group.on.get(column.benchmark, ()), planned)
    protocol, protocol_hash, backbone, checkpoint = sheet
    return Grid(
        protocol=protocol, protocol_hash=protocol_hash, backbone=backbone, checkpoint=checkpoint,
        rows=tuple(rows), columns=tuple(columns), cells=cells, members=kept,
    )  # fmt: skip


def _seeds_of(column: Column, group: Group) -> set[int]:
    """The seeds that its records have, and those that their sweeps planned besides."""
    here = [record.run for record in group.on.get(column.benchmark, ()) if column.holds(record.run)]
    return {run.seed for run in here} | {seed for run in here for seed in run.planned_seeds}


def _usual_seeds(column: Column, groups: Sequence[Group]) -> tuple[int, ...]:
    """The seeds of most rows: what older records, which do not say what was planned, are held against."""
    sets = [found for group in groups if (found := _seeds_of(column, group))]
    return tuple(seed for seed in sorted(set().union(*sets)) if 2 * sum(seed in one for one in sets) > len(sets))


def _planned_seeds(column: Column, group: Group, *, usual: Sequence[int]) -> tuple[int, ...]:
    """None where the row was not planned on this benchmark at all."""
    own = _seeds_of(column, group)
    here = [record.run for record in group.on.get(column.benchmark, ()) if column.holds(record.run)]
    if not here and not any(column.benchmark in record.run.planned_benchmarks for record in group.members):
        return ()
    if here and all(run.planned_seeds for run in here):
        return tuple(sorted(own))
    return tuple(sorted(own | set(usual)))


def cell_of(column: Column, score: str, members: Sequence[Record], seeds: Sequence[int]) -> GridCell:
    """What ``members``, records of one method configuration, say of one number."""
    values: dict[int, float] = {}
    codes: dict[int, str] = {}
    behind = []
    for record in members:
        run = record.run
        if run.seed not in seeds or not column.holds(run):
            continue
        behind.append(record)
        value = record.scores.get(score, {}).get(column.split, {}).get(column.metric) if record.code == "OK" else None
        if value is None or not math.isfinite(value):
            if run.seed not in values:
                codes[run.seed] = str(record.code) if record.code != "OK" else "NO_SCORE"
            continue
        if values.setdefault(run.seed, value) != value:
            codes[run.seed] = "CONFLICT"
        elif codes.get(run.seed) != "CONFLICT":
            codes.pop(run.seed, None)
    for seed in seeds:
        if seed not in values and seed not in codes:
            codes[seed] = MISSING
    return GridCell(values=values, codes=codes, records=tuple(behind))


def first_metrics(grid: Grid) -> list[int]:
    """The first column of every benchmark, split and manifest: one number each."""
    first: dict[tuple[str, str, str], int] = {}
    for place, column in enumerate(grid.columns):
        first.setdefault((column.benchmark, column.split, column.manifest), place)
    return list(first.values())


def one_each(grid: Grid, places: list[int]) -> list[int]:
    """One column a benchmark, so that none counts twice: all test images together, else what most rows have."""
    best: dict[str, int] = {}
    for place in places:
        name = grid.columns[place].benchmark
        best[name] = max(best.get(name, place), place, key=lambda one: _fitness(grid, one))
    return list(best.values())


def first_columns(grid: Grid) -> list[int]:
    """One column a benchmark that has runs: its first metric."""
    places = one_each(grid, first_metrics(grid))
    return [place for place in places if any(cell.values for cell in _below(grid, place))]


def _fitness(grid: Grid, place: int) -> tuple[bool, int, int, int]:
    cells = _below(grid, place)
    complete, filled = sum(cell.complete for cell in cells), sum(bool(cell.values) for cell in cells)
    return (grid.columns[place].split in ("all", "test"), complete, filled, -place)


def _below(grid: Grid, place: int) -> list[GridCell]:
    return [grid.cells[row, place] for row in range(len(grid.rows))]
