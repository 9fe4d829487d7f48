"""What a worker adds to a run's record, and tells of where the run is, in its log too."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.archive.schema import Record
from harness.dispatch import run_states as module
from harness.dispatch.attempts import Holder, Lease
from harness.dispatch.run_states import ProgressFile
from harness.dispatch.supervise import Start, log_line
from harness.experiment.experiment import run_experiment
from tests.harness.dispatch.helpers import make_job
from tests.harness.planned import job_of


def test_a_record_counts_all_starts_up_to_now(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1000.0)
    job = make_job(tmp_path)
    start = Start(job=job, holder=Holder.here(), limit=5, environment={"commit": "c"})
    Lease.acquire(start.folder, holder=Holder.here(), gpus=2).release("interrupted")
    Lease.acquire(start.folder, holder=Holder.here(), gpus=2)
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1000.0 + 1800.0)
    made = Record(run=job.run, key=job.run.key, code="OK", cost={"epochs": 3}, environment={"torch": "2"})
    record = start.complete(made)
    assert record.attempts == 2
    assert record.cost == {"epochs": 3, "gpu_hours": 1.0}
    assert record.environment == {"torch": "2", "commit": "c"}


def told(folder: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((folder / "progress.json").read_text())
    return content


def test_progress_is_written_at_each_stage_and_every_two_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 5000.0 + now[0]))
    report = ProgressFile(tmp_path)

    def step(number: int, *, after: float, **more) -> None:
        now[0] += after
        report({"stage": "training", "epoch": 2, "epochs": 4, "step": number, "steps": 10, **more})

    step(1, after=0.0, loss=float("nan"))
    first = told(tmp_path)
    assert first == {
        "stage": "training", "epoch": 2, "epochs": 4, "step": 1, "steps": 10, "loss": None, "at": 5100.0,
    }  # fmt: skip
    step(2, after=1.9)
    assert told(tmp_path) == first
    step(3, after=0.2)
    assert told(tmp_path)["step"] == 3
    report({"stage": "test", "split": "val"})
    report({"stage": "test", "split": "test"})
    assert (told(tmp_path)["split"], told(tmp_path)["step"]) == ("test", 3)


def test_a_folder_that_takes_no_progress_ends_no_run(tmp_path):
    (tmp_path / "file").touch()
    ProgressFile(tmp_path / "file")({"stage": "training"})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"stage": "training", "kind": "step", "epoch": 1, "loss": 0.5}, ""),
        ({"stage": "test best", "split": "test", "images": 8}, "test best on test, 8 images"),
        ({"stage": "merging (exact)"}, "merging (exact)"),
        ({"stage": "training", "kind": "note", "text": "continues in epoch 2"}, "continues in epoch 2"),
    ],
)
def test_stages_and_notes_are_lines_and_single_updates_none(content: dict, line: str) -> None:
    assert log_line(content) == line


def test_the_lines_of_a_run_hold_its_epochs_as_its_record_does(tmp_path: Path) -> None:
    rules = {"image_size": 64, "epochs": 2, "train_limit": 4, "val_limit": 2, "test_limit": 2, "select_every": 2}
    said: list[str] = []
    job = job_of(tmp_path, "decoder", **rules, cache_images=False)
    record = run_experiment(job, progress=lambda content: said.append(log_line(content)))
    lines = [
        match
        for line in said
        if (match := re.fullmatch(r"epoch (\d)/2: loss ([\d.]+), (.*)rate (\S+), ([\d.]+) s", line))
    ]
    assert [(int(line[1]), float(line[2]), float(line[4])) for line in lines] == [
        (epoch["epoch"], round(epoch["loss"], 4), float(f"{epoch['lr']:.3g}")) for epoch in record.history
    ]
    validated = record.history[1]["val"]["s_measure"]
    assert [line[3] for line in lines] == ["", f"validation s_measure {validated:.4f}, "]
    assert "test best on test, 2 images" in said
