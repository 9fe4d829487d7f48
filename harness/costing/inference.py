"""Seconds, memory and parameters of inference, unmerged and merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.costing.contestant import Contestant
from harness.costing.device import CLOCKS
from harness.costing.live import LiveBytes
from harness.costing.memory import storage_bytes
from harness.costing.roster import Roster, release, why
from harness.costing.session import Session
from harness.methods.base import MergeMode, Method
from harness.methods.parts.placement import MethodError
from harness.training.memory import reset_peak
from harness.training.precision import autocast


def measure_inference(roster: Roster, session: Session, *, report: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Of every variant seconds, peak memory and parameters of a forward pass, unmerged and in every merge mode."""
    clock = CLOCKS[session.clock](session.device)
    side, batch = session.protocol.image_size, session.protocol.batch_size
    generator = torch.Generator().manual_seed(session.seed)
    images = torch.randn(batch, 3, side, side, generator=generator).to(session.device)
    report("inference: merging")
    models: dict[str, dict[str, Any]] = {}
    failures: dict[str, dict[str, str]] = {}
    for variant, subject in roster:
        models[variant], failures[variant] = _models(subject, calibration=[images])
    seconds: dict[str, dict[str, list[float]]] = {v: {name: [] for name in own} for v, own in models.items()}
    memory: dict[str, dict[str, int]] = {variant: {} for variant in models}
    for number in range(session.rounds + 1):
        report(f"inference: round {number} of {session.rounds}")
        for variant, _ in roster:
            with roster.turn(variant):
                for name, model in models[variant].items():
                    if number == 0:
                        memory[variant][name] = _inference_peak(model, images, session)
                        continue
                    begun = clock()
                    _infer(model, images, session)
                    seconds[variant][name].append(clock() - begun)
            if variant in roster.dropped:
                del models[variant]
                release()
    return {
        variant: {
            "inference_seconds": seconds[variant],
            "inference_memory_bytes": memory[variant],
            "inference_parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in own.items()},
            "merge_failures": failures[variant],
        }
        for variant, own in models.items()
    }


def _models(subject: Contestant, *, calibration: Sequence[Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """The unmerged model and every merged one; mode -> why it could not be merged."""
    own: dict[str, Any] = {"unmerged": subject.segmenter}
    failed: dict[str, str] = {}
    for mode in subject.method.merge_modes:
        try:
            own[f"merged-{mode}"] = _merged(subject.method, mode, calibration=calibration)
        except MethodError as error:
            failed[mode] = str(error)
        except Exception as error:  # what was measured unmerged stays worth keeping
            failed[mode] = why(error)
        if mode in failed:
            release()
    return own, failed


def _merged(method: Method, mode: MergeMode, *, calibration: Sequence[Tensor]) -> Any:
    method.segmenter.eval()
    twin = copy.deepcopy(method)
    twin.merge(mode, calibration=calibration)
    return twin.segmenter


def _infer(model: Any, images: Tensor, session: Session) -> None:
    model.eval()
    with torch.no_grad(), autocast(session.protocol, session.device):
        model(images)


def _inference_peak(model: Any, images: Tensor, session: Session) -> int:
    known = [*model.parameters(), *model.buffers(), images]
    own = storage_bytes(known) - storage_bytes([images])
    _infer(model, images, session)
    if session.device.type == "cuda":
        before = torch.cuda.memory_allocated(session.device)
        reset_peak(session.device)
        _infer(model, images, session)
        return own + torch.cuda.max_memory_allocated(session.device) - before
    with LiveBytes(known) as counter:
        _infer(model, images, session)
    return own + counter.peak
