"""Data of one's own from the command line to the table: known by its run alone, under its own name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import export, predict, run
from harness.planning.asked import understand
from harness.planning.job import Job
from harness.planning.plan import Plan, plan
from harness.protocols.load import from_rules
from harness.records.schema import Record
from harness.records.store import RecordStore
from harness.registry import BENCHMARKS
from harness.settings.read import Settings, load_settings

REPOSITORY = Path(__file__).parents[3]
TILES = REPOSITORY.parent / "shared" / "data" / "massachusetts_roads_tiles"
GROUP = r"benchmarks.tiles.group=(.+)_r\d+c\d+"


def _write(root: Path, *, classes: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for index in range(12):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((40, 50), dtype=np.uint8)
        for label in range(1, classes):
            top, left = rng.integers(0, 25, 2)
            mask[top : top + 12, left : left + 15] = label
        pixels = np.clip(rng.normal(90, 15, (40, 50, 3)) + 100 * mask[..., None] / classes, 0, 255)
        name = f"site{index // 2}_r{index % 2}c0.png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(mask if classes > 2 else mask * np.uint8(255)).save(root / "masks" / name)
    if classes > 2:
        (root / "classes.txt").write_text("\n".join(["ground", "tree", "house", "water"][:classes]))
    return root


def _planned(tmp_path: Path, *words: str, settings: Settings | None = None) -> Plan:
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), *words]
    return plan(understand(run.parser().parse_args(base), settings or Settings()).request)


def _run(tmp_path: Path, *words: str) -> Record:
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), "--set", "epochs=1"]
    assert run.main([*base, *words]) == 0
    (record,) = RecordStore(tmp_path / "runs")
    return record


def test_a_folder_becomes_a_row_under_its_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _write(tmp_path / "data")

    record = _run(tmp_path, "--datasets", f"tiles={folder}", "--set", GROUP, "--executor", "inline")

    assert (record.code, record.run.benchmark) == ("OK", "tiles")
    assert record.run.rules["own_classes"] == ["background", "foreground"]
    assert record.run.data_note == ""
    assert "by groups of" in record.run.split_rule
    table = capsys.readouterr().out
    assert "tiles" in table
    assert "IoU" in table
    assert "generated samples" not in table
    assert "own_classes" not in table


def test_several_classes_are_scored_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _write(tmp_path / "data", classes=4)

    record = _run(tmp_path, "--datasets", f"land={folder}", "--executor", "inline")

    assert record.run.rules["own_classes"] == ["ground", "tree", "house", "water"]
    assert record.scores["best"]["test"].keys() == {"miou", "accuracy"}
    assert "mIoU" in capsys.readouterr().out


def test_a_worker_knows_the_benchmark_from_the_runs_json_alone(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", classes=3)
    planned = _planned(tmp_path, "--datasets", f"land={folder}", "--set", r"benchmarks.land.group=(.+)_r\d+c\d+")
    (job,) = planned.jobs
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from harness.experiment.data import open_data\n"
        "from harness.planning.job import Job\n"
        "job = Job.from_json(json.loads(sys.argv[1]))\n"
        "data = open_data(job.run, Path(job.dataset_root))\n"
        "print(json.dumps([data.benchmark.class_names, data.counts, sorted(data.groups('test').values())]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )

    names, counts, groups = json.loads(done.stdout)
    assert names == ["ground", "tree", "house"]
    assert counts == {"train": 8, "val": 2, "test": 2}
    assert len(set(groups)) == 1


def test_name_classes_and_group_are_in_the_key(tmp_path: Path) -> None:
    folder = _write(tmp_path / "data", classes=3)
    pattern = r"benchmarks.land.group=(.+)_r\d+c\d+"

    def key(name: str, *more: str) -> str:
        (job,) = _planned(tmp_path, "--datasets", f"{name}={folder}", *more).jobs
        assert from_rules(job.run.rules).own_classes
        return job.run.key

    found = {key("land"), key("fields"), key("land", "--set", pattern)}
    (folder / "classes.txt").write_text("ground\ntree\nroof")
    assert len(found | {key("land")}) == 4


def test_a_benchmark_of_the_harness_takes_its_folder_so_too(tmp_path: Path) -> None:
    asked = understand(
        run.parser().parse_args(["--methods", "lora", "--datasets", f"kvasir={tmp_path},leaf"]), Settings()
    )
    assert asked.request.benchmarks == ("kvasir", "leaf")
    assert asked.request.dataset_roots == {"kvasir": tmp_path}


def test_settings_name_folders_of_ones_own_and_all_leaves_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "data")
    (tmp_path / "harness.toml").write_text(f'[datasets]\nTiles = "{folder}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_PEFT_SETTINGS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    settings = load_settings()

    (job,) = _planned(tmp_path, "--datasets", "tiles", settings=settings).jobs
    every = understand(run.parser().parse_args(["--methods", "lora", "--datasets", "all"]), settings).request

    assert (job.run.benchmark, Path(job.dataset_root)) == ("tiles", folder)
    assert "tiles" not in every.benchmarks
    assert len(every.benchmarks) == 9


def test_its_model_predicts_and_travels_without_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _write(tmp_path / "data", classes=3)
    record = _run(tmp_path, "--datasets", f"land={folder}", "--executor", "inline")
    file = tmp_path / "land.safetensors"
    command = ["--results", str(tmp_path / "runs"), "--run", record.key, "--out", str(file), "--adapter-only"]
    assert export.main([*command, "--verify"]) == 0
    del BENCHMARKS._loaded["land"]  # as in a process that has planned nothing
    capsys.readouterr()
    words = ["--adapter", str(file), "--images", str(folder / "images"), "--out", str(tmp_path / "masks")]
    assert predict.main(words) == 0
    assert "--num-classes 3" in capsys.readouterr().out
    assert len(list((tmp_path / "masks").glob("*.png"))) == 12
    assert predict.main(["--adapter", str(file), "--images", str(folder / "images"), "--out", str(folder)]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kvazir=DIR"], "did you mean 'kvasir'"),
        (["tiles=/no/such/folder"], "no folder /no/such/folder for tiles"),
        (["tiles="], "is not NAME=DIR"),
        (["tiles"], "unknown benchmark 'tiles'"),
        (["tiles=DIR", "--set", "group=("], "is no regular expression"),
        (["kvasir", "--set", "group=x"], "kvasir has its own rule"),
        (["tiles=DIR", "--set", "own_classes=[a,b]"], "it cannot be set"),
        (["tiles=DIR", "--set", "benchmarks.tiles.group=zzz"], "fits no part of the name"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    _write(tmp_path / "DIR")
    words = [word.replace("=DIR", f"={tmp_path}/DIR") for word in words]
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), "--datasets"]
    assert run.main([*base, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in line
    assert not list((tmp_path / "runs").glob("records/*.json"))


@pytest.mark.skipif(not TILES.is_dir(), reason="needs the road tiles beside the repository")
def test_foreign_tiles_are_split_by_their_images(tmp_path: Path) -> None:
    (job,) = _planned(tmp_path, "--datasets", f"tiles={TILES}", "--set", GROUP).jobs
    assert isinstance(job, Job)
    from harness.experiment.data import open_data

    data = open_data(job.run, Path(job.dataset_root))

    parts = [data.train, data.val, *data.tests.values()]
    sides = [{pair.stem.rpartition("_")[0] for pair in part.pairs} for part in parts]
    assert sum(len(part) for part in parts) == 70
    assert len(set().union(*sides)) == sum(map(len, sides)) == 39
