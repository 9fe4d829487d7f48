"""Why a run failed: its reason code, and one line about it."""

from __future__ import annotations

from harness.archive.schema import Code
from harness.datasets.base import DatasetError
from harness.system.errors import REASONS, os_reason, out_of_memory
from harness.training.outcome import Blank, Diverged


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
