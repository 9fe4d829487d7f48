"""The generated stand-ins of the benchmarks that cards with ``data: sample`` train on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.errors import UsageError, os_reason


def sample_writer(results: Path, *, instead: Path | None = None) -> Callable[[str], Path]:
    """A function that writes a benchmark's sample below ``results/sample-data`` once, and returns its folder.

    Args:
        instead: folder for samples that are not there yet, for whoever must not write to ``results``.
    """

    def prepare(name: str) -> Path:
        folder = results / "sample-data" / name
        if folder.is_dir():
            return folder
        folder = (instead or results) / "sample-data" / name
        from datasets import samples

        temporary = folder.with_name(f".{name}.{os.getpid()}.part")
        try:
            samples.write(name, temporary)
            temporary.rename(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.is_dir():  # another process was faster
                return folder
            raise UsageError(
                f"sample data cannot be written to {folder} ({os_reason(error)}); choose another --results DIR"
            ) from error
        return folder

    return prepare
