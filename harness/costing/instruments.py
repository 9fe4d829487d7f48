"""Instruments: clocks, other users of the device, when it waits or computes, operations as executed, and bytes of live tensors."""

from __future__ import annotations

import os
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from harness.system.errors import UsageError

BUSY = 0.1
"""Cores (CPU) or fraction of the device (GPU) that others may use before it counts as shared."""
OTHERS_BYTES = 1 << 30
_PACKAGE = Path(__file__).parents[1]


Clock = Callable[[], float]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock_of(kind: Literal["wall", "processor"], device: torch.device) -> Clock:
    """A function that reads seconds: those that pass, once the device has finished its work, or those that this process computes, which
    others hardly change. Raises UsageError: the latter for a GPU, or for several threads, whose waiting for each other would count."""
    if kind == "processor":
        if device.type != "cpu" or torch.get_num_threads() != 1:
            raise UsageError("--clock processor measures a CPU with --threads 1; use --clock wall")
        return time.process_time

    def read() -> float:
        synchronise(device)
        return time.perf_counter()

    return read


def used_by_others(device: torch.device, *, seconds: float = 1.0) -> str:
    """A line about other processes that use the device, empty if there are none. Watches for ``seconds``."""
    return _gpu_used(device) if device.type == "cuda" else _cpu_used(seconds)


def _cpu_used(seconds: float) -> str:
    try:
        busy, spent = _busy_seconds(), time.process_time()
        time.sleep(seconds)
        others = (_busy_seconds() - busy - (time.process_time() - spent)) / seconds
    except OSError:
        return ""
    return f"other processes use {others:.1f} of {os.cpu_count()} cores" if others > BUSY else ""


def _busy_seconds() -> float:
    """Seconds for which all cores together have worked since boot (user, nice, system)."""
    user, nice, system = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _gpu_used(device: torch.device) -> str:
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    # Our own context takes a few hundred megabytes that torch does not count.
    return f"{others / 2**30:.1f} GiB of the GPU's memory belong to others" if others > OTHERS_BYTES else ""


_aten = torch.ops.aten
_FURTHER = {  # from the shapes of query, key and value; backward, that of the gradient comes first
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


def flop_counter() -> FlopCounterMode:
    """A context manager that counts the operations inside it; see `get_total_flops`. A multiply-add counts as two. Matrix products,
    convolutions and fused attention are counted as executed, recomputation included, and SAM's positions where they are columns of
    a product; norms, activations, softmax and sums are not."""
    return FlopCounterMode(display=False, custom_mapping=_FURTHER)


def first_wait(device: torch.device, work: Callable[[], object]) -> str:
    """The line of this package, as ``file:line``, at which ``work`` first makes the processor wait for the GPU (it ends there); empty where
    it never does."""
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        files = [(Path(step.filename), step.lineno) for step in traceback.extract_tb(error.__traceback__)]
        file, line = [(file, line) for file, line in files if file.is_relative_to(_PACKAGE)][-1]
        return f"{file.relative_to(_PACKAGE.parent)}:{line}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


@contextmanager
def busy_share(shares: dict[str, float], name: str) -> Iterator[None]:
    """Puts under ``name`` the share of the block's time in which the GPU computes."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        begun = time.perf_counter()
        yield
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    shares[name] = busy_seconds(kernels(profiled)) / seconds


def kernels(profiled: Any) -> list[tuple[int, int]]:
    """When kernels and copies on a GPU began and ended, in nanoseconds, according to a ``torch.profiler.profile`` that has stopped."""
    events = profiled.profiler.kineto_results.events()
    on_gpu = (event for event in events if event.device_type() == DeviceType.CUDA and not event.is_user_annotation())
    return [(event.start_ns(), event.end_ns()) for event in on_gpu]


def busy_seconds(spans: Iterable[tuple[int, int]]) -> float:
    """Seconds covered by at least one of the spans, which are in nanoseconds."""
    total, until = 0, 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, until))
        until = max(until, end)
    return total / 1e9


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LiveBytes(TorchDispatchMode):
    """While active, counts the storages that operations create, until they are freed.

    Working memory inside an operation is not seen. Views share their base's storage and count once.

    Args:
        known: tensors that existed before and do not count.
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
