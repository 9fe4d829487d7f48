"""What a record says about a run besides its numbers: machine, device, code, end, the reason for a failure, and seconds by stage."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

import torch

from harness.archive.schema import Code
from harness.datasets.base import DatasetError
from harness.models.device import compute_on
from harness.system.errors import REASONS, UsageError, os_reason, out_of_memory
from harness.system.machine import code_version, gpu_driver, processor, thread_waits
from harness.training.outcome import Blank, Diverged


def device_name(device: torch.device) -> str:
    return processor() if device.type == "cpu" else torch.cuda.get_device_name(device)


def environment(device: torch.device) -> dict[str, str]:
    """See `Record.environment`."""
    values = {
        "torch": torch.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        **code_version(),
    }
    if device.type == "cpu":
        return {**values, "driver": "", "waiting": thread_waits()}
    return {
        **values,
        "driver": gpu_driver(),
        "cuda": str(torch.version.cuda or ""),
        "cudnn": str(torch.backends.cudnn.version() or ""),
    }


def own_device() -> torch.device:
    """The first GPU that this process sees, or the CPU (`compute_on`)."""
    return compute_on(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


def unusable_gpu() -> str:
    """A message where this process was given a GPU that torch cannot use, such as for too old a driver; empty otherwise.

    Raises:
        UsageError: in a job of a sweep, which pays for the GPU until its time is up.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.cuda.is_available() or not re.match(r"\d|GPU-|MIG-", given):
        return ""
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    problem = f"GPU {given} is there, but torch {torch.__version__}, built {built}, cannot use it"
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # set in jobs of a sweep, not in an interactive allocation
        raise UsageError(
            f"{problem} on {platform.node()}; update the driver or avoid the node (profile: extra: {{exclude: NODE}}), then --retry error"
        )
    return f"{problem}: this run is on the CPU"


def reason_code(error: Exception) -> Code:
    """Why a run failed, as in records and tables."""
    if isinstance(error, Diverged | Blank):
        return error.code
    if isinstance(error, DatasetError):
        return "NO_DATA"
    return "OOM" if out_of_memory(error) else "ERROR"


def one_line(error: Exception) -> str:
    """An error's message in one line, with its type unless it is a ValueError or has a code of its own."""
    if isinstance(error, OSError) and error.errno in REASONS:
        return f"{os_reason(error)}: {error.filename or 'a file of the run'}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError | Diverged | Blank) else f"{type(error).__name__}: {text}"


STAGES = ("loading", "training", "validating", "testing", "merging", "other")


class Stopwatch:
    """A stopwatch for stages that exclude each other: time in a nested stage counts for the nested one alone."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._now = "other"
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count the time inside towards ``stage``."""
        before = self._enter(stage)
        try:
            yield
        finally:
            self._enter(before)

    def cost(self) -> dict[str, float]:
        """``stage_NAME_s`` of every stage, in this attempt alone."""
        self._enter(self._now)
        return {f"stage_{name}_s": seconds for name, seconds in self._seconds.items()}

    def _enter(self, stage: str) -> str:
        now = self._clock()
        self._seconds[self._now] += now - self._last
        before, self._now, self._last = self._now, stage, now
        return before
