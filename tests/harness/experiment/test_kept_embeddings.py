"""Which runs share the embeddings of a frozen encoder: all of one encoder, and none that would give others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.experiment.experiment import Experiment
from harness.planning.data import sample_writer
from harness.planning.plan import plan
from harness.planning.request import Request, Variant


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def file_of(results: Path, **rules: Any) -> str:
    """The name of the file that a run under these rules would keep them in."""
    request = Request(
        entries=(Variant(method="decoder"),),
        benchmarks=("kvasir",),
        protocol="demo",
        overrides={"image_size": 64, "train_limit": 6, "val_limit": 2, "test_limit": 2, **rules},
        results=results,
    )
    (job,) = plan(request, prepare_samples=sample_writer(results)).jobs
    experiment = Experiment(job, device=torch.device("cpu"), tell=lambda _: None)
    experiment.counts = experiment.data.counts
    cache = experiment._embeddings(*experiment._attached(), None)
    assert cache is not None
    return cache._description().name


@pytest.mark.parametrize("rules", [{"precision": "bf16"}, {"image_size": 80}, {"train_limit": 7}])
def test_another_precision_size_or_split_has_a_file_of_its_own(results: Path, rules: dict[str, Any]) -> None:
    assert file_of(results, **rules) != file_of(results)
    assert file_of(results) == file_of(results, lr=0.5)
