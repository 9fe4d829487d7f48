"""One session: build every method, warm up, then A B C A B C … for training steps, then the same for inference, unmerged and merged.

The rounds of a session are paired, so that what slows one method slows its baseline too and cancels in their ratio. Where no allocator
counts a step's peak memory (CPUs), the bytes of live tensors are counted operation by operation, which is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.archive.measured import Comparability, CostRecord, MethodCost
from harness.archive.schema import Run, content_hash
from harness.costing.instruments import LiveBytes, clock_of, storage_bytes, synchronise
from harness.costing.session import PARTS, Roster, Session, StepKind, Subject, release, why
from harness.experiment.building import attached_segmenter
from harness.experiment.environment import environment
from harness.methods.base import MergeMode, Method
from harness.methods.parts.placement import MethodError
from harness.models.attention_choice import apply_choice, in_words
from harness.models.device import autocast, reset_peak
from harness.models.segmenter import count_parameters
from harness.planning.plan import ConfiguredRow
from harness.protocols.load import as_rules
from harness.system.errors import UsageError
from harness.system.machine import now

T = TypeVar("T")


def peak_memory(subject: Subject, phase: StepKind) -> dict[str, int]:
    """Memory of one training step at its peak, including this method's weights and optimiser state but not other methods'."""
    device = subject.device
    subject.step(phase)  # creates what the optimiser keeps, if no step did before
    groups = subject.resident()
    resident = sum(storage_bytes(tensors) for tensors in groups.values())
    known = [tensor for tensors in groups.values() for tensor in tensors]
    counter = LiveBytes(known)
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        reset_peak(device)
        kept, gradients = subject.step_watched(phase, live=lambda: torch.cuda.memory_allocated(device) - allocated)
        peak = torch.cuda.max_memory_allocated(device) - allocated
        peak_reserved = torch.cuda.max_memory_reserved(device) - reserved
    else:
        with counter:
            kept, gradients = subject.step_watched(phase, live=lambda: counter.now)
        peak = peak_reserved = counter.peak  # nothing else is held
    return {
        "allocated": resident + peak,
        "reserved": resident + max(peak_reserved, peak),
        "weights": storage_bytes(groups["weights"]),
        "optimiser": storage_bytes(groups["optimiser"]),
        "gradients": gradients,
        "activations": kept,
    }


def measure_inference(roster: Roster, session: Session, *, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Seconds, peak memory and parameters of a forward pass by label, unmerged and in every merge mode."""
    clock = clock_of(session.clock, session.device)
    side, batch = session.protocol.image_size, session.protocol.batch_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator).to(session.device)

    def merge(subject: Subject) -> dict[str, str]:
        failed = _add_models(subject, calibration=[images])
        roster.share_frozen(*subject.models.values())
        return failed

    def timed(model: Any) -> float:
        model.eval()  # not timed: it walks over all modules, and a method has more of them than its merged model
        begun = clock()
        _infer(model, images, session)
        return clock() - begun

    def of_models(work: Callable[[Any], T]) -> dict[str, dict[str, T]]:
        return roster.each(lambda subject: {name: work(model) for name, model in subject.models.items()})

    report("inference: merging")
    failures = roster.each(merge)
    memory = of_models(lambda model: _inference_peak(model, images, session))
    rounds = []
    for number in range(1, session.rounds + 1):
        report(f"inference: round {number} of {session.rounds}")
        rounds.append(of_models(timed))
    parameters = of_models(lambda model: sum(parameter.numel() for parameter in model.parameters()))
    return {
        label: {
            "inference_seconds": {name: [times[label][name] for times in rounds] for name in memory[label]},
            "inference_memory_bytes": memory[label],
            "inference_parameters": parameters[label],
            "merge_failures": failures[label],
        }
        for label in roster.subjects
    }


def _add_models(subject: Subject, *, calibration: Sequence[Tensor]) -> dict[str, str]:
    """Give the subject its unmerged model and every merged one; mode -> why it could not be merged."""
    subject.models = {"unmerged": subject.segmenter}
    failed: dict[str, str] = {}
    for mode in subject.method.merge_modes:
        try:
            subject.models[f"merged-{mode}"] = _merged(subject.method, mode, calibration=calibration)
        except MethodError as error:
            failed[mode] = str(error)
        except Exception as error:  # what was measured unmerged is still worth keeping
            failed[mode] = why(error)
        if mode in failed:
            release()
    return failed


def _merged(method: Method, mode: MergeMode, *, calibration: Sequence[Tensor]) -> Any:
    """A merged copy. This is a function of its own so that a copy whose merge fails is freed before memory is released."""
    method.segmenter.eval()
    twin = copy.deepcopy(method)
    twin.merge(mode, calibration=calibration)
    return twin.segmenter


def _infer(model: Any, images: Tensor, session: Session) -> None:
    """One pass of a model that is in evaluation mode."""
    with torch.no_grad(), autocast(session.protocol.precision, session.device):
        model(images)


def _inference_peak(model: Any, images: Tensor, session: Session) -> int:
    known = [*model.parameters(), *model.buffers(), images]
    resident = storage_bytes(known) - storage_bytes([images])
    model.eval()
    _infer(model, images, session)
    if session.device.type == "cuda":
        before = torch.cuda.memory_allocated(session.device)
        reset_peak(session.device)
        _infer(model, images, session)
        return resident + torch.cuda.max_memory_allocated(session.device) - before
    with LiveBytes(known) as counter:
        _infer(model, images, session)
    return resident + counter.peak


