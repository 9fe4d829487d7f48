"""Generated benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.planning.samples import sample_writer


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two generated benchmarks."""
    root = tmp_path_factory.mktemp("samples")
    for name in ("kvasir", "leaf"):
        sample_writer(root)(name)
    return root
