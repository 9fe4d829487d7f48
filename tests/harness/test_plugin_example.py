"""The worked example of `docs/plugins.md`: it runs, and the doctor examines it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli import tables
from harness.cli.doctor import main as doctor
from harness.registry import BENCHMARKS, METHODS
from harness.run import main as run
from tests.values import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "plugin.py"
SHORTEST = EXAMPLE.with_name("shortest.py")


def test_the_shortest_benchmark_is_planned_with_its_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 12), ("test", 3)):
        for kind in ("images", "masks"):
            folder = tmp_path / "scans" / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB" if kind == "images" else "L", (8, 8)).save(folder / f"{split}{index}.png")
    words = ["--methods", "gainlora[rank=2]", "--datasets", "scans", "--data", str(tmp_path), "--protocol", "demo"]
    assert run([*words, "--plugin", str(SHORTEST), "--set", "data=files", "--checkpoint", "none", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "scans          official test; val carved (seed 0, 1 of 12 train images by hashed stem)" in shown
    assert "nothing is missing" in shown


def test_worked_example_runs_with_the_flags_of_a_built_in_method(tmp_path: Path, capsys) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / "pets" / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((40, 48), np.uint8)
            mask[8 : 8 + generator.integers(8, 24), 8 : 8 + generator.integers(8, 30)] = 255
            image = (generator.integers(0, 80, (40, 48, 3)) + (mask[..., None] > 0) * 120).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / "pets" / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "pets" / split / "masks" / f"{index}.png")
    words = ["--plugin", str(EXAMPLE), "--methods", "ia3[mlp=false]", "--datasets", "pets", "--protocol", "demo"]
    words += ["--data", str(tmp_path / "data"), "--set", "data=files", "--set", "epochs=1", "--checkpoint", "none"]
    assert run([*words, "--results", str(tmp_path / "runs"), "--executor", "inline"]) == 0
    shown = capsys.readouterr().out
    assert "| ia3[mlp=false] |" in shown
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/records/**/*.json")]
    assert [record["run"]["method"] for record in records] == ["ia3"]
    assert [record["run"]["benchmark"] for record in records] == ["pets"]
    (header,) = [line for line in shown.splitlines() if line.startswith("| method |")]
    scores = [cell.strip() for cell in header.strip("| ").split("|")][1:3]
    assert scores == ["Pets IoU ↑", "Pets Dice ↑"]
    METHODS._loaded.pop("ia3"), BENCHMARKS._loaded.pop("pets")  # as in a process that loads no plug-in
    assert tables.main(["--results", str(tmp_path / "runs")]) == 0
    assert "| Pets IoU ↑ | Pets Dice ↑ |" in (tmp_path / "runs" / "tables" / "demo.md").read_text()


@pytest.mark.usefixtures("unexamined")  # what its contract finds: tests/methods/test_contract.py
def test_doctor_reports_a_plugin_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--plugin", str(EXAMPLE), "--methods", "IA3", "--backbone", "vit_b", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["method"] == "ia3"
    assert row["backbone"] == "vit_b"
    assert row["encoder_parameters"] == 12 * (2 * 768 + 3072) == 55_296
    assert row["trainable_parameters"] == 55_296 + 3_505_536
    assert row["total_parameters"] > row["trainable_parameters"]
    assert row["merge_modes"] == ["exact"]
    assert row["identity_at_init"] is True
    assert row["passed"] is True
