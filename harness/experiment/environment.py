"""Where a run is made: its device, and what its record says about machine and code."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import version

import torch

from harness.system.machine import code_version, processor, waiting


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
        **({"waiting": waiting()} if device.type == "cpu" else {}),
    }
    return {**found, **code_version()}


def own_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
