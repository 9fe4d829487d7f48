"""How a run computes on its device: kernels, the precision of a forward pass, copies for which the host does not wait (a plain one stops it
until all earlier work on a GPU is done), and the peak memory: allocated memory on a CUDA device, resident memory on a CPU."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.models.attention_choice import DTYPES


def compute_on(device: torch.device) -> torch.device:
    """Make this the process's device, with the kernels and the allocator of every run, so that what is measured is what a run does.

    ``precision: fp32`` holds on a GPU too: by default torch's convolutions round to TF32's ten bits there and its matrix products do not,
    so methods with convolutions would be compared at a lower precision than those without.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # cuDNN's attention takes at most 128 channels per head in training. On sm90 torch prefers it, so that a SAM with widened heads would
    # train with flash and be evaluated with cuDNN.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & os.environ.keys():  # read at the first tensor on the GPU
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context for a forward pass in a protocol's ``precision``; fp32 needs no autocast."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from the host it goes to a GPU through pinned memory."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the host. The returned function waits for the copy and returns it."""
    if not tensor.is_cuda:
        return lambda: tensor
    copy = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory, as torch makes for such copies
    event = torch.cuda.Event()
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait


@lru_cache(maxsize=16)
def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values per channel as (1, C, 1, 1) on the device, moved there once."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Restart measuring. Where the system keeps no resettable peak (not Linux, or forbidden), the CPU's peak is that
    of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Bytes at the highest point since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
