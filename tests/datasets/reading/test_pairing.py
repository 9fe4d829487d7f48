"""Pairs are made by stem, whatever else lies in the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.datasets.base import DatasetError, Pair
from harness.datasets.reading.pairing import image_files, pair_folders


def _touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_suffix_case_and_extension_do_not_matter(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "ISIC_1.JPG", "b.jpeg", "c.png", "d.tif", "e.jpg")
    masks = _touch(tmp_path / "m", "isic_1_Segmentation.PNG", "b_mask.png", "C.png", "d.TIFF", "e_gt.bmp")
    paired = pair_folders(images, masks)
    names = {pair.stem: pair.mask.name for pair in paired.pairs}
    assert names == {
        "ISIC_1": "isic_1_Segmentation.PNG",
        "b": "b_mask.png",
        "c": "C.png",
        "d": "d.TIFF",
        "e": "e_gt.bmp",
    }
    assert not paired.unpaired_images
    assert not paired.unused_masks


def test_one_file_too_many_does_not_shift_the_pairs(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "a.jpg", "b.jpg", "c.jpg")
    masks = _touch(tmp_path / "m", "0_extra.png", "b.png", "c.png")
    paired = pair_folders(images, masks)
    assert [(pair.image.stem, pair.mask.stem) for pair in paired.pairs] == [("b", "b"), ("c", "c")]
    assert [path.name for path in paired.unpaired_images] == ["a.jpg"]
    assert [path.name for path in paired.unused_masks] == ["0_extra.png"]


def test_junk_is_skipped(tmp_path: Path) -> None:
    folder = _touch(tmp_path / "i", ".DS_Store", "._a.jpg", "README.md", "a_superpixels.png", "Thumbs.db", "a.jpg")
    (folder / "thumbnails").mkdir()
    assert [path.name for path in image_files(folder)] == ["a.jpg"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_what_is_named_as_an_image_and_is_no_file_is_not_passed_over(tmp_path: Path, kind: str) -> None:
    folder = _touch(tmp_path / "i", "a.jpg")
    strange = folder / "b.jpg"
    if kind == "folder":
        strange.mkdir()
    elif kind == "pipe":
        os.mkfifo(strange)
    else:
        strange.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"b\.jpg is named as an image and is a folder, a pipe or a broken link"):
        image_files(folder)


def test_masks_without_an_image_are_kept_apart_by_benchmark(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "cju1.png", "17.png")
    masks = _touch(tmp_path / "m", "cju1_mask.png", "cju2_mask.png", "17_mask.png", "18_mask.png")
    paired = pair_folders(images, masks, keep=str.isdigit)
    assert [path.name for path in paired.unused_masks] == ["18_mask.png"]


def test_of_two_masks_the_one_named_exactly_as_the_image_is_taken_and_the_other_is_named(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "a.jpg", "b.jpg")
    masks = _touch(tmp_path / "m", "a.png", "a_mask.png", "b_mask.png")
    paired = pair_folders(images, masks)
    assert [(pair.image.name, pair.mask.name) for pair in paired.pairs] == [("a.jpg", "a.png"), ("b.jpg", "b_mask.png")]
    assert [path.name for path in paired.unused_masks] == ["a_mask.png"]


def test_a_mask_named_exactly_as_its_image_wins_over_a_shortened_name(tmp_path: Path) -> None:
    images = _touch(tmp_path / "i", "a.jpg", "a_gt.jpg")
    masks = _touch(tmp_path / "m", "a.png", "a_gt.png")
    assert [(pair.stem, pair.mask.name) for pair in pair_folders(images, masks).pairs] == [
        ("a", "a.png"),
        ("a_gt", "a_gt.png"),
    ]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "A.JPG")])
def test_two_files_with_one_stem_are_an_error_that_names_both(tmp_path: Path, names: tuple[str, str]) -> None:
    images = _touch(tmp_path / "i", *names)
    if len(image_files(images)) < 2:
        pytest.skip("this file system folds case")
    with pytest.raises(DatasetError, match="two files with one stem") as caught:
        pair_folders(images, _touch(tmp_path / "m", "a.png"))
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("name", [b"a\xff.png", b"a\rb.png", b"a\nb.png", b"a\x1b[31m.png", "a\u2028b.png".encode()])
def test_a_name_that_is_no_line_of_text_is_refused_in_one(tmp_path: Path, name: bytes) -> None:
    """Such a name broke tables of scores and terminals, or was an error that nobody foresaw."""
    folder = _touch(tmp_path / "i", "b.png")
    (folder / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(DatasetError, match="rename it") as error:
        image_files(folder)
    assert str(error.value).isprintable()
    with pytest.raises(DatasetError, match="rename it"):
        Pair(stem=f"class/{Path(os.fsdecode(name)).stem}", image=folder / "b.png", mask=folder / "b.png")


def test_names_in_any_language_stay(tmp_path: Path) -> None:
    names = ["Läsion 1.png", "病变\u3000１.png", "👩\u200d⚕️.png"]
    assert {path.name for path in image_files(_touch(tmp_path / "i", *names))} == set(names)
