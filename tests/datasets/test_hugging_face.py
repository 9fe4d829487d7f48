"""``hf:DIR``: image folders and Parquet as Hugging Face's datasets reads them, as data of one's own."""

from __future__ import annotations

import csv
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import DatasetError
from harness.datasets.own import any_folder
from harness.datasets.readers import hugging_face

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
def test_rows_without_a_mask_are_one_line(tmp_path: Path) -> None:
    datasets: Any = import_module("datasets")
    pairs = _pictures(tmp_path / "pictures", "train")
    cells = [{"bytes": image.read_bytes(), "path": image.name} for image, _ in pairs]
    features = datasets.Features(dict.fromkeys(("image", "mask"), datasets.Image()))
    (tmp_path / "mine").mkdir()
    rows = {"image": cells, "mask": [*cells[:-2], None, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "mine" / "train.parquet")
    with pytest.raises(DatasetError, match="2 of 20 rows of the train split of"):
        any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))


def test_without_the_library_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match="pip install"):
        any_folder("mine", Path(f"hf:{tmp_path}"))
