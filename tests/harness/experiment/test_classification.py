"""Labels from the command line to the table: trained, selected, tested, merged, recorded; what does not fit is refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from harness import run
from harness.archive.files import image_tables
from harness.archive.store import RecordStore
from harness.cli import predict, tables
from harness.cli.records import main as records
from harness.datasets import samples
from harness.planning.plan import Plan
from harness.planning.understand import understand
from harness.settings import Settings
from harness.system.errors import UsageError
from tests.datasets.test_labels import SPLITS, write_folders
from tests.harness.planned import found_and_planned

pytestmark = pytest.mark.slow

LABELS = ["--backbone", "tiny_timm", "--set", "task=classification"]


def _planned(tmp_path: Path, *words: str) -> Plan:
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), *words]
    request, _, _ = understand(run.parser().parse_args(base), Settings())
    return found_and_planned(request, samples=tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four methods on a folder of three classes, whose mean grey tells them apart."""
    root = tmp_path_factory.mktemp("labels")
    folder = write_folders(root / "pets", classes=("cat", "cow", "dog"), splits=SPLITS)
    words = ["--methods", "decoder,bitfit,lora,naslora", "--protocol", "demo", *LABELS, "--datasets", f"pets={folder}"]
    sets = ["decoder=mean-pool", "epochs=2", "image_size=64", "naslora.search_start_epoch=1"]
    options = [word for setting in sets for word in ("--set", setting)]
    assert run.main([*words, *options, "--results", str(root / "runs"), "--executor", "inline"]) == 0
    return root / "runs"


def test_every_method_trains_is_selected_tested_and_merged(finished: Path) -> None:
    runs = {record.run.method: record for record in RecordStore(finished)}
    assert {name: record.code for name, record in runs.items()} == dict.fromkeys(
        ("decoder", "bitfit", "lora", "naslora"), "OK"
    )
    for record in runs.values():
        assert record.counts == {"train": 18, "val": 6, "test": 9}
        assert record.scores["best"]["test"].keys() == {"accuracy", "nll", "ece"}
        assert record.scores["best"]["val"].keys() == {"nll"}
        assert record.run.rules["own_classes"] == ["cat", "cow", "dog"]
        assert record.parameters["decoder"] == 64 * 3 + 3
        assert record.selected_epoch is not None
        assert record.history[record.selected_epoch - 1]["val"] == min(
            (entry["val"] for entry in record.history), key=lambda val: val["nll"]
        )
        assert not (finished / "records" / f"{record.key}.masks.png").exists()
    assert runs["lora"].merge["exact"]["extra_parameters"] == 0
    assert runs["lora"].merge["exact"]["relative_deviation"] < 1e-5
    for name in ("bitfit", "lora"):
        merged = runs[name].scores["merged-exact"]["test"]
        assert merged == pytest.approx(runs[name].scores["best"]["test"], abs=1e-5)
    assert "decoded" in runs["naslora"].scores


def test_image_scores_are_those_of_the_record(finished: Path) -> None:
    assert records(["check", str(finished)]) == 0
    for record in RecordStore(finished):
        images = image_tables(finished / "records" / f"{record.key}.images.csv")["best", "test"]
        accuracy = images.scores["accuracy"].tolist()
        assert len(accuracy) == 9
        assert set(accuracy) <= {0.0, 1.0}
        assert record.scores["best"]["test"]["accuracy"] == pytest.approx(sum(accuracy) / 9)


def test_the_table_says_what_labels_are_scored_by(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--results", str(finished)]) == 0
    page = (finished / "tables" / "demo.md").read_text()
    assert "| method | pets Acc ↑ | pets 100·NLL ↓ | pets ECE ↓ |" in page
    assert "decoder mean-pool" in page
    assert "task classification instead of segmentation" in page
    assert "own_classes" not in page


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--datasets", "pets=DIR"], "pets has one label per image and no masks"),
        (["--datasets", "pets=DIR", *LABELS], "decoder=sam learns masks; decoder=class-token or"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(tmp_path: Path, words: list[str], reason: str) -> None:
    folder = write_folders(tmp_path / "pets")
    with pytest.raises(UsageError, match=reason):
        _planned(tmp_path, *(word.replace("DIR", str(folder)) for word in words))


def test_one_card_may_hold_both_tasks(tmp_path: Path) -> None:
    samples.write_samples("kvasir", tmp_path, images=12, size=32)
    folder = write_folders(tmp_path / "pets")
    both = [f"benchmarks.pets.{rule}" for rule in ("task=classification", "decoder=class-token")]
    planned = _planned(
        tmp_path, "--backbone", "tiny_timm", "--datasets", f"kvasir,pets={folder}",
        *(w for rule in both for w in ("--set", rule)),
    )  # fmt: skip
    assert [(job.run.benchmark, job.run.rules["task"]) for job in planned.jobs] == [
        ("kvasir", "segmentation"), ("pets", "classification"),
    ]  # fmt: skip


def _rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_predicted_labels_are_those_of_the_record(finished: Path, tmp_path, capsys) -> None:
    (record,) = (record for record in RecordStore(finished) if record.run.method == "lora")
    images = image_tables(finished / "records" / f"{record.key}.images.csv")["best", "test"]
    pets = finished.parent / "pets" / "test"
    words = ["--run", record.key, "--results", str(finished)]
    for name in ("cat", "cow", "dog"):
        given = [*words, "--images", str(pets / name), "--out", str(tmp_path / name)]
        assert predict.main(given) == 0
        rows = _rows(tmp_path / name)
        assert sorted(rows) == ["00.png", "01.png", "02.png"]
        for image, row in rows.items():
            stem = f"test_{name}/{image.removesuffix('.png')}"
            chances = {label: float(row[label]) for label in ("cat", "cow", "dog")}
            assert row["label"] == max(chances, key=lambda label: chances[label])
            at = images.stems.index(stem)
            assert images.scores["accuracy"][at] == (row["label"] == name)
            assert images.scores["nll"][at] == pytest.approx(-math.log(chances[name]), abs=1e-4)
    assert f"labels of 3 images by run {record.key}" in capsys.readouterr().out
