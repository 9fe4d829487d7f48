"""Records in the trackers' own files, read back by the trackers' own libraries where they are installed, and as tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.archive.masks import KeptMask, encoded_masks
from harness.archive.store import RecordStore
from harness.cli import records
from harness.protocols.load import protocol_rules
from tests.harness.report.sample import record

EPOCHS = ((1, 0.9, 0.25), (2, 0.5, 0.75))
"""Epoch, loss, validation."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs with curves, α and a mask each, and one that failed."""
    root = tmp_path_factory.mktemp("runs")
    mask = np.zeros((4, 4), dtype=np.uint8)
    masks = encoded_masks([KeptMask(split="test", stem="a", predicted=mask + 1, truth=mask)])
    fields: Any = {
        "history": [{"epoch": e, "loss": loss, "lr": 1e-3, "val": {"s_measure": val}} for e, loss, val in EPOCHS],
        "architecture": [{"blocks.0.qkv": [0.125] * 8}, {"blocks.0.qkv": [0.3, *[0.1] * 7]}],
    }
    fields |= {"scores": {"best": {"test": {"iou": 0.5, "s_measure": 0.5}}}, "rules": protocol_rules("demo", "kvasir")}
    for seed, code in enumerate(("OK", "OK", "OOM")):
        made = record(method="naslora", seed=seed, code=code, protocol_hash="0" * 8, **fields)
        RecordStore(root).write(made, masks_png=masks)
    return root


def _export(archive: Path, target: str, out: Path) -> None:
    """In a process of its own: some of them keep a folder, or a service, for as long as they live."""
    words = ["records", "export", "--to", target, str(out), "--results", str(archive)]
    command, quiet = [sys.executable, "-m", "harness", *words], {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout


def test_tensorboard_reads_curves_alphas_scores_rules_and_pictures(archive: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _export(archive, "tensorboard", tmp_path / "tb")
    folders = sorted((tmp_path / "tb").iterdir())
    assert [len(folder.name.rpartition("-")[2]) for folder in folders] == [8, 8]  # of the key
    read = events.EventAccumulator(str(folders[0]))
    read.Reload()
    assert [(point.step, pytest.approx(point.value)) for point in read.Scalars("train/loss")] == [(1, 0.9), (2, 0.5)]
    assert [point.value for point in read.Scalars("val/s_measure")] == [0.25, 0.75]
    assert [point.value for point in read.Scalars("best/test/iou")] == [0.5]
    alphas = [tag for tag in read.Tags()["scalars"] if tag.startswith("alpha/blocks.0.qkv/")]
    assert len(alphas) == 8
    assert "alpha/blocks.0.qkv/skip_connect" in alphas
    (picture,) = read.Images("masks/test/a")
    assert (picture.width, picture.height) == (8, 4)
    assert b"image_size" in read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content


def test_tables_hold_the_numbers_of_finished_runs(archive: Path, tmp_path: Path) -> None:
    assert records.main(["export", "--to", "csv", str(tmp_path / "csv"), "--results", str(archive)]) == 0
    assert sorted(file.stem for file in (tmp_path / "csv").iterdir()) == ["alphas", "history", "scores"]
    history = pd.read_csv(tmp_path / "csv" / "history.csv")
    assert sorted(history[history.quantity == "train/loss"].value) == [0.5, 0.5, 0.9, 0.9]
    scores = pd.read_csv(tmp_path / "csv" / "scores.csv", dtype={"protocol_hash": str})
    assert scores.protocol_hash.tolist() == ["0" * 8] * 4


@pytest.mark.parametrize(("target", "said"), [("csv", "is not empty"), ("wandb", "needs the package")])
def test_an_export_that_cannot_be_written_is_one_line(
    archive: Path, tmp_path: Path, monkeypatch, says, target, said
) -> None:
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr("harness.report.trackers.find_spec", lambda name: None)
    assert said in says(records.main, "export", "--to", target, tmp_path, "--results", archive, code=2)
