"""Records in the trackers' own files, read back by the trackers' own libraries where they are installed, and as tables."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.archive.masks import KeptMask, encoded_masks
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.cli import metrics, records, tables
from harness.protocols.load import card_rules
from harness.report import trackers

EPOCHS = ((1, 0.9, 0.25), (2, 0.5, 0.75))
"""Epoch, loss, validation."""


def _run(seed: int, method: str = "naslora", **config: Any) -> Run:
    return Run(
        method=method, method_config=config, variant=method, benchmark="kvasir", backbone="tiny", checkpoint="",
        protocol="demo", protocol_hash="0" * 8, rules=card_rules("demo", "kvasir") or {}, seed=seed, manifest="m", split_rule="r",
    )  # fmt: skip


SEARCHED = _run(0, rank=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs with curves, α and a mask each, and one that failed."""
    root = tmp_path_factory.mktemp("runs")
    mask = np.zeros((4, 4), dtype=np.uint8)
    masks = encoded_masks([KeptMask(split="test", stem="a", predicted=mask + 1, truth=mask)])
    told: Any = {
        "history": [{"epoch": e, "loss": loss, "lr": 1e-3, "val": {"s_measure": val}} for e, loss, val in EPOCHS],
        "architecture": [{"blocks.0.qkv": [0.125] * 8}, {"blocks.0.qkv": [0.3, *[0.1] * 7]}],
    }
    scores = {"best": {"test": {"iou": 0.5, "s_measure": 0.5}}}
    for run in (SEARCHED, _run(1, rank=3)):
        RecordStore(root).write(Record(run=run, key=run.key, code="OK", scores=scores, **told), masks_png=masks)
    failed = _run(2, "lora")
    RecordStore(root).write(Record(run=failed, key=failed.key, code="OOM", **told), masks_png=masks)
    return root


def _export(archive: Path, target: str, out: Path) -> None:
    """In a process of its own: some of them keep a folder, or a service, for as long as they live."""
    words = ["records", "export", "--to", target, str(out), "--results", str(archive)]
    command, quiet = [sys.executable, "-m", "harness", *words], {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"needs {package}")


