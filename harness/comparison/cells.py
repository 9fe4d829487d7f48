"""Columns of a table, and what stands in one cell."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness import statistics as stats
from harness.archive.archive import MISSING
from harness.archive.schema import Record
from harness.comparison.names import Metric, metric
from harness.protocols.keys import content_hash, hashed_rules

ALL = "all"
"""The split of all test images, where a benchmark has several test splits."""

CONFLICT = "CONFLICT"
"""The code of runs that are not of one kind: one seed has two scores, or the rules differ, as where some runs have a tuned
``decoder_lr``."""

COLLAPSE = 0.2
"""A run that scores this much below the median of its row has collapsed. It stays in the mean and is marked. Its row is not
compared with the best, and has no interval on a leaderboard."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Benchmark, test split and metric. ``title``: of the benchmark; ``part``: what titles say of the split; ``note``: on its data."""

    benchmark: str
    split: str
    metric: str
    title: str = ""
    part: str = ""
    note: str = ""

    @cached_property
    def measure(self) -> Metric:
        return metric(self.metric)

    @property
    def sign(self) -> int:
        """The factor of a score that makes higher better."""
        return self.measure.sign

    @property
    def name(self) -> str:
        """``Trans10K-v1 easy mIoU``"""
        return " ".join(filter(None, [self.title, self.part, self.measure.title]))

    def parts(self, record: Record) -> list[str]:
        """The test splits of a record whose images it holds."""
        return list(record.tested) if self.split == ALL else [self.split]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The scores of a row on a column.

    Args:
        values: seed -> score in [0, 1] of runs that ended well.
        codes: seed -> why there is no score, or why it does not count.
        blank: whether the masks of a run are almost empty: their mean foreground is below a tenth of the true masks'.
        test_share: images tested over images trained on where every seed has its own split, else 0.
    """

    row: str
    column: Column
    values: Mapping[int, float]
    codes: Mapping[int, str]
    blank: bool = False
    test_share: float = 0.0

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
        """The reasons of a gap."""
        return "/".join(sorted(set(self.codes.values())))

    @property
    def by_seed(self) -> list[float]:
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
        return stats.sd(self.by_seed)

    @property
    def interval(self) -> stats.Interval | None:
        """Student's 95 % interval over the seeds, or that of folds where every seed has its own split; None for a single run."""
        return stats.of_folds(self.by_seed, test_share=self.test_share).interval() if self.values else None

    @cached_property
    def collapsed(self) -> bool:
        """Whether one of its runs scores more than `COLLAPSE` below their median; never for an NLL, which has no scale from 0 to 1."""
        if self.n < 2 or self.column.metric == "nll":
            return False
        scores = [self.column.sign * value for value in self.by_seed]
        return statistics.median(scores) - min(scores) > COLLAPSE


def outcome(runs: Sequence[Record], column: Column, model: str) -> tuple[float | None, str, Record | None]:
    """What the runs of one row and seed give a cell: the score; OK, or why there is none or it does not count; and the run that it is
    of. A run that ended well counts before one that failed."""
    ended = [record for record in runs if record.code == "OK"]
    scored = []
    for record in ended:
        value = record.scores.get(model, {}).get(column.split, {}).get(column.metric)
        if value is not None and math.isfinite(value):
            scored.append((value, record))
    if scored:
        value, record = scored[0]
        return value, "OK" if all(other == value for other, _ in scored) else CONFLICT, record
    if not runs:
        return None, MISSING, None
    return None, "NO_SCORE" if runs[-1].code == "OK" else str(runs[-1].code), (ended or list(runs))[0]


def under_other_rules(records: Sequence[Record]) -> set[int]:
    """The seeds of a cell whose runs have other rules than most, or than any other where no rules are the most frequent; none where some
    rules have every seed. Rules that change no number do not count, nor does which fold of the data is a seed's."""
    kinds: list[str] = []
    for run in (record.run for record in records):
        folds = run.rules.get("split_follows_seed")
        rules = {name: value for name, value in run.rules.items() if not (folds and name == "split_seed")}
        kinds.append(content_hash(hashed_rules(rules)))
    seeds = {kind: {r.run.seed for r, own in zip(records, kinds, strict=True) if own == kind} for kind in kinds}
    everywhere = {record.run.seed for record in records}
    if not records or everywhere in seeds.values():
        return set()
    (first, most), *others = Counter(kinds).most_common()
    led = most > others[0][1]
    return {r.run.seed for r, kind in zip(records, kinds, strict=True) if not led or kind != first}
