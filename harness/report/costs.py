"""Cost records as tables: one for each comparability key, never two keys in one table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.archive.measured import CostRecord, MethodCost, setups
from harness.comparison.leaderboard import Ratio, paired_ratio, ratios_to
from harness.comparison.papers import Papers
from harness.report.formats import Number, Page, Table, Value, heads
from harness.studies import Row

PARTS = ("data", "forward", "backward", "optimiser", "untracked")
MEMORY = ("weights", "gradients", "optimiser", "activations")
BASELINES = ("full", "lora")
MERGES = ("merged-exact", "merged-conv", "merged-calibrated")
STEP_NOTES = (
    "Step: median over rounds of one training step, a batch and an update [quartiles]; weight and α steps of a stage-wise method by their"
    " shares, so that its search is included. Peak: memory allocated during training steps.",
    "Change: against a baseline of the same session, paired by round: geometric mean with the 95 % t interval of the logarithms, in %.",
    "Inference: median of one batch. Without inference overhead is a method after a merge that leaves nothing of it: of searched cells that"
    " is the calibrated one, as the exact one leaves every cell of the default style.",
)
SIZE_NOTES = (
    "FLOPs: of one training step as counted. Parameters (M): in the encoder, trained, of the whole model, and after each merge.",
)


def cost_page(
    records: Iterable[CostRecord], *, title: str, papers: Papers | None = None, details: bool = False
) -> Page:
    """For every comparability key the cost of a step, also against baselines; with ``details`` the parts of a step, memory and sizes."""
    records = list(records)
    named = setups(records)
    tables: list[Table] = []
    for key in sorted(named, key=lambda key: (named[key], key)):
        sessions = sorted((record for record in records if record.key == key), key=lambda session: session.session)
        shown = [_steps(sessions), _claims(sessions, Papers.read() if papers is None else papers)]
        shown += [_parts(sessions), _sizes(sessions)] if details else []
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
        inference = [_median(cost.inference_seconds.get(model)) for model in ("unmerged", *merges)]
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


def _parts(sessions: Sequence[CostRecord]) -> Table:
    """The parts of a step, by role where a method has several kinds of steps."""
    rows: list[list[Value]] = []
    for name, _, cost in _named(sessions):
        by_role: Mapping[str, Mapping[str, Sequence[float]]] = cost.seconds if len(cost.seconds) > 1 else {}
        for role, seconds in ({"": cost.step_seconds} | dict(by_role)).items():
            share = Number.span([cost.shares.get(role)], unit=0.01, form=".1f")
            rows.append(
                [name, role, share, _median(seconds.get("total")), *(_median(seconds.get(part)) for part in PARTS)]
            )
    titles = ("method", "role", "share (%)", "step (ms)", *(f"{part} (ms)" for part in PARTS))
    below = ["Medians, which need not add up. Share: how often the schedule has the role over a whole training."]
    return Table(heading="parts of a step", level=3, columns=heads(*titles, words=["role"]), rows=rows, below=below)


def _sizes(sessions: Sequence[CostRecord]) -> Table:
    measured = _named(sessions)
    merges = [name for name in MERGES if any(name in cost.inference_seconds for _, _, cost in measured)]
    on_gpu = sessions[0].comparability.on_gpu
    rows: list[list[Value]] = []
    for name, _, cost in measured:
        memory = [
            _scaled(cost.memory_bytes.get(part), 2**30, 3) for part in (*MEMORY, *(["reserved"] if on_gpu else []))
        ]
        inference = [_scaled(cost.inference_memory_bytes.get(model), 2**30, 3) for model in ("unmerged", *merges)]
        flops = [_scaled(cost.flops.get(pass_), 1e9, 1) for pass_ in ("forward", "backward")]
        counts = [_scaled(cost.parameters.get(part), 1e6, 3) for part in ("encoder", "total")]
        counts += [_scaled(cost.inference_parameters.get(model), 1e6, 3) for model in merges]
        rows.append([name, *memory, *inference, *flops, *counts, _scaled(cost.checkpoint_bytes, 2**20, 2)])
    titles = (
        "method",
        *(f"{part} (GiB)" for part in MEMORY),
        *(["reserved (GiB)"] if on_gpu else []),
        "inference (GiB)",
    )
    titles += (*(f"{name} (GiB)" for name in merges), "forward (GFLOP)", "backward (GFLOP)", "encoder (M)", "total (M)")
    titles += (*(f"{name} (M)" for name in merges), "state (MiB)")
    heading = "memory, operations and parameters"
    return Table(heading=heading, level=3, columns=heads(*titles), rows=rows, below=SIZE_NOTES)


def _claims(sessions: Sequence[CostRecord], papers: Papers) -> Table:
    """Claims of papers about cost, with each session that measured both rows."""
    rows: list[list[Value]] = []
    for claim in papers.claims if sessions[0].comparability.task == "binary" else ():
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
    """Full fine-tuning and LoRA, as far as the session measured them, else its first method; and what older sessions name."""
    wanted = {name for method in session.methods for name in method.ratios}
    for usual in BASELINES:
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


def _median(seconds: Sequence[float] | None) -> Number:
    return Number(value=_ms(statistics.median(seconds)) if seconds else None)


def _scaled(value: float | None, unit: float, digits: int) -> Number:
    """A number in units of ``unit`` with so many decimals, and more where a small number needs them for two digits."""
    first = math.floor(math.log10(value / unit)) if value else 0
    return Number(value=None if value is None else value / unit, form=f".{max(digits, 1 - first)}f")
