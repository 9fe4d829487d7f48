"""Data are known by their contents, read once; older records by their sizes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.archive.older import same_data
from harness.archive.schema import CONTENT
from harness.datasets.base import DatasetError, Pair, Splits
from harness.planning.data import data_fingerprint
from harness.protocols.keys import content_hash
from harness.system import hashes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _splits(root: Path) -> Splits:
    """Masks in a format whose size says nothing of what is in it."""
    pairs = []
    for number in range(6):
        image, mask = root / f"{number}.bmp", root / f"{number}_mask.bmp"
        if not mask.exists():
            root.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(image)
            Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(mask)
        pairs.append(Pair(stem=str(number), image=image, mask=mask))
    return Splits(train=tuple(pairs[:4]), val=(pairs[4],), test={"test": (pairs[5],)}, layout="x", rule="x")


def test_masks_changed_in_place_are_other_data_and_a_copy_is_the_same(tmp_path: Path) -> None:
    splits = _splits(tmp_path / "a")
    before = data_fingerprint(splits)
    assert before.startswith(CONTENT)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert data_fingerprint(_splits(tmp_path / "b")) == before
    path, status = splits.train[0].mask, splits.train[0].mask.stat()
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = data_fingerprint(splits)
    assert not same_data(before, after)
    assert before.rpartition("-")[2] == after.rpartition("-")[2], "sizes alone do not tell"
    assert not same_data(data_fingerprint(splits, folds=True), data_fingerprint(_splits(tmp_path / "b"), folds=True))


def test_older_fingerprints_are_compared_by_their_own_rule(tmp_path: Path) -> None:
    splits = _splits(tmp_path / "a")
    parts = {"train": splits.train, "val": splits.val, "test test": splits.test["test"]}
    sizes = {
        name: [[pair.stem, pair.image.stat().st_size, pair.mask.stat().st_size] for pair in pairs]
        for name, pairs in parts.items()
    }
    older = content_hash(sizes)
    assert same_data(older, data_fingerprint(splits))
    assert same_data("", older)
    assert not same_data("0" * 16, data_fingerprint(splits))


def test_files_are_read_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    hash_of = hashes._hash
    monkeypatch.setattr(hashes, "_hash", lambda path: (read.append(path), hash_of(path))[1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(hashes, "_SETTLED_S", -1.0)
    splits = _splits(tmp_path / "a")
    first = data_fingerprint(splits)
    assert len(read) == 12
    assert data_fingerprint(splits) == first
    assert len(read) == 12
    path = splits.val[0].mask
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert data_fingerprint(splits) != first
    assert read[12:] == [path]
    (memory,) = (tmp_path / "cache").rglob("contents/*.json")
    for spoilt in ("", "[]", "{}", json.dumps({str(path): [1]})):
        memory.write_text(spoilt)
        read.clear()
        data_fingerprint(splits)
        assert len(read) == 12
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        data_fingerprint(splits)
