"""Cost records as tables: measurements, ratios and claims of one comparability key; never two keys in one block."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from harness.archive.cost import CostRecord, MethodCost, Ratio
from harness.comparison import provenance
from harness.comparison.rules import CardOf, no_card
from harness.comparison.setups import Setup
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.judging import Reading, judge_claims
from harness.report.cost_numbers import cost_numbers
from harness.report.page import Block, Page, Text, texts

PARTS = ("data", "forward", "backward", "optimiser", "untracked")
MEMORY = ("weights", "gradients", "optimiser", "activations")
QUANTITIES = {"time": "step time", "device_hours": "device-hours", "flops": "FLOPs", "memory": "peak memory"}

NOTES = (
    "Step: median over rounds of one training step, a batch and an update, [quartiles]; parts are medians and need not add up to it.",
    "The step of a stage-wise method is the mean of its weight and α steps by their shares: its search is included.",
    "Inference: median of one batch, unmerged and after each merge. Energy: by NVML, exclusive GPUs only.",
)
SIZE_NOTES = (
    "Peak: memory allocated during training steps, with its parts; reserved: what a GPU's allocator held.",
    "Inference: peak memory of one batch. FLOPs: of one training step as counted; what the counter does not know is above.",
)
SHARED = " §"
MOST_NAMED = 6
"""Operations that a page names before it counts the rest."""
RATIO_NOTES = (
    "Ratios are paired by round within one session: geometric mean, 95 % t interval of the logarithms, as change in %.",
)


def cost_page(
    records: Iterable[CostRecord],
    *,
    title: str,
    claims: Sequence[Claim] = (),
    card_of: CardOf = no_card,
    setups: Mapping[str, Setup] | None = None,
) -> Page:
    """For every comparability key its measurements, its ratios, and what they say on claims about cost."""
    by_key: dict[str, list[CostRecord]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    blocks: list[Block] = []
    numbers: list[dict[str, str]] = []
    for key in sorted(by_key, key=lambda one: (_place(by_key[one][0]), one)):
        sessions = sorted(by_key[key], key=lambda session: session.session)
        blocks += _measurements(sessions)
        judged = _claims(sessions, claims, card_of=card_of, setups=setups or {})
        blocks += [block for block in (_ratios(sessions), judged) if block]
        numbers += [number for session in sessions for number in cost_numbers(session)]
    nothing = Block(heading="cost", above=["No cost record yet; measure with sam-peft cost."])
    return Page(title=title, blocks=blocks or [nothing], numbers=numbers)


def _place(record: CostRecord) -> str:
    c = record.comparability
    return f"{c.device} · {c.backbone} · {c.image_size} px · batch {c.batch} · {c.precision}"


def _label(session: CostRecord, sessions: Sequence[CostRecord], variant: str) -> str:
    label = f"{variant} #{session.session[:6]}" if len(sessions) > 1 else variant
    return label + (SHARED if session.shared else "")


def _measurements(sessions: Sequence[CostRecord]) -> list[Block]:
    """Times, and memory with sizes: one table of both would have 26 columns."""
    named = {name for session in sessions for method in session.methods for name in method.inference_seconds}
    merges = sorted(named - {"unmerged"})
    energy = int(any(method.joules is not None for session in sessions for method in session.methods))
    times = Block(
        heading=f"cost · {_place(sessions[0])}",
        above=_header(sessions),
        columns=[
            *("method", "step (ms)", *(f"{part} (ms)" for part in PARTS), "α steps"),
            *("inference (ms)", *(f"{name} (ms)" for name in merges), *["energy (J)"] * energy),
        ],
        rows=[
            _row(session, method.variant, [_label(session, sessions, method.variant), *_times(method, merges, energy)])
            for session in sessions
            for method in session.methods
        ],
        below=_notes(sessions),
    )
    sizes = Block(
        heading=f"memory, operations and parameters · {_place(sessions[0])}",
        level=3,
        columns=[
            *("method", "peak (GiB)", *(f"{part} (GiB)" for part in MEMORY), "reserved (GiB)"),
            *("inference (GiB)", *(f"{name} (GiB)" for name in merges)),
            *("forward (GFLOP)", "backward (GFLOP)", "encoder (M)", "trained (M)", "total (M)", "state (MiB)"),
        ],
        rows=[
            _row(
                session,
                method.variant,
                [
                    _label(session, sessions, method.variant),
                    *_memory(method, on_gpu=session.comparability.on_gpu),
                    *(_scaled(method.inference_memory_bytes.get(name), 2**30, 3) for name in ("unmerged", *merges)),
                    *(_scaled(method.flops.get(name), 1e9, 1) for name in ("forward", "backward")),
                    *(_scaled(method.parameters.get(name), 1e6, 3) for name in ("encoder", "trainable", "total")),
                    _scaled(method.checkpoint_bytes, 2**20, 2),
                ],
            )
            for session in sessions
            for method in session.methods
        ],
        below=SIZE_NOTES,
    )
    return [times, sizes]


def _times(method: MethodCost, merges: Sequence[str], energy: int) -> list[str]:
    total = method.step_seconds.get("total", [])
    step = _middle(total)
    if len(total) > 1:
        low, _, high = statistics.quantiles(total, n=4, method="inclusive")
        step += f" [{1e3 * low:.1f}, {1e3 * high:.1f}]"
    share = method.shares.get("architecture", 0.0) + method.shares.get("weights+architecture", 0.0)
    return [
        *(step, *(_middle(method.step_seconds.get(part)) for part in PARTS), f"{100 * share:.0f} %" if share else "–"),
        *(_middle(method.inference_seconds.get(name)) for name in ("unmerged", *merges)),
        *[_scaled(method.joules, 1, 1)] * energy,
    ]


def _memory(method: MethodCost, *, on_gpu: bool) -> list[str]:
    """A CPU's allocator reserves nothing that could be told from what is allocated."""
    known = method.memory_bytes if on_gpu else {**method.memory_bytes, "reserved": None}
    return [_scaled(known.get(name), 2**30, 3) for name in ("allocated", *MEMORY, "reserved")]


