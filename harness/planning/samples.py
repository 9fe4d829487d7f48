"""The generated stand-ins of the benchmarks that cards with ``data: sample`` train on."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from harness.system.errors import UsageError, os_reason


def sample_writer(
    results: Path, *, instead: Path | None = None, undo: ExitStack | None = None
) -> Callable[[str], Path]:
    """A function that writes a benchmark's sample below ``results/sample-data`` once, and returns its folder.

    Args:
        instead: folder for samples that are not there yet, for whoever must not write to ``results``.
        undo: gets what removes again the folders that were written, for whoever may find that nothing can start.
    """

    def prepare(name: str) -> Path:
        folder = results / "sample-data" / name
        if folder.is_dir():
            return folder
        folder = (instead or results) / "sample-data" / name
        from harness.datasets import samples

        temporary = folder.with_name(f".{name}.{secrets.token_hex(8)}.part")  # nobody else can have put a link there
        if undo is not None:
            for parent in reversed([parent for parent in folder.parents if not parent.exists()]):
                undo.callback(_remove_empty, parent)
        try:
            samples.write_samples(name, temporary)
            temporary.rename(folder)
            if undo is not None:
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.is_dir():  # another process was faster
                return folder
            raise UsageError(
                f"sample data cannot be written to {folder} ({os_reason(error)}); choose another --results DIR"
            ) from error
        return folder

    return prepare


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
