"""Cost records as tables: measurements, ratios and claims of one comparability key; never two keys in one table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from harness.archive.archive import Archive
from harness.archive.measured import CostRecord, MethodCost, Ratio, places
from harness.comparison.claims import Claim
from harness.comparison.judging import Finding, Reading, cost_readings
from harness.comparison.papers import Papers
from harness.comparison.rows import grouped
from harness.comparison.step_costs import USUAL_BASELINES, ratios_within
from harness.report.page import Line, Page, Table, Told, heads

PARTS = ("data", "forward", "backward", "optimiser", "untracked")
MEMORY = ("weights", "gradients", "optimiser", "activations")
STEP = ("step (ms)", *(f"{part} (ms)" for part in PARTS))
QUANTITIES = {"time": "step time", "device_hours": "device-hours", "flops": "FLOPs", "memory": "peak memory"}

NOTES = (
    "Step: median over rounds of one training step, a batch and an update, [quartiles]; parts are medians and need not add up to it.",
    "The step of a stage-wise method is the mean of its weight and α steps by their shares: its search is included.",
    "Inference: median of one batch, unmerged and after each merge. Energy: by NVML, exclusive GPUs only.",
)
ROLE_NOTES = (
    "Share: how often the schedule has the role over a whole training; of a method with two passes a step they sum to more than 100 %.",
)
SIZE_NOTES = (
    "Peak: memory allocated during training steps, with its parts; reserved: what a GPU's allocator held.",
    "Inference: peak memory of one batch. FLOPs: of one training step as counted; what the counter does not know is above.",
    "Parameters (M): in the encoder, trained, and of the model in inference: unmerged (total) and after each merge.",
)
MOST_NAMED = 6
"""Operations that a page names before it counts the rest."""
RATIO_NOTES = (
    "Ratios are paired by round within one session: geometric mean, 95 % t interval of the logarithms, as change in %.",
)


def cost_page(records: Iterable[CostRecord], *, title: str, claims: Sequence[Claim] = (), papers: Papers) -> Page:
    """For every comparability key its measurements, its ratios, and what they say on claims about cost."""
    by_key = grouped(records, lambda record: record.key)
    named = places(session for sessions in by_key.values() for session in sessions)
    tables: list[Table] = []
    numbers: list[dict[str, str]] = []
    for key in sorted(by_key, key=lambda key: (by_key[key][0].place, key)):
        sessions = sorted(by_key[key], key=lambda session: session.session)
        others = (_roles(sessions), _sizes(sessions), _ratios(sessions), _claims(sessions, claims, papers))
        shown = [_times(sessions), *(table for table in others if table.rows)]
        tables += [replace(table, heading=f"{table.heading} · {named[key]}") for table in shown]
        numbers += [number for session in sessions for number in cost_numbers(session)]
    nothing = Table(heading="cost", above=["No cost record yet; measure with sam-peft cost."])
    return Page(title=title, tables=tables or [nothing], numbers=numbers)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A method of a session, and what the sessions of its table call it."""

    session: CostRecord
    cost: MethodCost
    label: str

    def line(self, texts: Sequence[str]) -> Line:
        """A device that was not exclusive is marked."""
        shown = self.label + (" §" if self.session.shared else "")
        return Line.of([shown, *texts], self, label=self.label, method=self.cost.variant)

    def why(self, archive: Archive) -> list[str]:
        session = self.session
        lines = [
            f"  session {session.session}, comparability key {session.key}, finished {session.finished or 'at an unknown time'}",
            f"  {session.rounds} rounds after {session.warmup} dropped, methods interleaved in one process",
        ]
        if session.shared:
            lines.append(f"  the device was not exclusive: {session.shared}")
        config = ", ".join(f"{name}={value}" for name, value in sorted(self.cost.config.items()))
        lines.append(f"  method {self.cost.method}, configuration: {config or 'none'}")
        if totals := self.cost.step_seconds.get("total", []):
            lines.append("  step by round (ms): " + ", ".join(f"{1e3 * value:.1f}" for value in totals))
        if self.cost.not_counted:
            counts = ", ".join(f"{name} ×{count}" for name, count in sorted(self.cost.not_counted.items()))
            lines.append(f"  operations not counted in FLOPs: {counts}")
        return [*lines, f"  cost/{session.key}-{session.session}.json"]


