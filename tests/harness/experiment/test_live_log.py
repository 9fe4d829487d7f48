"""`--set log=tensorboard`: the epochs of a run as they end, and no other run for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import epoch_numbers
from harness.experiment.experiment import run_experiment
from harness.planning import plan as planning
from harness.system.errors import UsageError
from tests.harness.planned import job_of


def _job(root: Path, **rules: Any) -> Any:
    small = {
        "image_size": 64, "epochs": 2, "train_limit": 4, "val_limit": 2, "test_limit": 2, "merge": [], "keep_masks": 0,
    }  # fmt: skip
    return job_of(root, "decoder", **{**small, **rules})


def test_tensorboard_follows_the_epochs_of_a_run_whose_key_stays(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = _job(tmp_path, log="tensorboard")
    assert job.run.key == _job(tmp_path).run.key
    record = run_experiment(job)
    read = accumulator.EventAccumulator(str(tmp_path / "state" / job.run.key / "tensorboard"))
    read.Reload()
    expected = [(entry["epoch"], number) for entry in record.history for number in [epoch_numbers(entry)]]
    assert [point.step for point in read.Scalars("train/loss")] == [1, 2]
    for name in ("train/loss", "val/s_measure"):
        logged = {point.step: point.value for point in read.Scalars(name)}
        assert logged == pytest.approx({epoch: numbers[name] for epoch, numbers in expected if name in numbers})


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        _job(tmp_path, log="tensorboard")
