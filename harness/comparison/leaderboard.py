"""Every row of a table against a baseline: a number for each benchmark, with intervals that hold for all rows at once.

The cost of a row is from a session of `sam-peft cost`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.archive.measured import CostRecord, MethodCost, Ratio
from harness.comparison.frames import plain_values
from harness.comparison.grid import Grid
from harness.comparison.scores import Cell, Column, Difference, simultaneous
from harness.protocols.keys import hashed_options
from harness.statistics import t_interval


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One row.

    Args:
        cells: benchmark -> its score.
        differences: benchmark -> row minus baseline with a simultaneous interval; without an interval where a run collapsed.
        mean: of the differences over `Leaderboard.complete`; None where the row lacks one of them, or there are none.
        encoder: trained parameters in the encoder; None without a run.
        time, memory: of a training step over the baseline's, from one cost session; None where it was not measured.
        merges: ``exact`` or ``calibrated``: the merge after which nothing of the method is left; ``not needed`` where the method adds
            nothing; ``no``; empty where it was not measured.
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


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The rows, best first.

    Args:
        columns: benchmark -> the column that is compared.
        complete: benchmarks on which every row with a run has all its seeds; means are over these.
        session: the session of the costs; None where no session measured these steps.
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
            if grid.cells[row, column].complete and not grid.cells[row, column].collapsed
        }
        for name, column in columns.items()
    }
    intervals = {name: simultaneous([steady[name]], baseline) for name in columns if steady[name]}
    means = simultaneous([steady[name] for name in complete], baseline) if complete else {}
    session = session_for(grid, baseline=baseline)
    costs = costs_of(grid, session) if session else {}
    standings = []
    for row in grid.rows:
        differences = {}
        for name, column in columns.items():
            is_whole = row != baseline and grid.cells[row, column].complete
            if row in intervals.get(name, {}):
                differences[name] = intervals[name][row][0]
            elif is_whole and (alone := grid.difference(row, baseline, column)):
                differences[name] = Difference(mean=alone.mean, low=None, high=None, n=alone.n)
        mean = means[row][-1] if row in means else None
        if mean is None and row != baseline and complete and all(name in differences for name in complete):
            over = [differences[name] for name in complete]
            mean = Difference(
                mean=statistics.fmean(each.mean for each in over), low=None, high=None, n=min(each.n for each in over)
            )
        counts = [r.parameters["encoder"] for r in grid.records_of(row) if "encoder" in r.parameters]
        ratios = ratios_to(costs[row], costs[baseline]) if row in costs and row != baseline else {}
        standings.append(
            Standing(
                row=row, method=grid.rows[row].method, cells={name: grid.cells[row, column] for name, column in columns.items()},
                differences=differences, mean=mean, encoder=max(counts, default=None), time=ratios.get("time"),
                memory=ratios.get("memory"), merges=_merges(costs[row], session) if row in costs and session else "",
            )
        )  # fmt: skip

    def rank(standing: Standing) -> tuple[bool, float]:
        if standing.row == baseline:
            return False, 0.0
        known = (standing.differences[name] for name in (*complete, *columns) if name in standing.differences)
        difference = standing.mean or next(known, None)
        return difference is None, -difference.mean if difference else 0.0

    standings.sort(key=rank)
    return Leaderboard(
        grid=grid, baseline=baseline, columns=columns, complete=complete, standings=tuple(standings), session=session
    )


def _merges(cost: MethodCost, session: CostRecord) -> str:
    if not (own := cost.inference_parameters.get("unmerged")):
        return ""
    plain = min(count for method in session.methods for count in method.inference_parameters.values())
    if own <= plain:
        return "not needed"
    merged = {mode: cost.inference_parameters.get(f"merged-{mode}", 0) for mode in ("exact", "calibrated")}
    return next((mode for mode, count in merged.items() if 0 < count <= plain), "no")


FREE = {"lr", "alpha_lr", "encoder_lr", "alpha_weight_decay"}
"""Options that do not change the cost of a step."""
OF_A_STEP = (
    *("epochs", "optimizer", "fused_attention", "activation_checkpointing"),
    *("cache_embeddings", "accumulate", "decoder", "mask_tokens"),
)
"""Rules that change the cost of a step, apart from size, batch and precision."""
PLAIN: Mapping[str, object] = {"accumulate": 1, "decoder": "sam"}
"""The values of a session, or of an older record, that does not name these rules."""


def session_for(grid: Grid, *, baseline: str) -> CostRecord | None:
    """The cost session of these rules on this backbone that measured the baseline and most of the other rows; of equals one that had the
    device for itself, and then the latest. Sessions are never mixed."""
    rules = [record.run.rules for record in grid.records]
    fitting = [
        (len(measured), not session.shared, session.finished, session.session, session)
        for session in grid.archive.costs
        if session.comparability.backbone == grid.backbone
        and any(_same_rules(session, of_run) for of_run in rules)
        and baseline in (measured := costs_of(grid, session))
    ]
    return max(fitting, key=lambda candidate: candidate[:-1])[-1] if fitting else None


def _same_rules(session: CostRecord, rules: Mapping[str, object]) -> bool:
    """Whether a session measured the step of these rules; rules that a record does not hold count as equal."""
    setup = session.comparability
    options = {name: value for name, value in setup.options.items() if name in OF_A_STEP}
    measured = {
        "image_size": setup.image_size, "precision": setup.precision, "batch_size": setup.batch, **PLAIN, **options,
    }  # fmt: skip
    return all({**PLAIN, **rules}.get(name, value) == value for name, value in measured.items())


def costs_of(grid: Grid, session: CostRecord) -> dict[str, MethodCost]:
    """Row -> the session's cost of the same configuration."""
    measured = {}
    for name, row in grid.rows.items():
        configs = [record.run.method_config for record in grid.records_of(name) if record.code == "OK"]
        options = _of_a_step(row.method, configs[0]) if configs else None
        for cost in session.methods:
            is_row = cost.method == row.method and _of_a_step(cost.method, cost.config) == options
            if is_row and cost.step_seconds.get("total"):
                measured[name] = cost
    return measured


def _of_a_step(method: str, config: Mapping[str, object]) -> dict[str, object]:
    """The options that change the cost of a step, as JSON holds them."""
    return {name: value for name, value in plain_values(hashed_options(method, config)).items() if name not in FREE}


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Geometric mean of the per-round ratios, with a 95 % t interval of their logarithms (none for a single round)."""
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    interval = t_interval(logs)
    low, high = (math.exp(interval.low), math.exp(interval.high)) if interval else (None, None)
    return Ratio(value=math.exp(statistics.fmean(logs)), low=low, high=high, rounds=len(logs))


def ratios_to(method: MethodCost, baseline: MethodCost) -> dict[str, Ratio]:
    """``time`` and ``memory`` of a method over a baseline of the same session, as far as both have them."""
    ratios = {}
    rounds, base_rounds = (cost.step_seconds.get("total", []) for cost in (method, baseline))
    if rounds and len(rounds) == len(base_rounds):
        ratios["time"] = paired_ratio(rounds, base_rounds)
    memory, base = (cost.memory_bytes.get("allocated", 0) for cost in (method, baseline))
    if memory and base:
        ratios["memory"] = Ratio(value=memory / base)
    return ratios
