"""Where a run was made: what a record says about machine and code."""

from __future__ import annotations

import platform
import socket
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from harness.records.code import code_version


def environment(device: torch.device) -> dict[str, str]:
    """See `Record.environment`."""
    found = {
        "torch": torch.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "driver": str(torch.version.cuda or "") if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
    }
    return {**found, **code_version()}


@lru_cache(maxsize=1)
def processor() -> str:
    """``cpu`` with the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"cpu {platform.processor()}".strip()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0]} x{len(names)}" if names else "cpu"
