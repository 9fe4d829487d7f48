"""Every row of a table against a baseline: a difference for each benchmark, with intervals that hold for all rows at once.

The cost of a row is from a session of `sam-peft cost`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from harness.archive.archive import MISSING, STATES
from harness.archive.measured import CostRecord, MethodCost
from harness.comparison.differences import Difference, simultaneous
from harness.comparison.grid import Cell, Column, Grid
from harness.comparison.names import BASELINES, NOT_ADAPTED
from harness.comparison.rows import baseline_of
from harness.statistics import Ratio, paired_ratio
from harness.studies import Study
from harness.system.errors import UsageError, did_you_mean

Verdict = Literal["", "better", "not distinguishable", "worse"]
"""What an interval says of a row against the baseline; empty without an interval."""
PRIORS = {"pooled": math.inf, "shrunk": 4.0}
"""Spread -> degrees of freedom that the pooled variance has for each row (results/analysis/leaderboard/interval_coverage.py)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaderboard:
    """The rows of a table against one of them. Methods that take a benchmark also take the empty name, for the mean over `complete`.

    Args:
        spread: as in `harness.studies.TableLayout`.
    """

    grid: Grid
    baseline: str
    spread: Literal["pooled", "shrunk"] = "pooled"

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """Benchmark -> the column that is compared, of benchmarks on which a row has no run left to wait for."""
        cells = self.grid.cells.values()
        ended = {cell.column.benchmark for cell in cells if cell.planned and MISSING not in cell.codes.values()}
        return {name: column for name, column in self.grid.first_columns.items() if name in ended or not ended}

    def other_splits(self, benchmark: str) -> list[Column]:
        """The columns of its metric on parts of the test images, which do not decide the ranking."""
        first = self.columns[benchmark]
        alike = (benchmark, first.metric)
        return [each for each in self.grid.columns if (each.benchmark, each.metric) == alike and each != first]

    @cached_property
    def _ran(self) -> list[str]:
        return [row for row in self.grid.rows if self.grid.records_of(row)]

    @cached_property
    def complete(self) -> tuple[str, ...]:
        """Benchmarks on which the baseline has all its seeds, and more rows have all than began and lack some; means are over these, of
        rows that have all on each."""
        begun = {name: [row for row in self._ran if self.grid.records_of(row, name)] for name in self.columns}
        whole = {name: [row for row in rows if self.cell(row, name).complete] for name, rows in begun.items()}
        return tuple(name for name in begun if self.baseline in whole[name] and 2 * len(whole[name]) > len(begun[name]))

    @property
    def leading(self) -> str:
        """The benchmark that orders the rows; empty for the mean over benchmarks, where there are several."""
        return "" if len(self.complete) > 1 else next(iter(self.complete or self.columns))

    @cached_property
    def rows(self) -> list[str]:
        """The rows that have a run, best first; rows without the score that orders them come last."""
        if self.leading:
            first = self.on(self.leading)
            return [*first, *(row for row in self._ran if row not in first)]

        def rank(row: str) -> tuple[bool, float]:
            found, empty = self.difference(row), any(self.cell(row, name).empty for name in self.complete)
            return empty or (found is None and row != self.baseline), -found.mean if found else 0.0

        return sorted(self._ran, key=rank)

    def on(self, benchmark: str) -> list[str]:
        """The rows that were planned on a benchmark and have a run, best first by their scores, those with a gap last."""
        sign = self.columns[benchmark].sign

        def rank(row: str) -> tuple[bool, float]:
            cell = self.cell(row, benchmark)
            return not cell.complete or cell.empty, -sign * cell.mean if cell.values else 0.0

        return sorted((row for row in self._ran if self.cell(row, benchmark).planned), key=rank)

    def cell(self, row: str, benchmark: str) -> Cell:
        return self.grid.cells[row, self.columns[benchmark]]

    def difference(self, row: str, benchmark: str = "") -> Difference | None:
        """Row minus baseline with a simultaneous interval; without an interval where a run collapsed. None for the baseline and where one
        of the two has a gap."""
        return self._differences.get((row, benchmark))

    @cached_property
    def _differences(self) -> dict[tuple[str, str], Difference]:
        found: dict[tuple[str, str], Difference] = {}
        for name, column in self.columns.items():
            whole = [row for row in self._ran if self.cell(row, name).complete]
            for row in whole if self.baseline in whole else ():
                if row != self.baseline and (alone := self.grid.difference(row, self.baseline, column)):
                    found[row, name] = Difference(mean=alone.mean, low=None, high=None, n=alone.n)
            found |= {(row, name): each for row, each in self._simultaneous([name]).items()}
        for row in self._ran:
            known = [found[row, name] for name in self.complete if (row, name) in found]
            if known and len(known) == len(self.complete):
                mean, n = statistics.fmean(each.mean for each in known), min(each.n for each in known)
                found[row, ""] = Difference(mean=mean, low=None, high=None, n=n)
        return found | {(row, ""): each for row, each in self._simultaneous(self.complete).items()}

    def _simultaneous(self, benchmarks: Sequence[str]) -> dict[str, Difference]:
        """Row -> its difference in the mean over some benchmarks, of rows without a gap and without a collapsed run."""
        samples = []
        for name in benchmarks:
            cells = {row: self.cell(row, name) for row in self._ran}
            steady = [row for row, cell in cells.items() if cell.complete and not cell.collapsed]
            samples.append({row: self.grid.sample(row, self.columns[name]) for row in steady})
        together = simultaneous(samples, self.baseline, prior=PRIORS[self.spread])
        return {row: differences[-1] for row, differences in together.items()}

    def verdict(self, row: str, benchmark: str = "") -> Verdict:
        """Whether a row is better or worse than the baseline, by the interval of their difference; empty where nothing decides and where
        the masks of one of the two are almost empty."""
        found = self.difference(row, benchmark)
        columns = [self.columns[name] for name in ([benchmark] if benchmark else self.complete)]
        empty = any(self.grid.cells[name, column].empty for name in (row, self.baseline) for column in columns)
        if found is None or found.low is None or empty or not all(map(self.grid.decides, columns)):
            return ""
        return "not distinguishable" if found.is_none else "better" if found.mean > 0 else "worse"

    def state(self, row: str) -> str:
        """Who ran the row (`harness.archive.archive.STATES`), of its runs the least confirmed; empty where the folder does not say."""
        states = {self.grid.archive.state_of(record) for record in self.grid.records_of(row)}
        return next((state for state in STATES if state in states), "")

    def parameters(self, row: str, part: str = "encoder") -> int | None:
        """The number of trained parameters, in the encoder or in all (``trainable``); None without a run."""
        counts = [record.parameters[part] for record in self.grid.records_of(row) if part in record.parameters]
        return max(counts, default=None)

    @cached_property
    def session(self) -> CostRecord | None:
        """The session of the costs; None where no session measured these steps."""
        return session_for(self.grid, baseline=self.baseline)

    @cached_property
    def _costs(self) -> Mapping[str, MethodCost]:
        return costs_of(self.grid, self.session) if self.session else {}

    def ratio(self, row: str, of: Literal["time", "memory"]) -> Ratio | None:
        """Time or memory of a training step over the baseline's, from one cost session; None where it was not measured."""
        if row == self.baseline:
            return Ratio(1.0)
        costs = self._costs
        return ratios_to(costs[row], costs[self.baseline]).get(of) if row in costs else None

    def merges(self, row: str) -> str:
        """`MethodCost.merge_to` the smallest model of the session; empty where it was not measured."""
        if self.session is None or row not in self._costs:
            return ""
        plain = min((n for method in self.session.methods for n in method.inference_parameters.values()), default=0)
        return self._costs[row].merge_to(plain)


