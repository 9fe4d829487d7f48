"""Whole runs of own data: to the table, to exports, and to predictions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from harness import run
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import export, predict
from harness.experiment import scoring
from harness.experiment.building import open_data
from harness.models.segmenter import SegmenterOutput, probabilities
from harness.planning.request import Job
from harness.registry import BENCHMARKS
from harness.settings import Settings
from tests.harness.planning.tiles import GROUP, planned_of, write_tiles


def _run(tmp_path: Path, *words: str) -> Record:
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), "--set", "lr=3e-3"]
    assert run.main([*base, "--executor", "inline", *words]) == 0
    (record,) = RecordStore(tmp_path / "runs")
    return record


def test_a_folder_becomes_a_row_under_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiles(tmp_path / "data")
    record = _run(tmp_path, "--datasets", f"tiles={folder}", "--set", GROUP, "--set", "epochs=6")
    assert (record.code, record.run.benchmark) == ("OK", "tiles")
    assert record.run.rules["own_classes"] == ["background", "foreground"]
    assert record.run.data_note == ""
    assert "by groups of" in record.run.split_rule
    table = capsys.readouterr().out
    assert "tiles" in table
    assert "IoU" in table
    assert "generated samples" not in table
    assert "own_classes" not in table
    monkeypatch.setattr(export, "load_settings", lambda: Settings(data=tmp_path / "nowhere"))
    command = ["--results", str(tmp_path / "runs"), "--run", record.key, "--out", str(tmp_path / "sam.pth")]
    assert export.main(command) == 0  # an exact merge needs no images


def test_several_classes_are_scored_as_such_and_predicted_without_the_folder(tmp_path, monkeypatch, capsys) -> None:
    folder = write_tiles(tmp_path / "data", classes=3)
    # An epoch is too little to draw an object.
    monkeypatch.setattr(scoring, "probabilities", lambda output, size: torch.rand(len(output.masks), 3, *size))

    record = _run(tmp_path, "--datasets", f"land={folder}", "--set", "epochs=1", "--set", "mask_tokens=4")

    assert record.run.rules["own_classes"] == ["ground", "tree", "house"]
    assert record.scores["best"]["test"].keys() == {"miou", "accuracy"}
    assert "mIoU" in capsys.readouterr().out
    file = tmp_path / "land.safetensors"
    command = ["--results", str(tmp_path / "runs"), "--run", record.key, "--out", str(file), "--adapter-only"]
    monkeypatch.chdir(tmp_path)
    assert export.main(command) == 0
    del BENCHMARKS._loaded["land"]  # as in a process that has planned nothing
    capsys.readouterr()
    words = ["--adapter", str(file), "--images", str(folder / "images"), "--out", str(tmp_path / "masks")]
    assert predict.main(words) == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 12
    assert predict.main(["--adapter", str(file), "--images", str(folder / "images"), "--out", str(folder)]) == 2


@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_that_predicts_no_object_has_a_code_and_no_score(tmp_path, monkeypatch, capsys, classes: int) -> None:
    def background(output: SegmenterOutput, size: tuple[int, int]) -> torch.Tensor:
        scores = probabilities(output, size)
        return torch.zeros_like(scores) if classes == 2 else scores * 0 - torch.arange(classes).view(-1, 1, 1)

    monkeypatch.setattr(scoring, "probabilities", background)
    folder = write_tiles(tmp_path / "data", classes=classes)
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), "--set", "epochs=1"]
    base += ["--set", "mask_tokens=1"]
    assert run.main([*base, "--executor", "inline", "--datasets", f"tiles={folder}"]) == 1
    (record,) = RecordStore(tmp_path / "runs")
    assert (record.code, record.scores) == ("BLANK", {})
    assert "another rate" in record.message
    assert ("mask tokens" in record.message) == (classes == 3)
    assert "Blank" in (tmp_path / "runs" / "state" / record.key / "error.log").read_text()
    assert "BLANK (0/1)" in capsys.readouterr().out


def test_a_worker_knows_the_benchmark_from_the_runs_json_alone(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "data", classes=3)
    (job,) = planned_of(tmp_path, "--datasets", f"land={folder}", "--set", r"benchmarks.land.group=(.+)_r\d+c\d+").jobs
    job = Job.from_json(json.loads(json.dumps(asdict(job))))
    del BENCHMARKS._loaded["land"]  # as in a process that has planned nothing
    data = open_data(job.run, Path(job.dataset_root))
    assert list(data.benchmark.class_names) == ["ground", "tree", "house"]
    assert [len(source) for source in (data.train, data.val, data.tests["test"])] == [8, 2, 2]
    assert len(set(data.groups("test").values())) == 1
