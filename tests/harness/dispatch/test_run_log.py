"""The log of a run's start tells its course."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

from harness.archive.store import RecordStore
from harness.dispatch.attempts import Holder, log_path, state_folder
from harness.dispatch.supervise import StopSignals, WorkerContext, log_line, supervise
from harness.planning.job import Job
from tests.harness.planned import job_of


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


def supervised(job: Job) -> None:
    """In a process where torch computed nothing yet: its threads do not survive a fork."""
    assert supervise(job, context=WorkerContext(holder=Holder.here(), limit=1), stop=StopSignals()) == "finished"


def test_the_log_of_a_run_holds_its_epochs_as_its_record_does(tmp_path: Path) -> None:
    rules = {"image_size": 64, "epochs": 2, "train_limit": 4, "val_limit": 2, "test_limit": 2, "select_every": 2}
    job = job_of(tmp_path, "decoder", **rules, cache_images=False)
    process = multiprocessing.get_context("spawn").Process(target=supervised, args=(job,))
    process.start()
    process.join()
    assert process.exitcode == 0
    record = RecordStore(tmp_path).read(job.run.key)
    assert record is not None
    log = log_path(state_folder(tmp_path, job.run.key), 1).read_text(encoding="utf-8")
    lines = re.findall(r"^epoch (\d)/2: loss ([\d.]+), (.*)rate (\S+), ([\d.]+) s$", log, re.MULTILINE)
    assert [(int(e), float(loss), float(lr)) for e, loss, _, lr, _ in lines] == [
        (epoch["epoch"], round(epoch["loss"], 4), float(f"{epoch['lr']:.3g}")) for epoch in record.history
    ]
    validated = record.history[1]["val"]["s_measure"]
    assert [words for _, _, words, _, _ in lines] == ["", f"validation s_measure {validated:.4f}, "]
    assert "test best on test, 2 images" in log.splitlines()
