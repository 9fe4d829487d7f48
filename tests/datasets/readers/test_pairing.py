"""Pairs are made by stem, whatever else is in the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.layouts import distinct_stems
from harness.datasets.readers.pairing import Paired, image_files, pair_files
from tests.values import on_linux


def pair_folders(images: Path, masks: Path, keep: Callable[[str], bool] | None = None) -> Paired:
    return pair_files(image_files(images), image_files(masks), keep=keep)


def _touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("images", "masks", "alone", "unused"),
    [
        ("ISIC_1.JPG b.jpeg c.png d.tif e.jpg", "isic_1_Segmentation.PNG b_mask.png C.png d.TIFF e_gt.bmp", "", ""),
        ("a.jpg b.jpg c.jpg", "0_extra.png b.png c.png", "a.jpg", "0_extra.png"),
        ("a.jpg b.jpg", "a.png a_mask.png b_mask.png", "", "a_mask.png"),
        ("a.jpg a_gt.jpg", "a.png a_gt.png", "", ""),
    ],
    ids=["case and suffix", "a file too many shifts no pair", "the exact name of two", "exact before shortened"],
)
def test_masks_are_found_by_name_and_the_rest_is_named(tmp_path: Path, images, masks, alone, unused) -> None:
    paired = pair_folders(_touch(tmp_path / "i", *images.split()), _touch(tmp_path / "m", *masks.split()))
    assert [path.name for path in paired.unpaired_images] == alone.split()
    assert [path.name for path in paired.unused_masks] == unused.split()
    expected = zip(
        [name for name in images.split() if name != alone],
        [name for name in masks.split() if name != unused], strict=True
    )  # fmt: skip
    assert {pair.image.name: pair.mask.name for pair in paired.pairs} == dict(expected)


def test_junk_is_skipped(tmp_path: Path) -> None:
    folder = _touch(tmp_path / "i", ".DS_Store", "._a.jpg", "README.md", "a_superpixels.png", "Thumbs.db", "a.jpg")
    (folder / "thumbnails").mkdir()
    assert [path.name for path in image_files(folder)] == ["a.jpg"]


def test_masks_without_an_image_are_kept_apart_by_benchmark(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "cju1.png", "17.png")
    masks = _touch(tmp_path / "m", "cju1_mask.png", "cju2_mask.png", "17_mask.png", "18_mask.png")
    paired = pair_folders(images, masks, keep=str.isdigit)
    assert [path.name for path in paired.unused_masks] == ["18_mask.png"]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "A.JPG")])
def test_two_files_with_one_stem_are_an_error_that_names_both(tmp_path: Path, names: tuple[str, str]) -> None:
    images = _touch(tmp_path / "i", *names)
    if len(image_files(images)) < 2:
        pytest.skip("this file system folds case")
    with pytest.raises(DatasetError, match=r"two files in .* have one name") as caught:
        pair_folders(images, _touch(tmp_path / "m", "a.png"))
    assert all(name in str(caught.value) for name in names)


@on_linux
@pytest.mark.parametrize("name", [b"a\xff.png", b"a\rb.png", b"a\nb.png", b"a\x1b[31m.png", "a\u2028b.png".encode()])
def test_an_unprintable_name_is_refused_in_one_line(tmp_path: Path, name: bytes) -> None:
    """Such a name would break tables of scores, terminals and file formats."""
    folder = _touch(tmp_path / "i", "b.png")
    (folder / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(DatasetError, match="rename it") as error:
        image_files(folder)
    assert str(error.value).isprintable()
    assert "/a\\" in str(error.value), "what cannot be printed is escaped"
    with pytest.raises(DatasetError, match="rename it"):
        Pair(stem=f"class/{Path(os.fsdecode(name)).stem}", image=folder / "b.png", mask=folder / "b.png")


def test_names_in_any_language_stay(tmp_path: Path) -> None:
    names = ["Läsion 1.png", "病变\u3000１.png", "👩\u200d⚕️.png"]
    assert {path.name for path in image_files(_touch(tmp_path / "i", *names))} == set(names)


def test_stems_of_one_name_in_several_folders_begin_with_their_folders() -> None:
    assert distinct_stems(["/a/x.png", "../b/x.jpg"]) == ["a_x", "b_x"]
    assert distinct_stems(["a/x.png", "b/y.png"]) == ["x", "y"]
