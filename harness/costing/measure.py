"""One session: build every method, warm up, then A B C A B C … for training steps, then the same for inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import torch
from safetensors.torch import save

from harness.archive.cost import Comparability, CostRecord, MethodCost
from harness.archive.schema import Run, content_hash
from harness.costing.contestant import PARTS, Contestant
from harness.costing.device import CLOCKS, EnergyMeter, driver
from harness.costing.flops import encoder_forward_flops
from harness.costing.inference import measure_inference
from harness.costing.memory import peak_memory
from harness.costing.ratios import ratios_to
from harness.costing.roster import Roster
from harness.costing.session import Measured, Session
from harness.experiment.building import attached_segmenter
from harness.experiment.environment import environment
from harness.models.segmenter import count_parameters
from harness.protocols.load import as_rules

WARMUP = 2
"""Steps of every kind before the first round: allocators, kernels and caches are cold."""
_OPTIONS = (
    "fused_attention",
    "batched_decoder",
    "fused_cell",
    "activation_checkpointing",
    "cache_embeddings",
    "epochs",
    "flip",
    "optimizer",
    "clip",
    "loss",
)
_DEFAULTS = {"num_classes": 2, "mask_tokens": 1, "accumulate": 1, "decoder": "sam"}
"""Named among the options where they differ: older records hold none of them and were measured so."""


def measure(session: Session, *, report: Callable[[str], None] = lambda line: None) -> CostRecord:
    """Measure all methods of a session; one that fails is left out with its reason in ``dropped``.

    Args:
        report: is told what is being done.

    Raises:
        UsageError: no method could be measured.
    """
    roster = Roster(report=report)
    try:
        for row in session.rows:
            with roster.turn(row.variant):
                roster.subjects[row.variant] = build_subject(row, session)
        sizes = _measure_sizes(roster, report=report)
        seconds, joules = _measure_steps(roster, session, report=report)
    finally:
        roster.close()
    inference = measure_inference(roster, session, report=report)
    roster.require_some()
    costs = []
    for row in session.rows:
        if row.variant not in roster.subjects:
            continue
        shares = {phase.name: share for phase, share in roster.subjects[row.variant].shares().items()}
        times = seconds[row.variant]
        costs.append(
            MethodCost(
                method=row.method,
                variant=row.variant,
                config=asdict(row.config),
                changed=sorted(row.changed),
                seconds=times,
                shares=shares,
                step_seconds=_weighted(times, shares),
                joules=joules.get(row.variant),
                **sizes[row.variant],
                **inference[row.variant],
            )
        )
    fractions = {variant: subject.epoch_fraction() for variant, subject in roster}
    costs = [_with_ratios(cost, costs, baselines=session.baselines, images=fractions) for cost in costs]
    return _record(session, costs, dropped=roster.dropped)


def build_subject(row: Measured, session: Session) -> Contestant:
    """A fresh segmenter with the row's method attached, built as a run of it would be."""
    protocol = session.protocol
    run = Run(
        method=row.method,
        method_config=asdict(row.config),
        variant=row.variant,
        benchmark="",
        backbone=session.backbone,
        checkpoint="",
        protocol=protocol.name,
        protocol_hash="",
        rules=as_rules(protocol),
        seed=session.seed,
        manifest="",
        split_rule="",
    )
    segmenter, method = attached_segmenter(
        run, task=session.task, num_classes=session.num_classes, checkpoint=session.checkpoint
    )
    return Contestant(
        row.variant,
        segmenter=segmenter.to(session.device),
        method=method,
        protocol=protocol,
        task=session.task,
        num_classes=session.num_classes,
        device=session.device,
        clock=CLOCKS[session.clock](session.device),
    )


