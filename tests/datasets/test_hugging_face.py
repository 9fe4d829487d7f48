"""Data sets of the Hugging Face Hub as data of one's own: image folders with metadata, and Parquet."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import DatasetError
from harness.datasets.own import any_folder
from harness.datasets.readers import hugging_face
from tests.datasets.conftest import opened

pa: Any = pytest.importorskip("pyarrow", reason="an extra: own-data")
parquet: Any = pytest.importorskip("pyarrow.parquet")
COUNT = 20
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _drawn(number: int) -> np.ndarray:
    """A square at a position of its own."""
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[number % 8 : number % 8 + 6, 2:9] = 1
    return mask


def _pictures(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """Images with masks."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(COUNT):
        image, mask = folder / split / f"{split}{number}.jpg", folder / split / f"{split}{number}_m.png"
        Image.fromarray(np.stack([_drawn(number) * 120 + number] * 3, axis=-1)).save(image)
        Image.fromarray(_drawn(number) * np.uint8(255)).save(mask)
        made.append((image, mask))
    return made


def _metadata(root: Path, *folders: str) -> Path:
    """``metadata.csv`` in these folders, of the images below each."""
    pairs = [pair for split in ("train", "test") for pair in _pictures(root, split)]
    for folder in folders:
        below = [
            [path.relative_to(root / folder) for path in pair]
            for pair in pairs
            if folder in pair[0].parts or not folder
        ]
        with (root / folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "mask_file_name"), *below])
    return root


def _write(path: Path, pairs: list[tuple[Path, Path]], *columns: str, named: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {
        column: [{"bytes": pair[at].read_bytes(), "path": pair[at].name if named else None} for pair in pairs]
        for at, column in enumerate(columns)
    }
    table = {column: pa.array(given, type=CELL) for column, given in cells.items()}
    parquet.write_table(pa.table({"id": pa.array(range(len(pairs))), **table}), path)


def _files(*names: str, masks_first: bool = False, readme: str = "") -> Callable[[Path], Path]:
    """Parquet files of these names, in which all pictures of a split are divided among its files."""

    def make(root: Path) -> Path:
        for split in ("train", "test"):
            of_split = [name for name in names if ("test" in name) is (split == "test")]
            pairs = _pictures(root.parent / "pictures", split)
            for number, name in enumerate(of_split):
                chosen = pairs[number :: len(of_split)]
                if masks_first:
                    _write(root / f"{name}.parquet", [pair[::-1] for pair in chosen], "annotation", "photo")
                else:
                    _write(root / f"{name}.parquet", chosen, "image", "mask")
        if readme:
            (root / "README.md").write_text(readme)
        return root

    return make


_parquet = _files(*(f"data/{split}-0000{shard}-of-00002" for split in ("train", "test") for shard in (0, 1)))
LAYOUTS = {
    "metadata.csv": lambda root: _metadata(root, "train", "test"),
    "one metadata.csv": lambda root: _metadata(root, ""),
    "shards": _parquet,
    "a README of one configuration": _files(
        "train", "test", readme="---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n"
    ),
    "masks first": _files("train", "test", masks_first=True),
    "folders of splits": _files("default/train/0000", "default/test/0000"),
    "a split in the middle": _files("my_train_set", "my_test_set"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_masks_and_splits_are_those_of_the_files(layout: str, tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "mine")
    kind, root = any_folder("mine", Path(f"hf:{source}"))
    benchmark = kind()
    splits = benchmark.splits(root)
    assert (len(splits.train) + len(splits.val), len(splits.test["test"])) == (COUNT, COUNT)
    for pair in splits.test["test"]:
        assert np.array_equal(benchmark.read(pair).mask, _drawn(int(pair.stem.removeprefix("test"))))
    made = [path.stat().st_ctime_ns for path in (root, *root.rglob("*"))]
    assert any_folder("mine", Path(f"hf:{source}"))[1] == root
    assert [path.stat().st_ctime_ns for path in (root, *root.rglob("*"))] == made, "unpacked once"


def test_rows_without_names_are_numbered_and_classes_come_along(tmp_path: Path) -> None:
    _write(tmp_path / "mine" / "all.parquet", _pictures(tmp_path / "pictures", "x"), "image", "mask", named=False)
    (tmp_path / "mine" / "classes.txt").write_text("background\nsquare\ncircle\n")
    benchmark, splits = opened(Path(f"hf:{tmp_path / 'mine'}"))
    assert sorted(pair.stem for part in splits.parts.values() for pair in part)[:2] == ["all_000000", "all_000001"]
    assert benchmark.class_names == ("background", "square", "circle")
    (tmp_path / "mine" / "classes.txt").write_text("background\nsquare\ndisc\n")
    assert any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))[0].class_names[-1] == "disc"


def test_no_row_replaces_another_where_files_and_rows_have_the_same_names(tmp_path: Path) -> None:
    pairs = _pictures(tmp_path / "pictures", "x")
    for file, named in (("a", False), ("b", False), ("c", True), ("d", True)):
        _write(tmp_path / "mine" / f"{file}.parquet", pairs, "image", "mask", named=named)
    _, root = any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))
    assert [len(list((root / kind).iterdir())) for kind in ("images", "masks")] == [4 * COUNT] * 2