def _measured(sessions: Sequence[CostRecord]) -> list[Measured]:
    return [
        Measured(
            session=session,
            cost=cost,
            label=f"{cost.variant} #{session.session[:6]}" if len(sessions) > 1 else cost.variant,
        )
        for session in sessions
        for cost in session.methods
    ]


def _merges(sessions: Sequence[CostRecord]) -> list[str]:
    named = {name for session in sessions for method in session.methods for name in method.inference_seconds}
    return sorted(named - {"unmerged"})


def _times(sessions: Sequence[CostRecord]) -> Table:
    """Memory and sizes are a table of their own: one of both would have 26 columns."""
    measured, merges = _measured(sessions), _merges(sessions)
    energy = int(any(measured_method.cost.joules is not None for measured_method in measured))
    lines = []
    for measured_method in measured:
        cost = measured_method.cost
        share = cost.shares.get("architecture", 0.0) + cost.shares.get("weights+architecture", 0.0)
        inference = [_middle(cost.inference_seconds.get(name)) for name in ("unmerged", *merges)]
        joules = [_scaled(cost.joules, 1, 1)] * energy
        alpha = f"{100 * share:.0f} %" if share else "–"
        lines.append(measured_method.line([*_step(cost.step_seconds), alpha, *inference, *joules]))
    shared = sorted({session.shared for session in sessions if session.shared})
    return Table(
        heading="cost",
        above=_above(sessions),
        columns=heads(
            *("method", *STEP, "α steps"),
            *("inference (ms)", *(f"{name} (ms)" for name in merges), *["energy (J)"] * energy),
        ),
        rows=lines,
        below=[*NOTES, *(f"§ the device was not exclusive: {words}" for words in shared)],
    )


def _roles(sessions: Sequence[CostRecord]) -> Table:
    """The kinds of steps of methods that have several; no row where none has."""
    return Table(
        heading="steps by role",
        level=3,
        columns=heads("method", "role", "share", *STEP, words=["role"]),
        rows=[
            measured_method.line([role, f"{100 * measured_method.cost.shares[role]:.1f} %", *_step(seconds)])
            for measured_method in _measured(sessions)
            if len(measured_method.cost.seconds) > 1
            for role, seconds in measured_method.cost.seconds.items()
        ],
        below=ROLE_NOTES,
    )


def _sizes(sessions: Sequence[CostRecord]) -> Table:
    merges, lines = _merges(sessions), []
    for measured_method in _measured(sessions):
        cost = measured_method.cost
        # A CPU's allocator reserves nothing that could be told from what is allocated.
        names = ("allocated", *MEMORY, *["reserved"] * measured_method.session.comparability.on_gpu)
        memory = [_scaled(cost.memory_bytes.get(name), 2**30, 3) for name in names]
        memory += ["–"] * (2 + len(MEMORY) - len(memory))
        inference = [_scaled(cost.inference_memory_bytes.get(name), 2**30, 3) for name in ("unmerged", *merges)]
        flops = [_scaled(cost.flops.get(name), 1e9, 1) for name in ("forward", "backward")]
        counts = [_scaled(cost.parameters.get(name), 1e6, 3) for name in ("encoder", "trainable", "total")]
        counts += [_scaled(cost.inference_parameters.get(name), 1e6, 3) for name in merges]
        lines.append(
            measured_method.line([*memory, *inference, *flops, *counts, _scaled(cost.checkpoint_bytes, 2**20, 2)])
        )
    return Table(
        heading="memory, operations and parameters",
        level=3,
        columns=heads(
            *("method", "peak (GiB)", *(f"{part} (GiB)" for part in MEMORY), "reserved (GiB)"),
            *("inference (GiB)", *(f"{name} (GiB)" for name in merges)),
            *("forward (GFLOP)", "backward (GFLOP)", "encoder (M)", "trained (M)", "total (M)"),
            *(*(f"{name} (M)" for name in merges), "state (MiB)"),
        ),
        rows=lines,
        below=SIZE_NOTES,
    )


