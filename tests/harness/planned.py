"""Plans on generated images under the protocol demo, as most tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.planning.plan import Plan, find, plan
from harness.planning.request import Job, PlannedRow, Request
from harness.planning.understand import split_overrides, with_options
from harness.protocols.load import load_protocol


def plan_of(results: Path, *rows: str | PlannedRow, samples: Path | None = None, **changes: Any) -> Plan:
    """Of methods, by name or with options, on Kvasir-SEG; ``changes`` are fields of the request, ``decoders`` (names), or else rules."""
    fields: dict[str, Any] = {name: changes.pop(name) for name in [*changes] if name in Request.__dataclass_fields__}
    decoders = changes.pop("decoders", ())
    rules, options = split_overrides(changes.pop("overrides", {}) | changes)
    made = with_options((row if isinstance(row, PlannedRow) else PlannedRow(method=row) for row in rows), options)
    name = fields.pop("protocol", "demo")
    fields["protocols"] = tuple(load_protocol(name, {**rules, "decoder": decoder}) for decoder in decoders)
    fields = {"rows": made, "benchmarks": ("kvasir",), "protocol": load_protocol(name, rules), **fields}
    return found_and_planned(Request(**fields, results=results), samples=samples)


def found_and_planned(request: Request, *, samples: Path | None = None) -> Plan:
    return plan(request, find(request, samples=samples))


def job_of(results: Path, method: str = "lora", options: dict[str, Any] | None = None, /, **changes: Any) -> Job:
    """The only job of such a plan."""
    (job,) = plan_of(results, PlannedRow(method=method, options=options or {}), **changes).jobs
    return job