def test_tensorboard_reads_curves_alphas_scores_rules_and_pictures(archive: Path, tmp_path: Path) -> None:
    _require("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _export(archive, "tensorboard", tmp_path / "tb")
    folders = sorted((tmp_path / "tb").iterdir())
    assert [len(folder.name.rpartition("-")[2]) for folder in folders] == [8, 8]  # of the key
    read = EventAccumulator(str(folders[0]))
    read.Reload()
    assert [(point.step, pytest.approx(point.value)) for point in read.Scalars("train/loss")] == [(1, 0.9), (2, 0.5)]
    assert [point.value for point in read.Scalars("val/s_measure")] == [0.25, 0.75]
    assert [point.value for point in read.Scalars("best/test/iou")] == [0.5]
    alphas = [tag for tag in read.Tags()["scalars"] if tag.startswith("alpha/blocks.0.qkv/")]
    assert len(alphas) == 8
    assert "alpha/blocks.0.qkv/skip_connect" in alphas
    (picture,) = read.Images("masks/test/a")
    assert (picture.width, picture.height) == (8, 4)
    assert b"image_size" in read.Tensors("rules/text_summary")[0].tensor_proto.string_val[0]


def _wandb_records(data: bytes) -> Iterator[Any]:
    """The records of an offline run: protobuf in LevelDB's log format, behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    body, at = b"", 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        body += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(body)
            body = b""


def test_an_offline_run_of_wandb_holds_the_record(archive: Path, tmp_path: Path) -> None:
    _require("wandb")
    _export(archive, "wandb", tmp_path / "w")
    files = sorted((tmp_path / "w" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    logged = list(_wandb_records(files[0].read_bytes()))
    runs, steps, ends = (
        [getattr(r, kind) for r in logged if r.HasField(kind)] for kind in ("run", "history", "summary")
    )
    config = {item.key: json.loads(item.value_json) for run in runs for item in run.config.update}
    assert (config["image_size"], config["naslora.rank"]) == (128, 3)
    history = [{"/".join(item.nested_key): json.loads(item.value_json) for item in step.item} for step in steps]
    assert [item["train/loss"] for item in history] == [0.9, 0.5]
    summary = {item.key: json.loads(item.value_json) for end in ends for item in end.update}
    assert summary["best/test/iou"] == 0.5
    assert len(list(files[0].parent.glob("files/media/images/**/*.png"))) == 1


def test_trackio_holds_the_record(archive: Path, tmp_path: Path) -> None:
    _require("trackio")
    _export(archive, "trackio", tmp_path / "k")
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; runs = S.get_runs('demo'); "
        "print(json.dumps([len(runs), S.get_logs('demo', runs[0]), S.get_run_config('demo', runs[0])]))"
    )
    place = {**os.environ, "TRACKIO_DIR": str(tmp_path / "k")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=place)
    count, logs, config = json.loads(done.stdout)
    assert (count, config["naslora.rank"]) == (2, 3)
    assert [entry["train/loss"] for entry in logs if "train/loss" in entry] == [0.9, 0.5]
    assert [entry["best/test/iou"] for entry in logs if "best/test/iou" in entry] == [0.5]
    assert len(list((tmp_path / "k" / "media").rglob("*.png"))) == 2


def test_mlflow_finds_runs_metrics_parameters_and_pictures(archive: Path, tmp_path: Path) -> None:
    _require("mlflow", "sqlalchemy")
    from mlflow.tracking import MlflowClient

    _export(archive, "mlflow", tmp_path / "m")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'm' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    run = runs[0]
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 0.9), (2, 0.5)]
    assert (run.data.metrics["best/test/iou"], run.data.params["naslora.rank"]) == (0.5, "3")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "masks/test")] == ["masks/test/a.png"]


def test_tables_hold_the_same_numbers_in_both_forms(archive: Path, tmp_path: Path) -> None:
    _require("pyarrow")
    for form in ("csv", "parquet"):
        assert records.main(["export", "--to", form, str(tmp_path / form), "--results", str(archive)]) == 0
    assert sorted(file.stem for file in (tmp_path / "csv").iterdir()) == ["alphas", "history", "scores"]
    for name in ("alphas", "history", "scores"):
        read = pd.read_parquet(tmp_path / "parquet" / f"{name}.parquet")
        text = pd.read_csv(tmp_path / "csv" / f"{name}.csv", keep_default_na=False, dtype={"protocol_hash": str})
        assert read.to_dict("records") == text.to_dict("records")
    history = pd.read_csv(tmp_path / "csv" / "history.csv")
    assert sorted(history[history.quantity == "train/loss"].value) == [0.5, 0.5, 0.9, 0.9]


def test_a_page_of_numbers_is_the_same_as_csv_and_as_parquet(archive: Path, tmp_path: Path) -> None:
    _require("pyarrow")
    for form in ("csv", "parquet"):
        assert tables.main(["--results", str(archive), "--format", form]) == 0
    text = pd.read_csv(archive / "tables" / "demo.csv", dtype={"protocol_hash": str, "seeds": str, "planned": str})
    read = pd.read_parquet(archive / "tables" / "demo.parquet")
    assert list(read.columns) == list(text.columns)
    assert read["protocol_hash"].tolist() == text["protocol_hash"].tolist() == ["0" * 8] * len(text)
    assert np.array_equal(read["mean"].to_numpy(dtype=float), text["mean"].to_numpy(dtype=float), equal_nan=True)
    assert 0.5 in read["mean"].tolist()


def test_images_of_a_folder_are_scored_into_parquet_too(tmp_path: Path, says) -> None:
    _require("pyarrow")
    folders = {"--pred": tmp_path / "predicted", "--gt": tmp_path / "truth"}
    for folder in folders.values():
        folder.mkdir()
        for stem in ("a", "b"):
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / f"{stem}.png")
    words = [word for pair in folders.items() for word in pair]
    for form in ("csv", "parquet", "parquet"):  # its own is overwritten
        says(metrics.main, *words, "--per-image", tmp_path / f"images.{form}")
    read = pd.read_parquet(tmp_path / "images.parquet")
    text = pd.read_csv(tmp_path / "images.csv", keep_default_na=False)
    assert read["stem"].tolist() == text["stem"].tolist() == ["a", "b"]
    assert read["iou"].tolist() == text["iou"].tolist() == [1.0, 1.0]
    (tmp_path / "mine.parquet").write_text("something else")
    says(metrics.main, *words, "--per-image", tmp_path / "mine.parquet", code=2)


@pytest.mark.parametrize("wrong", ["not installed", "not empty", "no folder", "none meant", "damaged"])
def test_bad_input_is_one_line_and_nothing_half_written(archive: Path, tmp_path, monkeypatch, says, wrong: str):
    out, more, results = tmp_path / "out", [], archive
    if wrong == "not installed":
        monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    elif wrong == "not empty":
        out.mkdir()
        (out / "mine").touch()
    elif wrong == "no folder":
        out = tmp_path / "no" / "out"
    elif wrong == "none meant":
        more = ["--protocol", "standard"]
    else:
        pytest.importorskip("tensorboard")
        results = Path(shutil.copytree(archive, tmp_path / "damaged"))
        masks = RecordStore(results).masks_path(SEARCHED.key)
        masks.write_bytes(masks.read_bytes()[:-20])
    before = sorted(tmp_path.rglob("*"))
    says(records.main, "export", "--to", "tensorboard", out, "--results", results, *more, code=2)
    assert sorted(tmp_path.rglob("*")) == before
