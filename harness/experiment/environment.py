"""What a record says of a run besides its numbers: the machine and its device, the code, and why it failed."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import version

import torch

from harness.archive.schema import Code
from harness.datasets.base import DatasetError
from harness.system.errors import REASONS, os_reason, out_of_memory
from harness.system.machine import code_version, processor, waiting
from harness.training.outcome import Blank, Diverged


def environment(device: torch.device) -> dict[str, str]:
    """See `Record.environment`."""
    values = {
        "torch": torch.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "device": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "driver": str(torch.version.cuda or "") if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        **({"waiting": waiting()} if device.type == "cpu" else {}),
    }
    return {**values, **code_version()}


def own_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def reason_code(error: Exception) -> Code:
    """Why a run failed, as tables print it."""
    if isinstance(error, Diverged | Blank):
        return error.code
    if isinstance(error, DatasetError):
        return "NO_DATA"
    return "OOM" if out_of_memory(error) else "ERROR"


def one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in REASONS:
        return f"{os_reason(error)}: {error.filename or 'a file of the run'}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
