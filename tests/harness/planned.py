"""Plans on generated images under the protocol demo, as most tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.planning.data import sample_writer
from harness.planning.plan import Plan, plan
from harness.planning.request import Job, PlannedRow, Request, split_overrides, with_options


def plan_of(results: Path, *rows: str | PlannedRow, samples: Path | None = None, **changes: Any) -> Plan:
    """Of methods, by name or with options, on Kvasir-SEG; ``changes`` are fields of the request, or else rules."""
    fields = {name: changes.pop(name) for name in [*changes] if name in Request.__dataclass_fields__}
    rules, options = split_overrides({**changes, **fields.pop("overrides", {})})
    made = with_options((row if isinstance(row, PlannedRow) else PlannedRow(method=row) for row in rows), options)
    request = {"rows": made, "benchmarks": ("kvasir",), "protocol": "demo", "overrides": rules, **fields}
    return plan(Request(**request, results=results), prepare_samples=sample_writer(samples or results))


def job_of(results: Path, method: str = "lora", options: dict[str, Any] | None = None, /, **changes: Any) -> Job:
    """The only job of such a plan."""
    (job,) = plan_of(results, PlannedRow(method=method, options=options or {}), **changes).jobs
    return job
