"""How a run computes on its device: the precision of a forward pass, and the peak of memory: allocated memory on a CUDA device,
resident memory on a CPU."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from harness.models.attention_choice import DTYPES
from harness.protocols.protocol import Protocol


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


def autocast(protocol: Protocol, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A forward pass in the protocol's precision; fp32 is torch's own."""
    if protocol.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[protocol.precision])


_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Restart measuring. Where the system keeps no resettable peak (not Linux, or forbidden), the CPU's peak is the
    process's."""
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
