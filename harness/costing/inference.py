"""Seconds, memory and parameters of inference, unmerged and merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.costing.live import LiveBytes
from harness.costing.memory import bytes_of
from harness.costing.subject import Subject
from harness.training.feeding import autocast
from harness.training.memory import reset_peak
from methods.base import MergeMode, Method
from methods.placement import MethodError

if TYPE_CHECKING:
    from harness.costing.measure import Session


def measure_inference(
    subjects: Sequence[Subject], session: Session, *, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Seconds, peak memory and parameters of a forward pass, unmerged and in every merge mode."""
    clock = subjects[0].clock
    side, batch = session.protocol.image_size, session.protocol.batch_size
    generator = torch.Generator().manual_seed(session.seed)
    images = torch.randn(batch, 3, side, side, generator=generator).to(session.device)
    report("inference: merging")
    models: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for subject in subjects:
        own: dict[str, Any] = {"unmerged": subject.segmenter}
        failed: dict[str, str] = {}
        for mode in subject.method.merge_modes:
            try:
                own[f"merged-{mode}"] = _merged(subject.method, mode, calibration=[images])
            except MethodError as error:
                failed[mode] = str(error)
        models.append(own)
        failures.append(failed)
    seconds: list[dict[str, list[float]]] = [{name: [] for name in own} for own in models]
    memory: list[dict[str, int]] = [{} for _ in models]
    for number in range(session.rounds + 1):
        report(f"inference: round {number} of {session.rounds}")
        for own, times, peaks in zip(models, seconds, memory, strict=True):
            for name, model in own.items():
                if number == 0:
                    peaks[name] = _inference_peak(model, images, session)
                    continue
                begun = clock()
                _infer(model, images, session)
                times[name].append(clock() - begun)
    return [
        {
            "inference_seconds": times,
            "inference_memory_bytes": peaks,
            "inference_parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in own.items()},
            "merge_failures": failed,
        }
        for own, times, peaks, failed in zip(models, seconds, memory, failures, strict=True)
    ]


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
    own = bytes_of(known) - bytes_of([images])
    _infer(model, images, session)
    if session.device.type == "cuda":
        before = torch.cuda.memory_allocated(session.device)
        reset_peak(session.device)
        _infer(model, images, session)
        return own + torch.cuda.max_memory_allocated(session.device) - before
    with LiveBytes(known) as counter:
        _infer(model, images, session)
    return own + counter.peak