def _above(sessions: Sequence[CostRecord]) -> list[str]:
    c = sessions[0].comparability
    methods = [method for session in sessions for method in session.methods]
    rounds = ", ".join(f"{session.rounds} after {session.warmup} dropped" for session in sessions)
    lines = [
        f"Comparability key: {sessions[0].key}",
        f"Device: {c.device}" + (f", {c.driver}" if c.driver else "") + f", {c.threads} CPU threads, torch {c.torch}",
        f"Backbone: {c.backbone}, {c.image_size} px, batch {c.batch}, {c.precision}, {c.task}",
        f"Rounds: {rounds}, methods interleaved in one process",
    ]
    if c.options:
        lines.append("Options: " + ", ".join(f"{name}={c.options[name]}" for name in sorted(c.options)))
    if unknown := sorted({name for method in methods for name in method.not_counted}):
        more = (
            f" and {len(unknown) - MOST_NAMED} more (`sam-peft show --cell` names them)"
            if len(unknown) > MOST_NAMED
            else ""
        )
        lines.append("Operations not counted in FLOPs: " + ", ".join(unknown[:MOST_NAMED]) + more)
    lines += [
        f"Merge not measured: {method.variant}, {mode}: {why}"
        for method in methods
        for mode, why in sorted(method.merge_failures.items())
    ]
    # The counter held against arithmetic: 1 where the encoder is plain, more where a method computes in it, less where the
    # padding of windows is left out.
    plain = [
        f"{measured_method.label} {flops['encoder_forward'] / flops['closed_form']:.3f}"
        for measured_method in _measured(sessions)
        if (flops := measured_method.cost.flops).get("closed_form")
    ]
    if plain:
        lines.append(f"Encoder forward FLOPs, counted / closed form of the plain encoder: {', '.join(plain)}")
    return [*lines, *(f"Not measured: {name}: {reason}" for s in sessions for name, reason in s.dropped.items())]


def _ratios(sessions: Sequence[CostRecord]) -> Table:
    lines = []
    for measured_method in _measured(sessions):
        for baseline in _baselines(measured_method.session, measured_method.cost):
            ratios = ratios_within(measured_method.cost, baseline)
            lines.append(measured_method.line([baseline.variant, *(_change(ratios.get(name)) for name in QUANTITIES)]))
    return Table(
        heading="cost against baselines",
        level=3,
        columns=heads("method", "against", *(f"{title} (%)" for title in QUANTITIES.values()), words=["against"]),
        rows=lines,
        below=RATIO_NOTES,
    )


def _baselines(session: CostRecord, cost: MethodCost) -> list[MethodCost]:
    """Those of the session, and the usual ones that it measured without being asked for ratios to them."""
    asked = {*USUAL_BASELINES, *(name for method in session.methods for name in method.ratios)} - {cost.variant}
    return sorted((other for other in session.methods if other.variant in asked), key=lambda other: other.variant)


def _read_as(claim: Claim, reading: Reading) -> list[str]:
    """What a claim is read as on one session."""
    return [
        f"  {claim.text} [{claim.mark}: {claim.source}]",
        f"  read as {reading.what}, on {reading.where}, n = {reading.n}",
        *(f"  not the published set-up: {words}" for words in reading.differs),
    ]


def _claims(sessions: Sequence[CostRecord], claims: Sequence[Claim], papers: Papers) -> Table:
    """Readings of claims on cost that these sessions can judge."""
    about_cost = [claim for claim in claims if claim.quantity in ("cost change", "inference change")]
    findings = [Finding(claim=claim, readings=tuple(cost_readings(claim, sessions, papers))) for claim in about_cost]
    measured = [
        (finding, reading) for finding in findings for reading in finding.readings if reading.estimate is not None
    ]
    alike = {reading.differs for _, reading in measured}
    shared = alike.pop() if len(alike) == 1 else ()  # said once above the table instead of in every cell
    lines = []
    for finding, reading in measured:
        claim = finding.claim
        verdict: str = reading.verdict if shared else reading.verdict_in_words
        verdict += f" ({finding.verdict} as it stands)" if claim.ambiguous else ""
        words = (claim.name, claim.expected, reading.what, f"{reading.estimate:+.2f}", _bounds(reading), verdict)
        lines.append(Line.of(words, Told(lines=partial(_read_as, claim, reading))))
    sentences = [f"{claim.name}: {claim.text} [{claim.mark}: {claim.source}]." for claim in about_cost]
    ambiguous = [f"{claim.name} is ambiguous: {claim.ambiguous}." for claim in about_cost if claim.ambiguous]
    return Table(
        heading="claims on cost",
        level=3,
        above=[f"Not judged, since this is not the published set-up: {'; '.join(shared)}"] if shared else (),
        columns=heads(
            *("claim", "holds for", "reading", "ours (%)", "95 % CI", "verdict"), words=("reading", "verdict")
        ),
        rows=lines,
        below=[*sentences, *ambiguous],
    )