def leaderboards(tables: Iterable[Grid], study: Study | None = None, baseline: str = "") -> list[Leaderboard]:
    """Every table with runs against a baseline: the row of that name, else the study's, else the default one, else the first row.

    Raises:
        UsageError: no row is called ``baseline``.
    """
    tables = [grid for grid in tables if grid.records and grid.columns]
    names = {row for grid in tables for row in grid.rows}
    if baseline and baseline not in names:
        raise UsageError(f"no row is called {baseline!r}{did_you_mean(baseline, names)}")
    boards, spread = [], study.table.spread if study else "pooled"
    for grid in tables:
        ran = [row for row in grid.rows if grid.records_of(row)]
        methods = (*NOT_ADAPTED, *BASELINES) if grid.is_own else BASELINES
        usual = [row for method in methods for row in ran if grid.rows[row].method == method]
        wanted = [baseline, baseline_of(study) if study else "", *usual, *ran]
        boards.append(Leaderboard(grid=grid, baseline=next(row for row in wanted if row in ran), spread=spread))
    return boards


def session_for(grid: Grid, *, baseline: str) -> CostRecord | None:
    """The cost session of these rules on this backbone that measured the baseline and most of the other rows; among equals one that had the
    device for itself, and then the latest. Sessions are never mixed."""
    rules = [record.run.rules for record in grid.records]
    fitting = [
        (len(measured), not session.shared, session.finished, session.session, session)
        for session in grid.archive.costs
        if session.comparability.backbone == grid.backbone
        and any(map(session.comparability.is_step_of, rules))
        and baseline in (measured := costs_of(grid, session))
    ]
    return max(fitting, key=lambda candidate: candidate[:-1])[-1] if fitting else None


def costs_of(grid: Grid, session: CostRecord) -> dict[str, MethodCost]:
    """Row -> the session's cost of the same configuration."""
    measured = {}
    for name, row in grid.rows.items():
        configs = [record.run.method_config for record in grid.records_of(name) if record.code == "OK"]
        for cost in session.methods if configs else ():
            if cost.is_step_of(row.method, configs[0]) and cost.step_seconds.get("total"):
                measured[name] = cost
    return measured


def ratios_to(method: MethodCost, baseline: MethodCost) -> dict[str, Ratio]:
    """``time`` and ``memory`` of a method over a baseline of the same session, as far as both have them."""
    ratios = {}
    rounds, base_rounds = (cost.step_seconds.get("total", []) for cost in (method, baseline))
    if rounds and len(rounds) == len(base_rounds):
        ratios["time"] = paired_ratio(rounds, base_rounds)
    memory, base = (cost.memory_bytes.get("allocated", 0) for cost in (method, baseline))
    if memory and base:
        ratios["memory"] = Ratio(memory / base)
    return ratios
