"""The generated stand-ins of the benchmarks that cards with ``data: sample`` train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def sample_writer(results: Path) -> Callable[[str], Path]:
    """A function that writes a benchmark's sample below ``results/sample-data`` once, and returns its folder."""

    def prepare(name: str) -> Path:
        folder = results / "sample-data" / name
        if folder.is_dir():
            return folder
        from datasets import samples

        temporary = folder.with_name(f".{name}.part")
        samples.write(name, temporary)
        temporary.rename(folder)
        return folder

    return prepare
