"""``hf:DIR``: image folders and Parquet as Hugging Face's datasets reads them, as data of one's own."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import DatasetError
from harness.datasets.own import any_folder
from harness.datasets.reading import hugging_face

SPEC = find_spec("datasets")
needs_theirs = pytest.mark.skipif(SPEC is None or SPEC.origin is None, reason="needs Hugging Face's datasets")
COUNT = 20


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _pictures(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Images with masks, each mask a square at a place of its own."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(COUNT):
        mask = np.zeros((16, 16), dtype=np.uint8)
        mask[number % 8 : number % 8 + 6, 2:9] = 255
        image, drawn = folder / split / f"{split}{number}.jpg", folder / split / f"{split}{number}_m.png"
        Image.fromarray(np.stack([mask // 2 + number] * 3, axis=-1)).save(image)
        Image.fromarray(mask).save(drawn)
        made.append((image, drawn))
    return made


def _image_folder(root: Path) -> Path:
    for split in ("train", "test"):
        pairs = _pictures(root, split)
        with (root / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "mask_file_name"), *((a.name, b.name) for a, b in pairs)])
    return root


def _parquet(root: Path, columns: tuple[str, str] = ("image", "mask")) -> Path:
    datasets: Any = import_module("datasets")
    root.mkdir()
    for split in ("train", "test"):
        pairs = _pictures(root.parent / "pictures", split)
        table: Any = datasets.Dataset.from_dict(
            {
                name: [{"bytes": pair[at].read_bytes(), "path": pair[at].name} for pair in pairs]
                for at, name in enumerate(columns)
            },
            features=datasets.Features(dict.fromkeys(columns, datasets.Image())),
        )
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


@needs_theirs
@pytest.mark.parametrize("make", [_image_folder, _parquet])
def test_images_and_masks_are_read_as_they_lie_there(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path / "mine")
    kind, root = any_folder("mine", Path(f"hf:{source}"))
    benchmark = kind()
    splits = benchmark.splits(root)
    assert (len(splits.train) + len(splits.val), len(splits.test["test"])) == (COUNT, COUNT)
    for pair in splits.test["test"][:3]:
        number = int(pair.stem.removeprefix("test").removesuffix("_m"))
        sample = benchmark.read(pair)
        expected = np.zeros((16, 16), dtype=np.uint8)
        expected[number % 8 : number % 8 + 6, 2:9] = 1
        assert np.array_equal(sample.mask, expected)
    again, same = any_folder("mine", Path(f"hf:{source}"))
    assert (again.class_names, same) == (kind.class_names, root)  # unpacked once
    assert len(list((tmp_path / "cache" / "sam-peft-harness" / "hf").iterdir())) == 1


@needs_theirs
def test_a_column_of_labels_makes_classes(tmp_path: Path) -> None:
    datasets: Any = import_module("datasets")
    pairs = _pictures(tmp_path / "pictures", "train")
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.ClassLabel(names=["a cat", "dog"])})
    cells = [{"bytes": image.read_bytes(), "path": image.name} for image, _ in pairs]
    (tmp_path / "mine").mkdir()
    table: Any = datasets.Dataset.from_dict({"image": cells, "kind": [n % 2 for n in range(COUNT)]}, features=features)
    table.to_parquet(tmp_path / "mine" / "train.parquet")
    kind, root = any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))
    assert kind.task == "classification"
    assert kind.class_names == ("a_cat", "dog")
    splits = kind().splits(root)
    assert len(splits.train) + len(splits.val) + len(splits.test["test"]) == COUNT


def _labelled(root: Path, split: str, labels: list[int | None], names: list[str]) -> None:
    """Parquet of images with a class label each, as it is written elsewhere."""
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    pairs = _pictures(root.parent / "pictures", split)[: len(labels)]
    cells = [{"bytes": image.read_bytes(), "path": image.name} for image, _ in pairs]
    features = {"image": {"_type": "Image"}, "kind": {"names": names, "_type": "ClassLabel"}}
    table = arrow.table({"image": cells, "kind": arrow.array(labels, arrow.int64())})
    (root / "data").mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


@needs_theirs
@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1, None, 1], ["a", "b"], "2 of 4 rows of the train split of hf:.* have no kind; remove these rows"),
        ([0, 1, 0, 1], ["<50", ">50"], "classes that differ in no letter and no digit"),
        ([0, 1, 0, 1], ["a", ".."], "classes that differ in no letter and no digit"),
    ],
)
def test_labels_that_are_missing_or_name_one_folder_are_one_line(tmp_path: Path, labels, names, message: str) -> None:
    _labelled(tmp_path / "mine", "train", labels, names)
    with pytest.raises(DatasetError, match=message):
        any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))


def test_without_the_library_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match="pip install"):
        any_folder("mine", Path(f"hf:{tmp_path}"))
