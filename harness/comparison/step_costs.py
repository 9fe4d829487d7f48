"""Which session of `sam-peft cost` measured the training steps of a grid's rows, and what it measured of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from harness.archive.measured import CostRecord, MethodCost, Ratio
from harness.comparison.frames import plain_values
from harness.comparison.grid import Grid
from harness.protocols.keys import hashed_options
from harness.statistics import t_interval

FREE = {"lr", "alpha_lr", "encoder_lr", "alpha_weight_decay"}
"""Options that change no step's cost."""
OF_A_STEP = (
    *("epochs", "optimizer", "fused_attention", "batched_decoder", "fused_cell", "activation_checkpointing"),
    *("cache_embeddings", "accumulate", "decoder", "mask_tokens"),
)
"""Rules, beside size, batch and precision, that change what a step costs."""
PLAIN: Mapping[str, object] = {"accumulate": 1, "decoder": "sam"}
"""What a session, or an older record, was made with that does not name these."""


def session_for(grid: Grid, *, baseline: str) -> CostRecord | None:
    """The cost session of these rules on this backbone that measured the baseline row and most of the others, the
    latest of equals; sessions are never mixed."""
    rules = [record.run.rules for record in grid.records]
    fitting = [
        (len(measured), session.finished, session.session, session)
        for session in grid.archive.costs
        if session.comparability.backbone == grid.backbone
        and any(_same_rules(session, of_run) for of_run in rules)
        and baseline in (measured := costs_of(grid, session))
    ]
    return max(fitting, key=lambda found: found[:3])[3] if fitting else None


def _same_rules(session: CostRecord, rules: Mapping[str, object]) -> bool:
    """Whether it measured the step that these runs took; fields that a record does not know count as equal."""
    place = session.comparability
    told = {name: value for name, value in place.options.items() if name in OF_A_STEP}
    measured = {
        "image_size": place.image_size, "precision": place.precision, "batch_size": place.batch, **PLAIN, **told,
    }  # fmt: skip
    return all({**PLAIN, **rules}.get(name, value) == value for name, value in measured.items())


def costs_of(grid: Grid, session: CostRecord) -> dict[str, MethodCost]:
    """Row -> what the session measured of that very configuration."""
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
    """The options that change what a step costs, as JSON has them."""
    return {name: value for name, value in plain_values(hashed_options(method, config)).items() if name not in FREE}


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Geometric mean of the per-round ratios, with a 95 % t interval of their logarithms (none for a single round)."""
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    interval = t_interval(logs)
    low, high = (math.exp(interval.low), math.exp(interval.high)) if interval else (None, None)
    return Ratio(value=math.exp(statistics.fmean(logs)), low=low, high=high, rounds=len(logs))


USUAL_BASELINES = ("full", "lora")
"""What sessions are held against, unless one is asked for others."""


def ratios_to(method: MethodCost, baseline: MethodCost, *, longer: float | None) -> dict[str, Ratio]:
    """``time``, ``memory``, ``flops`` and ``device_hours`` of a method over a baseline of the same session, as far
    as both have them.

    Args:
        longer: steps of a whole training over the baseline's, which ``device_hours`` count; None where they are not
            known.
    """
    ratios = {}
    rounds, base_rounds = (cost.step_seconds.get("total", []) for cost in (method, baseline))
    if rounds and len(rounds) == len(base_rounds):
        ratios["time"] = time = paired_ratio(rounds, base_rounds)
        if longer is not None:
            low, high = (bound and bound * longer for bound in (time.low, time.high))
            ratios["device_hours"] = Ratio(value=time.value * longer, low=low, high=high, rounds=time.rounds)
    memory = [cost.memory_bytes.get("allocated", 0) for cost in (method, baseline)]
    flops = [cost.flops.get("forward", 0.0) + cost.flops.get("backward", 0.0) for cost in (method, baseline)]
    for name, (value, base) in (("memory", memory), ("flops", flops)):
        if value and base:
            ratios[name] = Ratio(value=value / base)
    return ratios


def ratios_within(method: MethodCost, baseline: MethodCost) -> dict[str, Ratio]:
    """The ratios that the session stored; where it was not asked for this baseline, those of its rounds."""
    return method.ratios.get(baseline.variant) or ratios_to(method, baseline, longer=None)
