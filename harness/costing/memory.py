"""Peak memory of a training step, and what it is made of.

Where an allocator keeps no count (CPUs), the bytes of living tensors are counted operation by operation, which is exact.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.costing.contestant import Contestant, StepKind
from harness.costing.device import synchronise
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


class LiveBytes(TorchDispatchMode):
    """While active, counts the storages that operations create, until they are freed.

    Working memory inside an operation is not seen. Views share their base's storage and count once.

    Args:
        known: tensors that were there before and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: Any) -> None:
        if self._seen.pop(key, None) is not None:
            self.now -= size