def _bounds(reading: Reading) -> str:
    if reading.interval is None:
        return "–"
    return "exact" if reading.interval.n == 1 else f"{reading.interval:+.2f}"


def _change(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    text = f"{100 * (ratio.value - 1):+.1f}"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}]"


def _step(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """Under `STEP`: the median with quartiles, and the medians of its parts."""
    total = seconds.get("total", [])
    step = _middle(total)
    if len(total) > 1:
        low, _, high = _quartiles(total)
        step += f" [{1e3 * low:.1f}, {1e3 * high:.1f}]"
    return [step, *(_middle(seconds.get(part)) for part in PARTS)]


def _quartiles(seconds: Sequence[float]) -> list[float]:
    return statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3


def _middle(seconds: Sequence[float] | None) -> str:
    return f"{1e3 * statistics.median(seconds):.1f}" if seconds else "–"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    """With so many digits, and more where a small number would have none or one of its own."""
    if value is None:
        return "–"
    first = math.floor(math.log10(value / unit)) if value > 0 else 0
    return f"{value / unit:.{max(digits, 1 - first)}f}"


NUMBER_COLUMNS = (
    *("quantity", "part", "unit", "comparability_key", "session", "device", "backbone", "image_size", "batch"),
    *("precision", "exclusive", "row", "method", "options", "against", "n", "value", "low", "high"),
)


def cost_numbers(session: CostRecord) -> list[dict[str, str]]:
    """A session as tidy rows for CSV, one number a row, in SI units (seconds, bytes, FLOP, joules): medians over rounds with
    their quartiles as ``low`` and ``high``; ratios with their 95 % interval."""
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
    numbers = []
    for cost in session.methods:
        options = json.dumps(cost.config, sort_keys=True)
        row = {**place, "row": cost.variant, "method": cost.method, "options": options}
        numbers += [{**row, **number} for number in _numbers(session, cost)]
    return [{name: number.get(name, "") for name in NUMBER_COLUMNS} for number in numbers]


def _numbers(session: CostRecord, cost: MethodCost) -> Iterator[dict[str, str]]:
    for part, seconds in cost.step_seconds.items():
        yield _rounds("training step", part, seconds)
    for model, seconds in cost.inference_seconds.items():
        yield _rounds("inference", model, seconds)
    single = (
        ("training memory", "byte", cost.memory_bytes),
        ("inference memory", "byte", cost.inference_memory_bytes),
        ("training FLOPs", "FLOP", cost.flops),
        ("parameters", "1", cost.parameters),
        ("inference parameters", "1", cost.inference_parameters),
    )
    for quantity, unit, values in single:
        for part, value in values.items():
            yield {"quantity": quantity, "part": part, "unit": unit, "n": "1", "value": f"{value:.10g}"}
    if cost.joules is not None:
        yield {"quantity": "training energy", "part": "step", "unit": "J", "n": "1", "value": f"{cost.joules:.6g}"}
    for baseline in _baselines(session, cost):
        for quantity, ratio in ratios_within(cost, baseline).items():
            known = {name: value for name, value in (("low", ratio.low), ("high", ratio.high)) if value is not None}
            yield {
                "quantity": "ratio", "part": quantity, "unit": "1", "against": baseline.variant, "n": str(ratio.rounds),
                "value": f"{ratio.value:.6g}", **{name: f"{value:.6g}" for name, value in known.items()},
            }  # fmt: skip


def _rounds(quantity: str, part: str, seconds: Sequence[float]) -> dict[str, str]:
    number = {"quantity": quantity, "part": part, "unit": "s", "n": str(len(seconds))}
    if not seconds:
        return number
    low, middle, high = _quartiles(seconds)
    return {**number, "value": f"{middle:.6g}", "low": f"{low:.6g}", "high": f"{high:.6g}"}