WARMUP = 2
"""Steps of every kind before the first round, while allocators, kernels and caches are still cold."""
_OPTIONS = (
    "fused_attention", "activation_checkpointing", "cache_embeddings", "epochs", "flip", "optimizer",
    "clip", "loss",
)  # fmt: skip
_FURTHER = {"num_classes": 2, "mask_tokens": 1, "accumulate": 1, "decoder": "sam", "budget": "epochs", "attention": ""}
"""Listed among the options only where they differ from these: older records hold none of them and were measured with these values."""
_CUT = {"batched_decoder": True, "fused_cell": True}
"""Rules that are gone, with the value that every session measures; they stay in keys, so that older sessions are comparable."""


def measure(session: Session, *, report: Callable[[str], None] = lambda line: None) -> CostRecord:
    """Measure all methods of a session; one that fails is left out with its reason in ``dropped``. Raises UsageError: no method
    could be measured."""
    roster = Roster(report=report)
    try:
        for row in session.rows:
            with roster.turn(row.label):
                roster.subjects[row.label] = build_subject(row, session)
                roster.share_frozen(roster.subjects[row.label].segmenter)
        report("training: memory and FLOPs")
        sizes = roster.each(_sizes)
        rounds = []
        for number in range(1, session.rounds + 1):
            report(f"training: round {number} of {session.rounds}")
            rounds.append(roster.each(lambda subject: {kind.name: subject.step(kind) for kind in subject.shares()}))
    finally:
        roster.close()
    inference = measure_inference(roster, session, report=report)
    if not roster.subjects:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in roster.dropped.items())
        raise UsageError(f"no method could be measured ({reasons})")
    costs = []
    for row in session.rows:
        if row.label not in roster.subjects:
            continue
        shares = {kind.name: share for kind, share in roster.subjects[row.label].shares().items()}
        times = {name: {part: [each[row.label][name][part] for each in rounds] for part in PARTS} for name in shares}
        costs.append(
            MethodCost(
                method=row.method,
                label=row.label,
                config=asdict(row.config),
                changed=sorted(row.changed),
                seconds=times,
                shares=shares,
                step_seconds=_weighted(times, shares),
                **sizes[row.label],
                **inference[row.label],
            )
        )
    return _record(session, costs, dropped=roster.dropped)


def build_subject(row: ConfiguredRow, session: Session) -> Subject:
    """A fresh segmenter with the row's method attached, built as a run of it would be."""
    protocol = session.protocol
    run = Run(
        method=row.method,
        method_config=asdict(row.config),
        label=row.label,
        benchmark="",
        backbone=session.backbone,
        checkpoint="",
        protocol=protocol.name,
        protocol_hash="",
        rules=as_rules(protocol),
        seed=0,
        manifest="",
        split_rule="",
    )
    segmenter, method = attached_segmenter(
        run, task=session.task, num_classes=session.num_classes, checkpoint=session.checkpoint
    )
    apply_choice(segmenter, session.attention)
    return Subject(row.label, segmenter=segmenter.to(session.device), method=method, session=session)


def _sizes(subject: Subject) -> dict[str, Any]:
    """Memory, FLOPs and parameters, which do not vary from round to round."""
    shares = subject.shares()
    for phase in shares:
        for _ in range(WARMUP):
            subject.step(phase)
    peaks = [peak_memory(subject, phase) for phase in shares]
    counts = [(share, *subject.count_flops(phase)) for phase, share in shares.items()]
    return {
        "memory_bytes": {name: max(each[name] for each in peaks) for name in peaks[0]},
        "flops": {
            "forward": sum(share * forward for share, forward, _ in counts),
            "backward": sum(share * backward for share, _, backward in counts),
        },
        "parameters": count_parameters(subject.segmenter),
    }


def _weighted(seconds: Mapping[str, Mapping[str, list[float]]], shares: Mapping[str, float]) -> dict[str, list[float]]:
    """part -> the average step's seconds in each round: those of every kind of step, weighted by its share."""
    rounds = range(len(next(iter(seconds.values()))["total"]))
    return {
        part: [sum(share * seconds[name][part][number] for name, share in shares.items()) for number in rounds]
        for part in PARTS
    }


def _record(session: Session, costs: list[MethodCost], *, dropped: dict[str, str]) -> CostRecord:
    protocol = session.protocol
    where = environment(session.device)
    multiclass = session.task == "multiclass"
    # A binary head has one mask token, whatever the protocol says.
    tokens = protocol.mask_tokens if multiclass and protocol.decoder == "sam" else 1
    ours = {"num_classes": session.num_classes, "mask_tokens": tokens, "attention": in_words(session.attention)}
    further = {name: ours[name] if name in ours else getattr(protocol, name) for name in _FURTHER}
    comparability = Comparability(
        device=where["device"],
        driver=f"driver {where['driver']}, CUDA {where['cuda']}" if where["driver"] else "",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=protocol.precision,
        backbone=session.backbone,
        image_size=protocol.image_size,
        batch=protocol.batch_size,
        task=session.task,
        options={
            "clock": session.clock,
            **_CUT,
            **{name: getattr(protocol, name) for name in _OPTIONS},
            **{name: value for name, value in further.items() if value != _FURTHER[name]},
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
        finished=now(),
    )
    return replace(record, session=content_hash(asdict(record))[:8])
