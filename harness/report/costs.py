"""Cost records as tables: one for each comparability key, never two keys in one table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.archive.measured import CostRecord, MethodCost, setups
from harness.comparison.leaderboard import ratios_to
from harness.comparison.papers import Papers
from harness.report.formats import Number, Page, Table, Value, heads
from harness.statistics import Ratio, paired_ratio
from harness.studies import Row

DETAILS: Mapping[str, tuple[str, str, float, int]] = {
    "step_seconds": ("step", "ms", 1e-3, 1),
    "memory_bytes": ("memory", "GiB", 2**30, 3),
    "inference_memory_bytes": ("inference", "GiB", 2**30, 3),
    "flops": ("step", "GFLOP", 1e9, 1),
    "parameters": ("parameters", "M", 1e6, 3),
    "inference_parameters": ("parameters", "M", 1e6, 3),
}
"""Quantity of `MethodCost` -> its word, its unit, how large that is, and the digits shown."""
_BASELINES = ("full", "lora")
MERGES = ("merged-exact", "merged-conv", "merged-calibrated")
STEP_NOTES = (
    "Step: median over rounds of one training step, a batch and an update [quartiles]; weight and α steps of a stage-wise method by their"
    " shares, so that its search is included. Peak: memory allocated during training steps.",
    "Change: against a baseline of the same session, paired by round: geometric mean with the 95 % t interval of the logarithms, in %.",
    "Inference: median of one batch. Without inference overhead is a method after a merge that leaves nothing of it: of searched cells that"
    " is the calibrated one, as the exact one leaves every cell of the default style.",
)


def cost_page(records: Iterable[CostRecord], *, title: str, details: bool = False) -> Page:
    """For every comparability key the cost of a step, also against baselines; with ``details`` all that was measured."""
    records = list(records)
    named = setups(records)
    tables: list[Table] = []
    for key in sorted(named, key=lambda key: (named[key], key)):
        sessions = sorted((record for record in records if record.key == key), key=lambda session: session.session)
        shown = [_steps(sessions), _claims(sessions)]
        shown += [_details(sessions)] if details else []
        tables += [replace(table, heading=f"{table.heading} · {named[key]}") for table in shown if table.rows]
    nothing = Table(heading="cost", above=["No cost record yet; measure with sam-peft cost."])
    return Page(title=title, tables=tables or [nothing])


def _named(sessions: Sequence[CostRecord]) -> list[tuple[str, CostRecord, MethodCost]]:
    """Every method of these sessions with its name, which has a § where the device was not exclusive."""
    return [
        (
            cost.label + (f" #{session.session[:6]}" if len(sessions) > 1 else "") + (" §" if session.shared else ""),
            session,
            cost,
        )
        for session in sessions
        for cost in session.methods
    ]


def _steps(sessions: Sequence[CostRecord]) -> Table:
    measured = _named(sessions)
    against = list(dict.fromkeys(other.label for _, session, cost in measured for other in _baselines(session, cost)))
    merges = [name for name in MERGES if any(name in cost.inference_seconds for _, _, cost in measured)]
    rows: list[list[Value]] = []
    for name, session, cost in measured:
        total = cost.step_seconds.get("total", [])
        low, middle, high = (
            statistics.quantiles(total * (1 + (len(total) == 1)), n=4, method="inclusive")
            if total
            else (None, None, None)
        )
        step = Number(
            value=_ms(middle), low=_ms(low) if len(total) > 1 else None, high=_ms(high) if len(total) > 1 else None
        )
        baselines = {other.label: ratios_to(cost, other) for other in _baselines(session, cost)}
        changes = [_change(baselines.get(other, {}).get(of)) for other in against for of in ("time", "memory")]
        inference = [Number(value=_ms(_middle(cost.inference_seconds.get(model)))) for model in ("unmerged", *merges)]
        trained = _scaled(cost.parameters.get("trainable"), 1e6, 3)
        rows.append([name, step, *changes, _scaled(cost.memory_bytes.get("allocated"), 2**30, 3), trained, *inference])
    changed = [f"{of} against {other} (%)" for other in against for of in ("time", "memory")]
    titles = ("method", "step (ms)", *changed, "peak (GiB)", "trained (M)")
    titles += ("inference (ms)", *(f"{name} (ms)" for name in merges))
    shared = sorted({session.shared for session in sessions if session.shared})
    below = [*STEP_NOTES, *(f"§ the device was not exclusive: {words}" for words in shared)]
    return Table(heading="cost", above=_above(sessions), columns=heads(*titles), rows=rows, below=below)


def _above(sessions: Sequence[CostRecord]) -> list[str]:
    c = sessions[0].comparability
    rounds = ", ".join(f"{session.rounds} after {session.warmup} dropped" for session in sessions)
    driver = f", {c.driver}" if c.driver else ""
    lines = [
        f"Comparability key: {sessions[0].key}",
        f"Device: {c.device}{driver}, {c.threads} CPU threads, torch {c.torch}",
        f"Backbone: {c.backbone}, {c.image_size} px, batch {c.batch}, {c.precision}, {c.task}",
        f"Rounds: {rounds}, methods interleaved in one process",
    ]
    lines += ["Options: " + ", ".join(f"{name}={c.options[name]}" for name in sorted(c.options))] if c.options else []
    methods = [method for session in sessions for method in session.methods]
    for method in methods:
        lines += [
            f"Merge not measured: {method.label}, {mode}: {why}" for mode, why in sorted(method.merge_failures.items())
        ]
    return [*lines, *(f"Not measured: {name}: {reason}" for s in sessions for name, reason in s.dropped.items())]


def _details(sessions: Sequence[CostRecord]) -> Table:
    """Every quantity of `DETAILS`, and in it every part that a method has."""
    measured = _named(sessions)
    parts = {
        quantity: {part: None for *_, cost in measured for part in getattr(cost, quantity)} for quantity in DETAILS
    }
    rows: list[list[Value]] = []
    for name, _, cost in measured:
        values = [
            (getattr(cost, quantity).get(part), *DETAILS[quantity]) for quantity in DETAILS for part in parts[quantity]
        ]
        rows.append([name, *(_scaled(_middle(value), size, digits) for value, _, _, size, digits in values)])
    titles = [
        f"{DETAILS[quantity][0]} {part} ({DETAILS[quantity][1]})" for quantity in DETAILS for part in parts[quantity]
    ]
    below = ["Times are medians, which need not add up. FLOPs are of one training step as counted."]
    return Table(heading="details", level=3, columns=heads("method", *titles), rows=rows, below=below)


def _claims(sessions: Sequence[CostRecord]) -> Table:
    """Claims of papers about cost, with each session that measured both rows."""
    rows: list[list[Value]] = []
    for claim in Papers.read().claims if sessions[0].comparability.task == "binary" else ():
        for session in sessions if claim.cost else ():
            first, second = (
                next((cost for cost in session.methods if cost.label == row.method and not row.options), None)
                for row in (claim.first, claim.second)
            )
            if first and second:
                ours = _rounds_of(first, claim.cost, claim.first)
                theirs = _rounds_of(second, claim.cost, claim.second)
                if ours and len(ours) == len(theirs):
                    change = _change(paired_ratio(ours, theirs))
                    rows.append([claim.text, f"{claim.source} [{claim.mark}]", claim.expected, change])
    columns = heads("claim", "source", "paper (%)", "ours (%)", words=["source"])
    return Table(heading="against the papers", level=3, columns=columns, rows=rows)


def _rounds_of(cost: MethodCost, what: str, row: Row) -> Sequence[float]:
    if what == "time":
        return cost.step_seconds.get("total", [])
    return cost.inference_seconds.get(row.scores[0] if row.scores else "unmerged", [])


def _baselines(session: CostRecord, cost: MethodCost) -> list[MethodCost]:
    """Full fine-tuning and LoRA, as far as the session measured them, else its first method; and what the session names."""
    wanted = {name for method in session.methods for name in method.ratios}
    for usual in _BASELINES:
        labels = {method.label for method in session.methods if method.method == usual}
        wanted |= labels & {usual} or labels
    wanted = (wanted or {session.methods[0].label}) - {cost.label}
    return sorted((other for other in session.methods if other.label in wanted), key=lambda other: other.label)


def _change(ratio: Ratio | None) -> Value:
    if ratio is None:
        return None
    low, high = (None if bound is None else 100 * (bound - 1) for bound in (ratio.low, ratio.high))
    return Number(value=100 * (ratio.value - 1), form="+.1f", low=low, high=high)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _middle(value: float | Sequence[float] | None) -> float | None:
    """The median of several rounds, or the number itself."""
    return (statistics.median(value) if value else None) if isinstance(value, Sequence) else value


def _scaled(value: float | None, unit: float, digits: int) -> Number:
    """A number in units of ``unit`` with so many decimals, and more where a small number needs them for two digits."""
    first = math.floor(math.log10(value / unit)) if value else 0
    return Number(value=None if value is None else value / unit, form=f".{max(digits, 1 - first)}f")
