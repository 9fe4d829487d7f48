"""Which runs share the embeddings of a frozen encoder: all of one encoder, and none that would give others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.experiment.experiment import Experiment
from tests.harness.planned import job_of


def file_of(results: Path, **rules: Any) -> str:
    """The name of the file that a run under these rules would keep them in."""
    small = {"image_size": 64, "train_limit": 6, "val_limit": 2, "test_limit": 2, **rules}
    experiment = Experiment(job_of(results, "decoder", **small), device=torch.device("cpu"), tell=lambda _: None)
    experiment.counts = experiment.data.counts
    cache = experiment._embeddings(*experiment._attached(), None)
    assert cache is not None
    return cache._description().name


@pytest.mark.parametrize("rules", [{"precision": "bf16"}, {"image_size": 80}, {"train_limit": 7}])
def test_another_precision_size_or_split_has_a_file_of_its_own(results: Path, rules: dict[str, Any]) -> None:
    assert file_of(results, **rules) != file_of(results)
    assert file_of(results) == file_of(results, lr=0.5)
