"""Benchmarks by name, and one sample a layout written once."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.datasets.base import Benchmark, DataOptions, Splits
from harness.datasets.own import any_folder
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.registry import SEGMENTED
from tests.datasets.archives import layouts, write_archive

MakeBenchmark = Callable[..., FolderBenchmark]
CASES = [(name, layout) for name in SEGMENTED for layout in layouts(name)]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def benchmark_of(name: str, **options) -> FolderBenchmark:
    module, _, attribute = SEGMENTED[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(DataOptions(**options))


def opened(root: Path, *, name: str = "mine", **options: str) -> tuple[Benchmark, Splits]:
    """Data of one's own, and how they are split."""
    chosen = DataOptions(**options)  # type: ignore[arg-type]
    made, layout = any_folder(name, root, chosen)
    benchmark = made(chosen)
    return benchmark, benchmark.splits(layout)


def quiet(what: str, done: int, total: int | None) -> None:
    """No progress display."""


@pytest.fixture
def make() -> MakeBenchmark:
    return benchmark_of


@pytest.fixture(scope="session")
def sample_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(name, layout) -> data root with that sample; do not write to it."""
    written: dict[tuple[str, str], Path] = {}

    def get(name: str, layout: str = "original") -> Path:
        if (name, layout) not in written:
            root = tmp_path_factory.mktemp(f"{name}-{layout}")
            write_archive(name, root, layout)
            written[name, layout] = root
        return written[name, layout]

    return get


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no real images at {SHARED}")
    return SHARED
