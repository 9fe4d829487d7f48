"""Images with one label each: a folder of images a class."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DatasetError
from harness.training.cache import ArrayCache
from harness.training.images import ImageSource
from tests.datasets.conftest import opened

SPLITS = {"training": 6, "valid": 2, "test": 3}


def write_folders(
    root: Path, *, classes: tuple[str, ...] = ("cat", "dog"), splits: dict[str, int] | None = None
) -> Path:
    """``SPLIT/CLASS/*.png``, or ``CLASS/*.png`` of 12 images."""
    for split, count in (splits or {"": 12}).items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                source = np.random.default_rng([label, index, len(split)])
                pixels = source.integers(0, 120, (40, 50, 3), np.uint8) + np.uint8(100 * label)
                Image.fromarray(pixels).save(root / split / name / f"{index:02}.png")
    return root


def test_folders_of_classes_are_split_by_the_rule(tmp_path: Path) -> None:
    benchmark, splits = opened(write_folders(tmp_path / "pets"), name="pets")
    assert benchmark.splits(tmp_path / "pets") == splits
    assert (benchmark.task, benchmark.class_names, benchmark.num_classes) == ("classification", ("cat", "dog"), 2)
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == (20, 2, 2)
    assert splits.rule == "carved (seed 0, 2 test and 2 val by hashed stem)"
    assert {pair.stem: pair.label for pair in splits.train}["dog/07"] == 1
    sample = benchmark.read(splits.train[-1])
    assert sample.image.shape == (40, 50, 3)
    assert sample.mask.tolist() == [[splits.train[-1].label]]


@pytest.mark.parametrize("below", ["", "unpacked/set"])
def test_given_splits_are_kept_in_any_subfolder(tmp_path: Path, below: str) -> None:
    write_folders(tmp_path / "pets" / below, splits=SPLITS)
    _, splits = opened(tmp_path / "pets", name="pets")
    assert splits.rule == "given"
    assert (len(splits.train), len(splits.val), len(splits.test["test"])) == (12, 4, 6)
    assert [pair.stem for pair in splits.val] == ["val_cat/00", "val_cat/01", "val_dog/00", "val_dog/01"]


def test_labels_are_those_of_training_where_a_split_lacks_a_class(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets", classes=("cat", "dog", "emu"), splits=SPLITS)
    shutil.rmtree(root / "test" / "cat")
    shutil.rmtree(root / "valid" / "dog")
    benchmark, splits = opened(root, name="pets")
    assert benchmark.class_names == ("cat", "dog", "emu")
    labels = {
        split: {pair.stem.split("/")[0].split("_")[-1]: pair.label for pair in p} for split, p in splits.parts.items()
    }
    assert labels["train"] == {"cat": 0, "dog": 1, "emu": 2}
    assert labels["val"] == {"cat": 0, "emu": 2}
    assert labels["test"] == {"dog": 1, "emu": 2}
    assert benchmark.read(splits.test["test"][-1]).mask.tolist() == [[2]]


def test_labels_are_never_read_from_a_cache_that_knows_files_alone(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "pets")
    shutil.copy(root / "cat" / "00.png", root / "dog" / "00.png")
    benchmark, splits = opened(root, name="pets")
    pairs = [pair for pair in (*splits.train, *splits.val, *splits.test["test"]) if pair.stem.endswith("00")]
    for _ in range(2):
        source = ImageSource(benchmark, pairs, image_size=16, cache=ArrayCache(tmp_path / "cache"))
        assert [source.mask_input(index).tolist() for index in range(2)] == [[[0]], [[1]]]
        assert [source.mask_native(index).tolist() for index in range(2)] == [[[0]], [[1]]]
        assert np.array_equal(source.image(0), source.image(1))


def test_check_counts_labels_and_finds_copies_and_empty_classes(tmp_path, says) -> None:
    root = write_folders(tmp_path / "pets", splits=SPLITS)
    said = says(main, "check", f"pets={root}")
    assert "passed  labels: cat: train 6, val 2, test 3; dog: train 6, val 2, test 3" in said
    assert "mask" not in said
    shutil.rmtree(root / "valid" / "dog")
    shutil.copy(root / "training" / "cat" / "00.png", root / "test" / "dog" / "00.png")
    said = says(main, "check", f"pets={root}", code=1)
    assert "warned  labels: val has no image of dog" in said
    assert "failed  exact copies across splits" in said


@pytest.mark.parametrize(
    ("stray", "word"), [("test/0.png", "has no label"), ("test/emu/0.png", "not a folder of a class")]
)
def test_an_image_without_a_class_of_training_is_one_line(tmp_path: Path, stray: str, word: str) -> None:
    root = write_folders(tmp_path / "pets", splits={"train": 6, "test": 3})
    (root / stray).parent.mkdir(exist_ok=True)
    shutil.copy(root / "test/cat/00.png", root / stray)
    with pytest.raises(DatasetError, match=word):
        opened(root, name="pets")
