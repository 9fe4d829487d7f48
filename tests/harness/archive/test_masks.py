"""Kept masks: which images, what the file holds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harness.archive.masks import KeptMask, chosen_images, encoded_masks, extremes, read_masks
from harness.archive.merge import checked
from harness.archive.store import RecordStore
from tests.harness.report.sample import record
from tests.values import there


def _masks(count: int = 2) -> list[KeptMask]:
    generator = np.random.default_rng(0)
    return [
        KeptMask(
            split="test",
            stem=f"image {index}",
            predicted=generator.integers(0, 12, (8, 8), dtype=np.uint8),
            truth=np.where(generator.random((8, 8)) < 0.1, 255, 1).astype(np.uint8),
        )
        for index in range(count)
    ]


def test_masks_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "x.masks.png"
    path.write_bytes(encoded_masks(_masks()))
    for ours, read in zip(_masks(), read_masks(path), strict=True):
        assert (ours.split, ours.stem) == (read.split, read.stem)
        assert np.array_equal(ours.predicted, read.predicted)
        assert np.array_equal(ours.truth, read.truth)
    assert encoded_masks(_masks()) == path.read_bytes()
    with Image.open(path) as picture:
        assert np.array_equal(
            np.concatenate([mask.coloured() for mask in _masks()]), np.asarray(picture.convert("RGB"))
        )
    assert encoded_masks([]) == b""


def test_the_images_are_chosen_by_name_alone():
    images = [(split, f"a{index}") for split in ("easy", "hard") for index in range(50)]
    first = chosen_images(images, 6)
    assert first == chosen_images(images[::-1], 6)
    assert first[:3] == chosen_images(images, 3)
    assert len({split for split, _ in chosen_images(images, 30)}) == 2
    assert chosen_images([("test", "one")], 6) == [("test", "one")]
    assert chosen_images(images, 0) == []


def test_extremes_are_by_the_metrics_direction():
    scores = {("test", stem): score for stem, score in {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.6}.items()}
    for sign, stems in ((1, "bda"), (-1, "acb")):
        expected = {word: ("test", stem) for word, stem in zip(("best", "median", "worst"), stems, strict=True)}
        assert extremes(scores, sign=sign) == expected
    assert extremes({("test", "a"): 0.5}, sign=1) == {"best": ("test", "a")}


@pytest.mark.parametrize(
    ("height", "images"),
    [(16, ""), (12, '[["test", "a"], ["test", "b"]]'), (16, '[["test"], 3]'), (16, "[" * 100_000), (0, "")],
)
def test_what_is_no_file_of_masks_is_refused(tmp_path: Path, height: int, images: str):
    """Without the names of its images, too short for them, with other names, or no picture."""
    path, info = tmp_path / "x.masks.png", PngInfo()
    path.write_bytes(encoded_masks(_masks()) if height else b"no picture")
    if images:
        info.add_text("images", images)
    if height:
        Image.open(path).crop((0, 0, 16, height)).save(path, pnginfo=info)
    with pytest.raises(ValueError, match=r"x\.masks\.png holds no masks"):
        read_masks(path)


def test_masks_are_a_sidecar_of_their_record(tmp_path: Path):
    store = RecordStore(tmp_path)
    original = record(scores={})
    path = store.write(original, masks_png=encoded_masks(_masks()))
    read = there(store.read(original.key))
    assert [mask.stem for mask in read_masks(store.masks_path(original.key), expected=read.sidecars["masks.png"])]
    assert checked(path) == read
    store.masks_path(original.key).write_bytes(encoded_masks(_masks(1)))
    with pytest.raises(ValueError, match="edited after its record was written"):
        checked(path)
