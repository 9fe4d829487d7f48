"""Peak memory of a training step, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harness.costing.contestant import Contestant, StepKind
from harness.costing.device import synchronise
from harness.costing.live import LiveBytes
from harness.training.memory import peak_bytes, reset_peak


def peak_memory(subject: Contestant, phase: StepKind) -> dict[str, int]:
    """Peaks of one training step, this method's own weights and optimiser state included, other methods' left out."""
    device = subject.device
    subject.step(phase)  # creates what the optimiser keeps, if no step did before
    own = subject.resident()
    resident = sum(storage_bytes(tensors) for tensors in own.values())
    known = [tensor for tensors in own.values() for tensor in tensors]
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
        reset_peak(device)
        before = peak_bytes(device)
        subject.step(phase)
        peak_reserved = max(peak_bytes(device) - before, 0)
        with counter:
            kept, gradients = subject.step_watched(phase, live=lambda: counter.now)
        peak = counter.peak
    return {
        "allocated": resident + peak,
        "reserved": resident + max(peak_reserved, peak),
        "weights": storage_bytes(own["weights"]),
        "optimiser": storage_bytes(own["optimiser"]),
        "gradients": gradients,
        "activations": kept,
    }


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
