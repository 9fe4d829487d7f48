"""Data of one's own on the command line, in settings and in keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import run
from harness.archive.schema import Record
from harness.datasets.readers.folder_benchmark import SAMPLE_MARKER
from harness.datasets.samples import write_samples
from harness.dispatch.target import target_of
from harness.experiment.building import open_data
from harness.planning.understand import understand
from harness.pricing import plan_text
from harness.protocols.load import from_rules
from harness.report.runs import command_of
from harness.settings import load_settings
from harness.system.errors import UsageError
from harness.system.text import limited_to
from tests.datasets.test_labels import write_folders
from tests.harness.planning.tiles import planned_of, write_tiles


def test_name_classes_and_group_are_in_the_key(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "data", classes=3)
    pattern = r"benchmarks.land.group=(.+)_r\d+c\d+"

    def key(name: str, *more: str) -> str:
        (job,) = planned_of(tmp_path, "--datasets", f"{name}={folder}", *more).jobs
        assert from_rules(job.run.rules).own_classes
        return job.run.key

    keys = {key("land"), key("fields"), key("land", "--set", pattern)}
    (folder / "classes.txt").write_text("ground\ntree\nroof")
    assert len(keys | {key("land")}) == 4


@pytest.mark.parametrize(
    ("name", "lists", "untrained"),
    [
        ("tiles", ["test.txt"], False),
        ("tiles", ["train.txt", "val.txt", "test.txt"], False),
        ("tiles", [], True),
        ("kvasir", ["train.txt", "val.txt", "test.txt"], True),
    ],
)
def test_of_own_data_a_given_test_split_is_tested_and_nothing_else(
    tmp_path: Path, name: str, lists: list[str], untrained: bool
) -> None:
    """A benchmark's protocol stands. What is tested is in the run's rules, so that its key says it, and a worker obeys it."""
    written = write_samples("kvasir", tmp_path / "samples", images=12, size=32)
    folder = written if name == "kvasir" else write_tiles(tmp_path / "data")
    stems = [path.stem for path in sorted((folder / "images").iterdir())]
    for at, file in enumerate(lists):
        (folder / "splits").mkdir(exist_ok=True)
        (folder / "splits" / file).write_text("\n".join(stems[4 * at : 4 * at + 4]))
    few = ["--set", "test_untrained=true", "--set", "train_limit=3", "--set", "val_limit=1", "--set", "test_limit=0"]
    made = planned_of(tmp_path, "--datasets", f"{name}={folder}", *few)
    (job,) = made.jobs
    assert job.run.rules["test_untrained"] is untrained
    opened, images = open_data(job.run, Path(job.dataset_root)), made.images[name]
    assert (len(opened.tests["test"]) > images.test) is untrained
    shown = plan_text(made, (), target=target_of())
    assert f"{images.train} → 3 / {limited_to(images.val, 1)} / {images.test}" in shown
    assert ("nothing trains on are tested too" in shown) is untrained
    if name == "tiles" and lists:
        with pytest.raises(UsageError, match="tiles has its own test split"):
            planned_of(tmp_path, "--datasets", f"tiles={folder}", "--set", "benchmarks.tiles.test_untrained=true")


def test_files_that_are_given_for_a_benchmark_are_not_generated_whatever_the_card(tmp_path: Path) -> None:
    (write_samples("kvasir", tmp_path / "data", images=12, size=32) / SAMPLE_MARKER).unlink()
    (job,) = planned_of(tmp_path, "--datasets", f"kvasir={tmp_path / 'data'}").jobs
    assert job.run.data_note == "12 of 1,000"
    words = command_of([Record(run=job.run, key=job.run.key, code="OK")])
    assert "--datasets kvasir=DIR " in words
    assert "--data " not in words


def test_settings_name_folders_of_ones_own_and_all_leaves_them_out(tmp_path, monkeypatch) -> None:
    folder = write_tiles(tmp_path / "data")
    (tmp_path / "harness.toml").write_text(f'[datasets]\nTiles = "{folder}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_PEFT_SETTINGS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    settings = load_settings()
    (job,) = planned_of(tmp_path, "--datasets", "tiles", settings=settings).jobs
    every = understand(run.parser().parse_args(["--methods", "lora", "--datasets", "all"]), settings)[0]
    assert (job.run.benchmark, Path(job.dataset_root)) == ("tiles", folder)
    assert "tiles" not in every.benchmarks
    assert len(every.benchmarks) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiles=/no/such/folder"], "no folder /no/such/folder for tiles"),
        (["tiles"], "unknown benchmark 'tiles'"),
        (["pets=DIR/../PETS"], "pets has one label per image and no masks"),
        (["tiles=DIR", "--set", "group=("], "is not a regular expression"),
        (["kvasir", "--set", "group=x"], "kvasir has its own rule"),
        (["tiles=DIR", "--set", "own_classes=[a,b]"], "it cannot be set"),
        (["tiles=DIR", "--set", "benchmarks.tiles.group=zzz"], "fits no part of the name"),
    ],
)
def test_bad_input_is_one_line(tmp_path, says, words: list[str], message: str) -> None:
    write_tiles(tmp_path / "DIR")
    write_folders(tmp_path / "PETS")
    words = [word.replace("=DIR", f"={tmp_path}/DIR") for word in words]
    base = ["--methods", "lora", "--protocol", "demo", "--results", str(tmp_path / "runs"), "--datasets"]
    assert message in says(run.main, *base, *words, code=2)
    assert not list((tmp_path / "runs").glob("records/*.json"))


def _redraw(folder: Path, draw: Callable[[np.ndarray], np.ndarray], names: str = "*") -> None:
    for path in sorted((folder / "masks").glob(f"{names}.png")):
        Image.fromarray(draw(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("draw", "names", "word"),
    [
        (lambda mask: mask * 0, "site*[0-3]_r?c0", " masks hold one class"),
        (lambda mask: np.repeat(np.repeat(mask, 2, 0), 2, 1), "*", "another size"),
        (lambda mask: mask, "*", "test images: 1"),
    ],
)
def test_what_is_odd_about_masks_is_said_before_anything_trains(tmp_path, draw, names, word):
    folder = write_tiles(tmp_path / "data")
    _redraw(folder, draw, names)
    problems = planned_of(tmp_path, "--datasets", f"tiles={folder}").problems
    assert any(line.startswith("tiles: ") and word in line for line in problems)


@pytest.mark.parametrize(
    ("draw", "word"),
    [
        (lambda mask: mask * 0, "every mask of the train split is background"),
        (lambda mask: mask // 2, "cannot be read"),
        (lambda mask: 255 - mask, "inverted?"),
    ],
)
def test_masks_that_nothing_can_be_learnt_from_stop_the_run(tmp_path, says, draw, word):
    folder, runs = write_tiles(tmp_path / "data"), tmp_path / "runs"
    _redraw(folder, draw)
    words = ["--methods", "lora", "--protocol", "demo", "--results", runs, "--datasets", f"tiles={folder}"]
    message = says(run.main, *words, code=2)
    assert word in message
    assert "--protocol" not in message
    assert not list(runs.glob("records/*.json"))


def test_inverted_masks_are_trained_on_where_the_user_says_what_they_are(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "data")
    _redraw(folder, lambda mask: 255 - mask)
    words = ["--datasets", f"tiles={folder}", "--set"]
    runs = [planned_of(tmp_path, *words, f"benchmarks.tiles.invert={it}").jobs[0].run for it in ("true", "false")]
    assert [run.rules["invert"] for run in runs] == [True, False]
    assert runs[0].key != runs[1].key
