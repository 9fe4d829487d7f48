"""Masks of own images: their scores are the record's, whatever they are made from, and nothing is overwritten."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from harness.archive.schema import Record
from harness.cli import data, export, predict
from harness.experiment import predicting
from harness.experiment.building import RunData, open_data
from harness.experiment.experiment import run_experiment
from harness.experiment.predicting import overlay, palette
from harness.experiment.trained import METADATA
from harness.registry import add_own
from tests.datasets.test_labels import write_folders
from tests.harness.experiment.finished import finished
from tests.harness.planned import job_of


class Finished:
    """A finished run on generated images, and its test images and masks in two folders."""

    def __init__(self, results: Path, benchmark: str, **rules: str) -> None:
        job = job_of(results, benchmarks=(benchmark,), epochs=1, train_limit=8, **rules)
        self.results = results
        self.record: Record = run_experiment(job)
        assert self.record.code == "OK", self.record.message
        self.data: RunData = open_data(job.run, Path(job.dataset_root))
        self.images, self.masks = results / f"{job.run.key}-images", results / f"{job.run.key}-masks"
        self.images.mkdir()
        self.masks.mkdir()
        for pair in self.data.tests["test"].pairs:
            shutil.copy(pair.image, self.images)
            shutil.copy(pair.mask, self.masks / f"{pair.stem}{pair.mask.suffix}")

    @property
    def model(self) -> list[str]:
        return ["--run", self.record.key, "--results", str(self.results)]

    def predict(self, out: Path, *more: str) -> int:
        return predict.main([*self.model, "--images", str(self.images), "--out", str(out), *more])

    def scores(self, capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> dict[str, float]:
        capsys.readouterr()
        assert data.main(["score", str(folder), str(self.masks), "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["scores"]

    @property
    def recorded(self) -> dict[str, float]:
        return self.record.scores["best"]["test"]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("binary"), "kvasir", **{"evaluation.threshold": "0.3"})


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("classes"), "trans10k_v2")


def test_scores_of_the_folder_are_exactly_the_records(binary: Finished, tmp_path: Path, capsys) -> None:
    assert binary.predict(tmp_path / "out", "--probabilities") == 0
    probabilities, overlap = tmp_path / "out" / "probabilities", ("iou", "dice")
    assert binary.scores(capsys, probabilities, "--set", "threshold=0.3") == binary.recorded
    assert {Image.open(path).mode for path in (tmp_path / "out").glob("*.png")} == {"L"}
    scores = binary.scores(capsys, tmp_path / "out")
    assert [scores[name] for name in overlap] == [binary.recorded[name] for name in overlap]
    assert binary.scores(capsys, probabilities)["iou"] != binary.recorded["iou"], "at the threshold 0.5"


def test_scores_of_several_classes_are_exactly_the_records(classes: Finished, tmp_path, capsys) -> None:
    assert classes.predict(tmp_path / "out", "--overlay") == 0
    masks = {path.stem: Image.open(path) for path in (tmp_path / "out").glob("*.png")}
    assert {image.mode for image in masks.values()} == {"P"}
    drawn = {path.stem: Image.open(path).size for path in (tmp_path / "out" / "overlays").glob("*.png")}
    assert drawn == {stem: image.size for stem, image in masks.items()}
    scores = classes.scores(capsys, tmp_path / "out", "--num-classes", "12")
    assert scores == classes.recorded


def test_an_overlay_colours_the_edge_of_a_region_and_nothing_else() -> None:
    pixels = np.full((20, 30, 3), 90, dtype=np.uint8)
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:15, 5:15] = 2
    drawn = overlay(pixels, mask)
    edge = (drawn == (0, 255, 0)).all(axis=2)  # the class's colour at full brightness, two pixels wide
    dark = (drawn == 0).all(axis=2)
    assert edge.sum() == 10 * 10 - 6 * 6
    assert dark.sum() == 6 * 6 - 4 * 4
    assert (drawn[~(edge | dark)] == 90).all()
    assert edge[5:7, 5:15].all()
    colours = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [224, 224, 192]]
    assert palette()[[0, 1, 2, 3, 8, 255]].tolist() == colours  # PASCAL VOC's


def test_labels_are_a_table_that_the_same_command_leaves_alone_and_no_other_changes(tmp_path: Path, capsys) -> None:
    folder, out = write_folders(tmp_path / "pets"), tmp_path / "out"
    add_own("pets", ("cat", "dog"), labels=True)
    rules: dict[str, Any] = {
        "dataset_roots": {"pets": folder},
        "task": "classification",
        "decoder": "mean-pool",
        "image_size": 64,
    }
    run = finished(tmp_path, "lora", benchmark="pets", backbone="tiny_timm", rules=rules)
    words = ["--run", run.key, "--results", str(tmp_path), "--out", str(out), "--images"]
    assert predict.main([*words, str(folder / "cat")]) == 0
    table = (out / "labels.csv").read_text()
    head, *rows = csv.reader(io.StringIO(table))
    assert (head, len(rows)) == (["image", "label", "cat", "dog"], 12)
    for _, label, *chances in rows:
        assert label == ("cat", "dog")[int(float(chances[0]) < float(chances[1]))]
        assert sum(map(float, chances)) == pytest.approx(1.0, abs=1e-5)
    for given, code, said in (
        (["cat"], 0, "12 already existed"), (["cat/00.png"], 2, "other images"), (["cat", "--overlay"], 2, "are for masks"),
        (["cat", "--probabilities"], 2, "are for masks"),
    ):  # fmt: skip
        assert predict.main([*words, str(folder / given[0]), *given[1:]]) == code
        shown = capsys.readouterr()
        assert said in shown.out + shown.err
        assert [path.name for path in sorted(out.iterdir())] == ["labels.csv", "predictions.json"]
        assert (out / "labels.csv").read_text() == table


def test_an_exported_adapter_predicts_the_same_without_any_results_folder(binary: Finished, tmp_path, monkeypatch):
    file = tmp_path / "adapter.safetensors"
    assert export.main([*binary.model, "--out", str(file), "--adapter-only"]) == 0
    assert binary.predict(tmp_path / "by-run") == 0
    monkeypatch.chdir(tmp_path)
    arguments = ["--adapter", str(file), "--images", str(binary.images), "--out", "by-file"]
    assert predict.main(arguments) == 0
    expected = sorted((tmp_path / "by-run").glob("*.png"))
    assert len(expected) == len(list(binary.images.iterdir()))
    for path in expected:
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "by-file" / path.name)))


def test_a_folder_that_holds_anything_is_refused_and_stays(binary: Finished, tmp_path: Path, monkeypatch, capsys):
    """Were a mask to go where PNG images are, it would replace its image."""
    photos, out, links = tmp_path / "run" / "overlays", tmp_path / "out", tmp_path / "links"
    photos.mkdir(parents=True)
    for number, image in enumerate(sorted(binary.images.iterdir())[:2]):
        Image.open(image).save(photos / f"{number}.png")
    (tmp_path / "same").symlink_to(photos)
    links.mkdir()
    shutil.copy(photos / "0.png", links)
    assert predict.main([*binary.model, "--images", str(links), "--out", str(out)]) == 0
    shutil.copy(photos / "1.png", out)
    (links / "1.png").symlink_to(out / "1.png")
    monkeypatch.chdir(photos)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for images, folder in (
        (photos, photos), (photos, tmp_path / "same"), (tmp_path / "same", photos), (photos, "."), (".", "../overlays"),
        (photos, photos.parent), (photos / "0.png", photos), (links, out),
    ):  # fmt: skip
        capsys.readouterr()
        words = ["--images", str(images), "--out", str(folder), "--overlay"]
        assert predict.main([*binary.model, *words]) == 2, words
        assert f"--out {folder}" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def stop_after(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """The command ends as by Ctrl-C when so many images have gone through the network."""

    def move(what: str, done: int, total: int) -> None:
        if done >= images:
            raise KeyboardInterrupt

    monkeypatch.setattr(predict, "bars", lambda: nullcontext(move))


def test_the_same_command_continues_where_it_was_stopped(binary: Finished, tmp_path, capsys, monkeypatch, says):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predicting, "EVALUATION_BATCH", 1)
    options, out = ["--overlay"], tmp_path / "out"
    words = [*binary.model, "--images", str(binary.images), "--out", str(out), *options]
    assert binary.predict(tmp_path / "whole", *options) == 0
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert binary.predict(out, *options) != 0
    with monkeypatch.context() as patched:
        patched.setattr(predicting.Prediction, "_write", full)
        assert "finished masks stay, and the same command continues" in says(predict.main, *words, code=2)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    count = len(list(binary.images.iterdir()))
    assert 2 <= len(before) < count
    capsys.readouterr()
    assert binary.predict(out, *options) == 0
    said = capsys.readouterr().out
    assert f"masks of {count - len(before)} images" in said
    assert f"{len(before)} already existed" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.png")}
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")} == files
    assert binary.predict(out, *options) == 0
    assert f"{count} already existed" in capsys.readouterr().out


@pytest.mark.parametrize(("other", "named"), [
    ("images", "other images"), ("touched", "other images"), ("options", "other options"), ("prompts", "other prompts"),
    ("model", "other model"), ("note", "cannot be read"), ("link", "is a link"),
])  # fmt: skip
def test_another_command_does_not_continue_a_folder(binary: Finished, tmp_path, capsys, other: str, named: str) -> None:
    image, out = tmp_path / "photo.png", tmp_path / "out"
    Image.open(next(binary.images.iterdir())).save(image)
    words = [*binary.model, "--images", str(image), "--out", str(out)]
    assert predict.main(words) == 0
    if other == "images":
        image.rename(tmp_path / "second.png")
        words[-3] = str(tmp_path / "second.png")
    elif other == "touched":
        os.utime(image, ns=(1, 1))
    elif other == "model":
        file = tmp_path / "adapter.safetensors"
        assert export.main([*binary.model, "--out", str(file), "--adapter-only"]) == 0
        with safe_open(file, "pt") as opened:
            run, state = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        save_file({name: tensor + 1 for name, tensor in state.items()}, file, metadata=run)
        words = ["--adapter", str(file), *words[-4:]]
    elif other == "note":
        (out / "predictions.json").write_text("[" * 200_000)
    elif other == "link":
        (tmp_path / "elsewhere").mkdir()
        (out / "overlays").symlink_to(tmp_path / "elsewhere")
    words += {"options": ["--overlay"], "prompts": ["--box", "1,1,9,9"]}.get(other, [])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert predict.main(words) == 2
    *_, line = capsys.readouterr().err.splitlines()  # a box where none was trained with is remarked on
    assert named in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def _bad(binary: Finished, folder: Path) -> list[tuple[str, list[str]]]:
    """Message and arguments; the last of equal options counts."""
    image = next(binary.images.iterdir())
    (folder / "twice").mkdir()
    shutil.copy(image, folder / "twice" / image.name)
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("kept")
    (folder / "empty").mkdir()
    good = [*binary.model, "--images", str(image), "--out", str(folder / "new")]
    (folder / "adapter.safetensors").write_bytes(b"nothing")
    adapter = ["--adapter", str(folder / "adapter.safetensors"), *good[4:]]
    shutil.copy(image, odd := folder / os.fsdecode(b"a\xff.png"))
    run = asdict(binary.record.run)
    run["method_config"]["rank"] = 10**9
    save_file({"x": torch.zeros(1)}, folder / "huge.safetensors", metadata={METADATA: json.dumps({"run": run})})
    return [
        ("no such file or folder", [*good, "--images", "/no/such/image.png"]),
        ("no image there", [*good, "--images", str(folder / "empty")]),
        ("would have one mask", [*good, "--images", str(image), str(folder / "twice")]),
        ("not empty", [*good, "--out", str(folder / "full")]),
        ("not empty", [*good, "--out", str(folder / "full" / "precious.txt")]),
        ("has the key 'zzz'", [*good, "--run", "zzz"]),
        ("is not the file that run", [*good, "--checkpoint", str(image)]),
        ("adapter.safetensors is not a .safetensors file", adapter),
        ("--adapter nowhere: no such file or folder; give what", ["--adapter", "nowhere", *adapter[2:]]),
        ("leave it out with --adapter", [*adapter, "--results", str(folder)]),
        ("is unreadable", [*good, "--images", str(folder / "adapter.safetensors")]),
        ("rename it", [*good, "--images", str(odd)]),
        ("memory", ["--adapter", str(folder / "huge.safetensors"), *good[4:]]),
    ]


def test_bad_input_is_one_line_and_loses_nothing(binary: Finished, tmp_path, says) -> None:
    for message, arguments in _bad(binary, tmp_path):
        assert message in says(predict.main, *arguments, code=2)
    assert (tmp_path / "full" / "precious.txt").read_text() == "kept"
    assert not (tmp_path / "new").exists()
