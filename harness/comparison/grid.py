"""A table of scores: its frame, the pivot of it by row and column, marks and differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.archive.files import rounding
from harness.archive.schema import Record
from harness.comparison.differences import Difference, RowScores, StemScores
from harness.comparison.names import metric_title, sign
from harness.studies import Row

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
"""The split of all test images, where a benchmark has several test splits."""

CONFLICT = "CONFLICT"
"""The code of runs that are not of one kind: one seed has two scores, or the rules differ, as where some runs have a tuned
``decoder_lr``."""

COLLAPSE = 0.2
"""A run that scores this much below the median of its row has collapsed. It stays in the mean and is marked. Its row is not
compared with the best, and has no interval on a leaderboard."""

DECIMALS = 1
"""Decimals of a printed score in percent; rows that tie in them are both best."""

Mark = Literal["", "best", "tied"]
"""Best of its column, or not significantly different from the best."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Benchmark, test split and metric. ``title``, ``note``: of the benchmark and its data; ``split_title``: of the split."""

    benchmark: str
    split: str
    metric: str
    title: str = ""
    split_title: str = ""
    note: str = ""

    @property
    def sign(self) -> int:
        """The factor of a score that makes higher better."""
        return sign(self.metric)

    @property
    def name(self) -> str:
        """``Trans10K-v1 easy mIoU``"""
        return " ".join(filter(None, [self.title, self.split_title, metric_title(self.metric)]))

    def splits_of(self, record: Record) -> list[str]:
        """The test splits of a record whose images it holds."""
        return list(record.tested) if self.split == ALL else [self.split]

    def images_of(self, record: Record) -> int:
        """The number of test images behind a record's score in this column."""
        return sum(record.tested.get(split, 0) for split in self.splits_of(record))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The scores of a row on a column.

    Args:
        values: seed -> score in [0, 1] of runs that ended well.
        codes: seed -> why there is no score, or why it does not count.
        empty: whether the masks of a run are almost empty: their mean foreground is below a tenth of the true masks'.
    """

    row: str
    column: Column
    values: Mapping[int, float]
    codes: Mapping[int, str]
    empty: bool = False

    @property
    def planned(self) -> tuple[int, ...]:
        """The planned seeds; empty where this row was not planned on this benchmark."""
        return tuple(sorted(self.values.keys() | self.codes.keys()))

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a score which counts."""
        return sorted(self.values.keys() - self.codes.keys())

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.codes

    @property
    def code(self) -> str:
        """The reasons for a gap."""
        return "/".join(sorted(set(self.codes.values())))

    @property
    def flags(self) -> tuple[str, ...]:
        """What a table prints after its mean."""
        return ("EMPTY",) * self.empty + ("COLLAPSED",) * self.collapsed

    @property
    def scores(self) -> list[float]:
        """In the order of the seeds."""
        return [self.values[seed] for seed in sorted(self.values)]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over seeds, in [0, 1]; tables do not show it where there is a gap."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def sd(self) -> float | None:
        """With ddof = 1; None for a single run."""
        return stats.sd(self.scores)

    @cached_property
    def collapsed(self) -> bool:
        """Whether one of its runs scores more than `COLLAPSE` below their median; never for an NLL, which is not bounded by 1."""
        if self.n < 2 or self.column.metric == "nll":
            return False
        scores = [self.column.sign * value for value in self.scores]
        return statistics.median(scores) - min(scores) > COLLAPSE


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """One table of scores.

    Args:
        title: protocol, backbone, and how its rules differ from the protocol's and from those of other tables of the page.
        protocol, protocol_hash, backbone, checkpoint: what its runs share; for a study the hash of most of them.
        overrides: how its rules differ from the protocol's, in words; None where the protocol is not known.
        rows: by name, in order; a row of a study may have no run.
        columns: in order.
        scores: a line for each seed of each cell, planned or run: the columns `TIDY`, and empty (`Cell`). ``model`` is the one
            that is scored; ``code`` is OK, or why there is no value; ``protocol_hash`` and ``manifest`` are those of the run.
        runs: its runs, as `harness.comparison.rows.rows` gives them.
    """

    title: str
    protocol: str
    protocol_hash: str
    backbone: str
    checkpoint: str
    overrides: str | None
    rows: Mapping[str, Row]
    columns: tuple[Column, ...]
    scores: pd.DataFrame
    runs: pd.DataFrame
    archive: Archive
    _samples: dict[tuple[str, Column], RowScores] = field(default_factory=dict, init=False)

    @cached_property
    def cells(self) -> Mapping[tuple[str, Column], Cell]:
        """The pivot of its scores: (row, column) -> cell."""
        found: dict[tuple[str, ...], list[Any]] = {}
        for line in self.scores.to_dict("records"):
            found.setdefault(tuple(line[name] for name in CELL), []).append(line)
        cells = {}
        for column in self.columns:
            for row in self.rows:
                lines = found.get((row, column.benchmark, column.split, column.metric), [])
                cells[row, column] = Cell(
                    row=row, column=column,
                    values={line["seed"]: line["value"] for line in lines if not math.isnan(line["value"])},
                    codes={line["seed"]: line["code"] for line in lines if line["code"] != "OK"},
                    empty=any(line["empty"] for line in lines),
                )  # fmt: skip
        return cells

    @cached_property
    def records(self) -> list[Record]:
        """All records in the order of their keys."""
        unique = {record.key: record for record in self.runs["record"] if record is not None}
        return [unique[key] for key in sorted(unique)]

    def records_of(self, row: str, benchmark: str = "") -> list[Record]:
        """The records of one row, on all benchmarks or on one."""
        return [record for record in self._by_row.get(row, ()) if benchmark in ("", record.run.benchmark)]

    def finished(self, row: str, benchmark: str) -> list[Record]:
        return [record for record in self.records_of(row, benchmark) if record.code == "OK"]

    @cached_property
    def _by_row(self) -> dict[str, list[Record]]:
        there = self.runs[self.runs["record"].notna()]
        return {str(row): list(here) for row, here in there.groupby("row")["record"]}

    @property
    def rules(self) -> Mapping[str, Any]:
        """The rules of its first run. The runs of a table share them, except for rules that a protocol sets for one benchmark."""
        return self.records[0].run.rules if self.records else {}

    @cached_property
    def is_generated(self) -> bool:
        """Whether all of its images are generated, so that no row is ranked."""
        return all(map(self.generated_on, self.first_columns))

    def generated_on(self, benchmark: str) -> bool:
        """Whether images of a benchmark are generated, so that no row is ranked there."""
        return any(run.is_generated for run in self.runs.loc[self.runs["benchmark"] == benchmark, "run"])

    @property
    def is_own(self) -> bool:
        """Whether its images are the user's own."""
        return bool(self.records) and all(record.run.rule("own_classes") for record in self.records)

    def decides(self, column: Column) -> bool:
        """Whether a column says which row is better: not of generated images, nor of too few seeds or test images of the user's own."""
        seeds = [cell.n for row in self.rows if (cell := self.cells[row, column]).complete]
        few = min(seeds, default=0) < LEAST_SEEDS or self.images_on(column) < LEAST_IMAGES
        return not self.generated_on(column.benchmark) and not (self.is_own and few)

    def images_on(self, column: Column) -> int:
        """The number of test images of a column."""
        return max((column.images_of(r) for r in self.records if r.run.benchmark == column.benchmark), default=0)

    @cached_property
    def first_columns(self) -> dict[str, Column]:
        """Benchmark -> its leading column: the first metric, on all test images where there are several splits."""
        whole = sorted(self.columns, key=lambda column: column.split not in ("all", "test"))
        names = dict.fromkeys(column.benchmark for column in self.columns)
        return {name: next(column for column in whole if column.benchmark == name) for name in names}

    def sample(self, row: str, column: Column) -> RowScores:
        """The scores of a row on a column by seed and image, read once; a seed with conflicting records is left out."""
        if (row, column) in self._samples:
            return self._samples[row, column]
        cell, scale = self.cells[row, column], 100 * column.sign
        images: dict[int, StemScores] = {}
        clusters: dict[str, str] = {}
        (model,), records = self.rows[row].scores, self.records_of(row, column.benchmark)
        share = max((_test_share(record, column) for record in records), default=0.0)
        for record in records if not share else ():
            read = self.archive.image_table(record, model, column.split) if record.code == "OK" else None
            scores = read.scores.get(column.metric) if read and record.run.seed in cell.seeds else None
            if read is None or scores is None:
                continue
            if abs(scores.mean() - cell.values[record.run.seed]) <= rounding(scores):
                images[record.run.seed] = (read.stems, scale * scores)
                clusters.update(read.clusters)
        by_seed = {seed: scale * cell.values[seed] for seed in cell.seeds}
        made = RowScores(by_seed=by_seed, images=images, clusters=clusters, test_share=share)
        return self._samples.setdefault((row, column), made)

    def difference(self, row: str, baseline: str, column: Column) -> Difference | None:
        """Row minus baseline, paired by seed and image; None if they have no seed in common."""
        return self.sample(row, column).minus(self.sample(baseline, column))

    def mean_difference(self, row: str, baseline: str) -> Difference | None:
        """Row minus baseline in the mean over the benchmarks' leading columns; None where one of the two has a gap."""
        columns = self.first_columns.values()
        known = [self.difference(row, baseline, column) for column in columns]
        estimates = [each.estimate for each in known if each and each.estimate]
        whole = all(self.cells[name, column].complete for name in (row, baseline) for column in columns)
        return Difference.of(stats.average_of(estimates)) if whole and len(estimates) == len(known) else None

    def best_first(self, column: Column) -> list[str]:
        """The ranked rows, best first: those with at least two seeds, without gaps and without empty masks.

        They are ordered by how many others each is ahead of on common seeds, then by mean. By the mean alone, a row that misses a
        seed which is bad for all would lead.
        """
        cells = {row: self.cells[row, column] for row in self.rows}
        cells = {row: cell for row, cell in cells.items() if cell.complete and cell.n > 1 and not cell.empty}

        def rank(row: str) -> tuple[int, float]:
            cell, ahead = cells[row], 0
            for other in cells.values():
                common = cell.values.keys() & other.values.keys()
                ahead += math.fsum(column.sign * (cell.values[seed] - other.values[seed]) for seed in common) > 0
            return -ahead, -column.sign * cell.mean

        return sorted(cells, key=rank)

    @cached_property
    def marks(self) -> dict[tuple[str, Column], Mark]:
        """Marks of the best row of each column, and of rows that are not significantly different from it. Rows of the same seeds that
        tie in the printed digit are both best. A row with a collapsed run has no interval, so it is not compared. A column has no
        marks where fewer than two rows rank, where a row with a gap leads or ties, and where it decides nothing."""
        marks: dict[tuple[str, Column], Mark] = {}
        for column in filter(self.decides, self.columns):
            order = self.best_first(column)
            if len(order) < 2 or self._is_open(order, column):
                continue
            first = self.cells[order[0], column]
            for row in order:
                cell = self.cells[row, column]
                printed = [round(100 * each.mean, DECIMALS) for each in (cell, first)]
                if cell.values.keys() == first.values.keys() and printed[0] == printed[1]:
                    marks[row, column] = "best"
                elif cell.collapsed or first.collapsed:
                    continue
                elif (difference := self.difference(row, order[0], column)) is None or difference.is_none:
                    marks[row, column] = "tied"
        return marks

    def _is_open(self, order: Sequence[str], column: Column) -> bool:
        """Whether a row that does not rank, such as for a missing seed, leads or ties with the first that does, on two common seeds or
        more."""
        first = self.cells[order[0], column]
        for row in self.rows:
            cell = self.cells[row, column]
            if row in order or cell.empty or len(cell.values.keys() & first.values.keys()) < 2:
                continue
            difference = self.difference(row, order[0], column)
            if difference and (difference.is_none or difference.mean > 0):
                return True
        return False

    def tidy(self) -> pd.DataFrame:
        """Its scores for a file. No two lines of frames that are put together are alike but for their value: the rules, the checkpoint and
        the split of the data are in them."""
        empty = self.scores.groupby(CELL, sort=False)["empty"].transform("any")
        code = self.scores["code"].mask((self.scores["code"] == "OK") & empty, "EMPTY")
        return self.scores.assign(code=code)[TIDY]


def _test_share(record: Record, column: Column) -> float:
    """Images tested over images trained on where every seed has its own split, else 0."""
    trained = record.counts.get("train") if record.run.rule("split_follows_seed") else 0
    return column.images_of(record) / trained if trained else 0.0


LEAST_SEEDS, LEAST_IMAGES = 3, 30
"""With fewer, a table of own images only says what is higher on these images."""
CELL = ["row", "benchmark", "split", "metric"]
"""What a cell is of: columns of `Grid.scores`."""
TIDY = [
    "row", "method", "model", "options", "backbone", "protocol", "benchmark", "split", "seed", "metric", "value", "code",
    "protocol_hash", "checkpoint", "manifest",
]  # fmt: skip
"""Columns of `Grid.tidy`."""