def _measure_sizes(roster: Roster, *, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    sizes = {}
    for variant, subject in roster:
        report(f"{variant}: memory and FLOPs")
        with roster.turn(variant):
            sizes[variant] = _sizes(subject)
    return sizes


def _sizes(subject: Contestant) -> dict[str, Any]:
    """Memory, FLOPs, parameters and checkpoint size: what does not vary from round to round."""
    protocol = subject.protocol
    for phase in subject.shares():
        for _ in range(WARMUP):
            subject.step(phase)
    shares = subject.shares()
    parts = peak_memory(subject, next(iter(shares)))
    for phase in list(shares)[1:]:
        other = peak_memory(subject, phase)
        parts = {name: max(value, other.get(name, 0)) for name, value in parts.items()}
    flops = {"forward": 0.0, "backward": 0.0}
    not_counted: dict[str, int] = {}
    for phase, share in shares.items():
        forward, backward = subject.count_flops(phase)
        flops["forward"] += share * forward.total
        flops["backward"] += share * backward.total
        for name, count in (forward.not_counted + backward.not_counted).items():
            not_counted[name] = max(not_counted.get(name, 0), count)
    encoder = subject.count_encoder_flops()
    shape = subject.segmenter.encoder.shape
    closed = encoder_forward_flops(shape, image_size=protocol.image_size) * protocol.batch_size
    return {
        "memory_bytes": parts,
        "flops": {**flops, "encoder_forward": float(encoder), "closed_form": closed},
        "not_counted": not_counted,
        "parameters": count_parameters(subject.segmenter),
        "checkpoint_bytes": len(save({name: t.contiguous().cpu() for name, t in subject.method.state().items()})),
    }


def _measure_steps(
    roster: Roster, session: Session, *, report: Callable[[str], None]
) -> tuple[dict[str, dict[str, dict[str, list[float]]]], dict[str, float]]:
    """Of every variant role -> part -> seconds by round, and joules a step where they can be read."""
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {
        variant: {phase.name: {part: [] for part in PARTS} for phase in subject.shares()} for variant, subject in roster
    }
    meter = EnergyMeter.open(session.device, report=report) if not session.shared else None
    joules = dict.fromkeys(seconds, 0.0)
    for number in range(1, session.rounds + 1):
        report(f"training: round {number} of {session.rounds}")
        for variant, subject in roster:
            with roster.turn(variant):
                for phase, share in subject.shares().items():
                    before = meter.joules() if meter else 0.0
                    for part, value in subject.step(phase).items():
                        seconds[variant][phase.name][part].append(value)
                    joules[variant] += share * ((meter.joules() if meter else 0.0) - before) / session.rounds
    return seconds, joules if meter else {}


def _weighted(seconds: Mapping[str, Mapping[str, list[float]]], shares: Mapping[str, float]) -> dict[str, list[float]]:
    """part -> seconds by round of the average step: every role's, weighted by its share."""
    rounds = range(len(next(iter(seconds.values()))["total"]))
    return {
        part: [sum(share * seconds[name][part][number] for name, share in shares.items()) for number in rounds]
        for part in PARTS
    }


def _with_ratios(
    cost: MethodCost, costs: Sequence[MethodCost], *, baselines: Sequence[str], images: dict[str, float]
) -> MethodCost:
    ratios = {
        other.variant: ratios_to(cost, other, images=images)
        for other in costs
        if other.variant in baselines and other.variant != cost.variant
    }
    return replace(cost, ratios=ratios)


def _record(session: Session, costs: list[MethodCost], *, dropped: dict[str, str]) -> CostRecord:
    protocol = session.protocol
    where = environment(session.device)
    multiclass = session.task == "multiclass"
    further = {
        "num_classes": session.num_classes,
        "mask_tokens": protocol.mask_tokens
        if multiclass and protocol.decoder == "sam"
        else 1,  # a binary head has one, whatever the card says
        "accumulate": protocol.accumulate,
        "decoder": protocol.decoder,
    }
    comparability = Comparability(
        device=where["device"],
        driver=driver(session.device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=protocol.precision,
        backbone=session.backbone,
        image_size=protocol.image_size,
        batch=protocol.batch_size,
        task=session.task,
        options={
            "clock": session.clock,
            **{name: getattr(protocol, name) for name in _OPTIONS},
            **{name: value for name, value in further.items() if value != _DEFAULTS[name]},
        },
    )
    record = CostRecord(
        key=comparability.key,
        session="",
        comparability=comparability,
        rounds=session.rounds,
        warmup=WARMUP,
        methods=costs,
        dropped=dropped,
        shared=session.shared,
        environment=where,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(record, session=content_hash(asdict(record))[:8])
