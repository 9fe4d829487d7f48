"""Which session of `sam-peft cost` measured the training steps of a grid's rows, and what it measured of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from harness.archive.measured import CostRecord, MethodCost, Ratio
from harness.archive.schema import hashed_options
from harness.comparison.cells import Grid
from harness.comparison.rows import Row, plain_values
from harness.statistics import t_interval

FREE = {"lr", "alpha_lr", "encoder_lr", "alpha_weight_decay"}
"""Options that change no step's cost."""
OF_A_STEP = (
    *(
        "epochs",
        "optimizer",
        "fused_attention",
        "batched_decoder",
        "fused_cell",
        "activation_checkpointing",
        "cache_embeddings",
    ),
    *("accumulate", "decoder", "mask_tokens", "quantise"),
)
"""Rules, beside size, batch and precision, that change what a step costs."""
PLAIN: Mapping[str, object] = {"accumulate": 1, "decoder": "sam", "quantise": ""}
"""What a session, or an older record, was made with that does not name these."""


def session_for(grid: Grid, *, beside: Row | None = None) -> CostRecord | None:
    """The cost session of these rules on this backbone with most of the rows, the latest of equals; sessions are never mixed. ``beside``:
    a row that it must have measured, where others are held against it."""
    rules = [record.run.rules for record in grid.records]
    fitting = [
        session
        for session in grid.archive.costs
        if session.comparability.backbone == grid.sheet.backbone
        and any(_same_rules(session, of_run) for of_run in rules)
        and (beside is None or beside in costs_of(grid, session))
    ]
    return max(
        fitting, key=lambda session: (len(costs_of(grid, session)), session.finished, session.session), default=None
    )


def _same_rules(session: CostRecord, rules: Mapping[str, object]) -> bool:
    """Whether it measured the step that these runs took; fields that a record does not know count as equal."""
    place = session.comparability
    told = {name: value for name, value in place.options.items() if name in OF_A_STEP}
    measured = {
        "image_size": place.image_size, "precision": place.precision, "batch_size": place.batch, **PLAIN, **told,
    }  # fmt: skip
    return all({**PLAIN, **rules}.get(name, value) == value for name, value in measured.items())


def costs_of(grid: Grid, session: CostRecord) -> dict[Row, MethodCost]:
    """Row -> what the session measured of that very configuration."""
    measured = {}
    for row in grid.rows:
        finished = [record for record in row.runs if record.code == "OK"]
        options = _of_a_step(finished[0].run.method_config) if finished else None
        for cost in session.methods:
            if cost.method == row.method and cost.step_seconds.get("total") and _of_a_step(cost.config) == options:
                measured[row] = cost
    return measured


def _of_a_step(config: Mapping[str, object]) -> dict[str, object]:
    """The options that change what a step costs, as JSON has them."""
    return {name: value for name, value in plain_values(hashed_options(config)).items() if name not in FREE}


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Geometric mean of the per-round ratios, with a 95 % t interval of their logarithms (none for a single round)."""
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    interval = t_interval(logs)
    low, high = (math.exp(interval.low), math.exp(interval.high)) if interval else (None, None)
    return Ratio(value=math.exp(statistics.fmean(logs)), low=low, high=high, rounds=len(logs))
