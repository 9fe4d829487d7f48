"""A cost session as tidy rows for CSV: one number a row, in SI units (seconds, bytes, FLOP, joules)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from statistics import median

from harness.archive.cost import CostRecord, MethodCost

COLUMNS = (
    *(
        "quantity",
        "part",
        "unit",
        "comparability_key",
        "session",
        "device",
        "backbone",
        "image_size",
        "batch",
        "precision",
    ),
    *("exclusive", "row", "method", "options", "against", "n", "value", "low", "high"),
)


def cost_numbers(session: CostRecord) -> list[dict[str, str]]:
    """Medians over rounds with their quartiles as ``low`` and ``high``; ratios with their 95 % interval."""
    shown = session.comparability
    place = {
        "comparability_key": session.key,
        "session": session.session,
        "device": shown.device,
        "backbone": shown.backbone,
        "image_size": str(shown.image_size),
        "batch": str(shown.batch),
        "precision": shown.precision,
        "exclusive": "no" if session.shared else "yes",
    }
    found = []
    for method in session.methods:
        config = json.dumps(method.config, sort_keys=True)
        row = {**place, "row": method.variant, "method": method.method, "options": config}
        found += [{**row, **number} for number in _of_method(method)]
    return [{name: number.get(name, "") for name in COLUMNS} for number in found]


def _of_method(method: MethodCost) -> Iterator[dict[str, str]]:
    for part, seconds in method.step_seconds.items():
        yield _rounds("training step", part, seconds)
    for model, seconds in method.inference_seconds.items():
        yield _rounds("inference", model, seconds)
    single = (
        ("training memory", "byte", method.memory_bytes),
        ("inference memory", "byte", method.inference_memory_bytes),
        ("training FLOPs", "FLOP", method.flops),
        ("parameters", "1", method.parameters),
        ("inference parameters", "1", method.inference_parameters),
    )
    for quantity, unit, values in single:
        for part, value in values.items():
            yield {"quantity": quantity, "part": part, "unit": unit, "n": "1", "value": f"{value:.10g}"}
    if method.joules is not None:
        yield {"quantity": "training energy", "part": "step", "unit": "J", "n": "1", "value": f"{method.joules:.6g}"}
    for baseline, ratios in method.ratios.items():
        for quantity, ratio in ratios.items():
            bounds = {
                name: f"{value:.6g}" for name, value in (("low", ratio.low), ("high", ratio.high)) if value is not None
            }
            number = {"quantity": "ratio", "part": quantity, "unit": "1", "against": baseline, "n": str(ratio.rounds)}
            yield {**number, "value": f"{ratio.value:.6g}", **bounds}


def _rounds(quantity: str, part: str, seconds: Sequence[float]) -> dict[str, str]:
    number = {"quantity": quantity, "part": part, "unit": "s", "n": str(len(seconds))}
    if not seconds:
        return number
    ordered = sorted(seconds)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
    return {**number, "value": f"{median(ordered):.6g}", "low": f"{low:.6g}", "high": f"{high:.6g}"}
