"""The device under measurement: its driver, who else uses it, its clock and its energy meter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.system.errors import UsageError

BUSY = 0.1
"""Cores (CPU) or fraction of the device (GPU) that others may use before it counts as shared."""
OTHERS_BYTES = 1 << 30


Clock = Callable[[], float]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_clock(device: torch.device) -> Clock:
    """Seconds that pass, read after all work of the device is done."""

    def read() -> float:
        synchronise(device)
        return time.perf_counter()

    return read


def processor_clock(device: torch.device) -> Clock:
    """Seconds that this process computes, which others on the machine hardly change. Raises UsageError: not a CPU, or more than one
    thread, whose waiting for each other would count as work."""
    if device.type != "cpu" or torch.get_num_threads() != 1:
        raise UsageError("--clock processor measures a CPU with --threads 1; use --clock wall")
    return time.process_time


CLOCKS = {"wall": wall_clock, "processor": processor_clock}


def used_by_others(device: torch.device, *, seconds: float = 1.0) -> str:
    """In words, who else uses the device; empty if nobody does. Watches for ``seconds``."""
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
    """Seconds that all cores together have worked since boot (user, nice, system)."""
    user, nice, system = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _gpu_used(device: torch.device) -> str:
    meter = EnergyMeter.open(device)
    if meter is not None:
        pids = meter.other_processes()
        return f"{len(pids)} other processes are on the GPU ({', '.join(map(str, pids[:3]))})" if pids else ""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    # A context of our own takes some hundred megabytes that torch does not count.
    return f"{others / 2**30:.1f} GiB of the GPU's memory belong to others" if others > OTHERS_BYTES else ""


class EnergyMeter:
    """One GPU, by its ``handle`` in NVML; ``nvml`` is the module ``pynvml``, initialised."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    @classmethod
    def open(cls, device: torch.device, *, report: Callable[[str], None] = lambda line: None) -> EnergyMeter | None:
        """The meter of a GPU; None without one, or where its energy cannot be read, of which ``report`` is told."""
        if device.type != "cuda" or torch.version.cuda is None:
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            meter = cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
            meter.joules()
        except Exception as error:  # NVML fails in many ways: no library, no permission, MIG, an old GPU, no binding
            report(f"energy is not measured: {type(error).__name__}: {error}")
            return None
        return meter

    def joules(self) -> float:
        """Energy drawn since the driver was loaded."""
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000

    def other_processes(self) -> list[int]:
        running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return [process.pid for process in running if process.pid != os.getpid()]