@pytest.mark.parametrize("name", [".x7.jpg", "x7_superpixels.jpg"])
def test_a_row_whose_name_would_be_left_out_in_a_folder_is_numbered(tmp_path: Path, name: str) -> None:
    pairs = _pictures(tmp_path / "pictures", "x")
    pairs[7] = (pairs[7][0].rename(tmp_path / "pictures" / name), pairs[7][1])
    _write(tmp_path / "mine" / "all.parquet", pairs, "image", "mask")
    _, splits = opened(Path(f"hf:{tmp_path / 'mine'}"))
    stems = {pair.stem for part in splits.parts.values() for pair in part}
    assert stems == {f"x{number}" for number in range(COUNT) if number != 7} | {"all_000007"}


def test_what_a_killed_process_unpacked_goes_with_the_next_start(tmp_path: Path) -> None:
    _write(tmp_path / "mine" / "all.parquet", _pictures(tmp_path / "pictures", "x"), "image", "mask")
    base = tmp_path / "cache" / "sam-peft-harness" / "parquet"
    (base / ".unpacking" / "masks").mkdir(parents=True)
    (base / ".unpacking" / "masks" / "begun.png").touch()
    _, root = any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == [root.name]
    assert not list(root.rglob("begun.png"))


README = """---
license: mit
dataset_info:
- config_name: cells
configs:
- config_name: cells
  data_files: cells-*.parquet
- config_name: "more cells"
  data_files: more-*.parquet
---
# config_name: of a text
"""


IN_FOLDERS = _files("cells/train-0", "cells/test-0", "more cells/train-0")
BELOW_SPLITS = _files("train/cells/0000", "train/more cells/0000")


@pytest.mark.parametrize("make", [_files("cells-train", "more-train", readme=README), IN_FOLDERS, BELOW_SPLITS])
def test_configurations_are_never_mixed(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "mine")
    with pytest.raises(DatasetError, match="configurations cells, more cells") as refused:
        any_folder("mine", Path(f"hf:{source}"))
    assert "\n" not in str(refused.value)


def test_the_folder_of_a_configuration_is_a_data_set(tmp_path: Path) -> None:
    _, splits = opened(Path(f"hf:{IN_FOLDERS(tmp_path / 'mine') / 'cells'}"))
    assert (len(splits.train) + len(splits.val), len(splits.test["test"])) == (COUNT // 2, COUNT)


def _damaged(root: Path) -> None:
    root.mkdir()
    (root / "train.parquet").write_bytes(b"PAR1")


def _without_a_mask(root: Path) -> None:
    pairs = _pictures(root.parent / "pictures", "train")
    cells = [{"bytes": image.read_bytes(), "path": image.name} for image, _ in pairs]
    root.mkdir()
    columns = {"image": pa.array(cells, type=CELL), "mask": pa.array([*cells[:-1], None], type=CELL)}
    parquet.write_table(pa.table(columns), root / "train.parquet")


def _without_a_split(root: Path) -> None:
    _parquet(root)
    _write(root / "data" / "more.parquet", _pictures(root, "x"), "image", "mask")


def _inflating(root: Path) -> None:
    """16 MiB of zeros in some kilobytes."""
    image = {"bytes": bytes(1 << 24), "path": "a.png"}
    root.mkdir()
    table = pa.table({name: pa.array([image], type=CELL) for name in ("image", "mask")})
    parquet.write_table(table, root / "train.parquet", compression="zstd", use_dictionary=False)


def _repeating(root: Path) -> None:
    """One image, and thousands of rows that refer to it."""
    root.mkdir()
    cell = {"bytes": np.random.default_rng(0).bytes(3000), "path": "a.png"}
    table = pa.table({name: pa.array([cell] * 5000, type=CELL) for name in ("image", "mask")})
    parquet.write_table(table, root / "train.parquet")


def _pipe(root: Path) -> None:
    _parquet(root)
    os.mkfifo(root / "data" / "train-9.parquet")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda root: None, "does not exist"),
        (_damaged, "not a readable Parquet"),
        (_without_a_mask, "row 19 of"),
        (lambda root: _write(root / "train.parquet", _pictures(root, "x"), "image"), "1 columns of images"),
        (_without_a_split, "no split"),
        (_inflating, "decodes to over"),
        (_repeating, "decodes to over 3 MiB"),
        (_pipe, "is a pipe"),
        (lambda root: _write(root / "train-test.parquet", _pictures(root, "x"), "image", "mask"), "test and train"),
    ],
)
def test_what_cannot_be_read_is_one_line(make: Any, word: str, tmp_path: Path, monkeypatch) -> None:
    make(tmp_path / "mine")
    monkeypatch.setattr(hugging_face, "_MOST_AT_LEAST", 1 << 16)
    with pytest.raises(DatasetError, match=word):
        any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "mine" / "all.parquet", _pictures(tmp_path / "pictures", "x"), "image", "mask")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine" / "all.parquet"))
    with pytest.raises(DatasetError, match="set XDG_CACHE_HOME"):
        any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))


def test_without_pyarrow_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    _damaged(tmp_path / "mine")
    with pytest.raises(DatasetError, match="pip install pyarrow"):
        any_folder("mine", Path(f"hf:{tmp_path / 'mine'}"))