def _header(sessions: Sequence[CostRecord]) -> list[str]:
    c = sessions[0].comparability
    rounds = ", ".join(f"{session.rounds} after {session.warmup} dropped" for session in sessions)
    lines = [
        f"Comparability key: {sessions[0].key}",
        f"Device: {c.device}" + (f", {c.driver}" if c.driver else "") + f", {c.threads} CPU threads, torch {c.torch}",
        f"Backbone: {c.backbone}, {c.image_size} px, batch {c.batch}, {c.precision}, {c.task}",
        f"Rounds: {rounds}, methods interleaved in one process",
    ]
    if c.options:
        lines.append("Options: " + ", ".join(f"{name}={c.options[name]}" for name in sorted(c.options)))
    unknown = sorted({name for session in sessions for method in session.methods for name in method.not_counted})
    if unknown:
        more = f" and {len(unknown) - MOST_NAMED} more (`sam-peft why` names them)" if len(unknown) > MOST_NAMED else ""
        lines.append("Operations not counted in FLOPs: " + ", ".join(unknown[:MOST_NAMED]) + more)
    failed = [
        f"{m.variant}, {mode}: {why}"
        for s in sessions
        for m in s.methods
        for mode, why in sorted(m.merge_failures.items())
    ]
    lines += [f"Merge not measured: {line}" for line in failed]
    return [*lines, *(f"Not measured: {name}: {reason}" for s in sessions for name, reason in s.dropped.items())]


def _notes(sessions: Sequence[CostRecord]) -> list[str]:
    shared = sorted({session.shared for session in sessions if session.shared})
    return [*NOTES, *(f"§ the device was not exclusive: {words}" for words in shared)]


def _ratios(sessions: Sequence[CostRecord]) -> Block | None:
    rows = []
    for session in sessions:
        for method in session.methods:
            for baseline in sorted(method.ratios):
                if baseline == method.variant:
                    continue
                ratios = method.ratios[baseline]
                cells = [_change(ratios.get(name)) for name in QUANTITIES]
                words = (_label(session, sessions, method.variant), baseline, *cells)
                rows.append(_row(session, method.variant, words))
    if not rows:
        return None
    return Block(
        heading=f"cost against baselines · {_place(sessions[0])}",
        level=3,
        columns=["method", "against", *(f"{title} (%)" for title in QUANTITIES.values())],
        rows=rows,
        below=RATIO_NOTES,
    )


def _row(session: CostRecord, variant: str, words: Sequence[str]) -> list[Text]:
    first, *rest = texts(words, behind=lambda folder: provenance.of_session(session, variant))
    return [replace(first, name=first.text.removesuffix(SHARED)), *rest]


def _claims(
    sessions: Sequence[CostRecord], claims: Sequence[Claim], *, card_of: CardOf, setups: Mapping[str, Setup]
) -> Block | None:
    """Readings of claims on cost that these sessions can judge."""
    about_cost = [claim for claim in claims if claim.quantity in ("cost change", "inference change")]
    findings = judge_claims(about_cost, [], sessions, protocol="", sources=Sources(card_of=card_of, setups=setups))
    readings = [(found, one) for found in findings for one in found.readings if one.estimate is not None]
    alike = {one.differs for _, one in readings}
    shared = alike.pop() if len(alike) == 1 else ()  # said once above the table instead of in every cell
    rows = []
    for finding, reading in readings:
        claim = finding.claim
        verdict: str = reading.verdict if shared else reading.verdict_in_words
        verdict += f" ({finding.verdict} as it stands)" if claim.ambiguous else ""
        words = (claim.name, claim.expected, reading.what, f"{reading.estimate:+.2f}", _bounds(reading), verdict)
        rows.append(texts(words, behind=partial(_behind_claim, claim=claim, reading=reading)))
    if not rows:
        return None
    sentences = [f"{claim.name}: {claim.text} [{claim.mark}: {claim.source}]." for claim in about_cost]
    ambiguous = [f"{claim.name} is ambiguous: {claim.ambiguous}." for claim in about_cost if claim.ambiguous]
    return Block(
        heading=f"claims on cost · {_place(sessions[0])}",
        level=3,
        above=[f"Not judged, since this is not the published set-up: {'; '.join(shared)}"] if shared else (),
        columns=["claim", "holds for", "reading", "ours (%)", "95 % CI", "verdict"],
        rows=rows,
        below=[*sentences, *ambiguous],
    )


def _behind_claim(folder: provenance.Folder, claim: Claim, reading: Reading) -> list[str]:
    return [
        f"  {claim.text} [{claim.mark}: {claim.source}]",
        f"  read as {reading.what}, on {reading.where}, n = {reading.n}",
        *(f"  not the published set-up: {one}" for one in reading.differs),
    ]


def _bounds(reading: Reading) -> str:
    if reading.interval is None:
        return "–"
    if reading.interval.n == 1:
        return "exact"
    return f"{reading.interval:+.2f}"


def _change(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    text = f"{100 * (ratio.value - 1):+.1f}"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.1f}, {100 * (ratio.high - 1):+.1f}]"


def _middle(seconds: Sequence[float] | None) -> str:
    return f"{1e3 * statistics.median(seconds):.1f}" if seconds else "–"


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"
