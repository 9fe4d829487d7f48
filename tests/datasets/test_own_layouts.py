"""Folders as people have them: usual names, words on either side of a name, one folder, CSV, patterns; else what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DatasetError, Splits
from tests.datasets.conftest import opened

STEMS = [f"s{number:02d}" for number in range(20)]
RNG = np.random.default_rng(0)
PHOTOGRAPH = RNG.integers(0, 256, (24, 30, 3), dtype=np.uint8)
DRAWN = np.zeros((24, 30), np.uint8)
DRAWN[8:12, 6:20] = 1
WHITE = DRAWN * np.uint8(255)


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PHOTOGRAPH).save(path)


def mask(path: Path, values: np.ndarray = WHITE, palette: Sequence[int] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
        return
    image = Image.fromarray(values)
    if palette:
        image.putpalette(list(palette))
    image.save(path)


def write(
    root: Path, image: str, drawn: str, stems: Sequence[str] = STEMS, draw: Callable[[Path], None] = mask
) -> None:
    for stem in stems:
        photograph(root / image.format(stem))
        draw(root / drawn.format(stem))


def every(splits: Splits) -> list[str]:
    return sorted(pair.stem for part in (splits.train, splits.val, *splits.test.values()) for pair in part)


@pytest.mark.parametrize(
    ("image", "drawn", "layout"),
    [
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "voc"),
        ("imagesTr/{}_0000.png", "labelsTr/{}.png", "nnu-net"),
        ("Training_Images/{}.jpg", "Ground_Truth/{}.png", "folder"),
        ("x/{}.png", "y/{}.png", "folder"),
        ("images/{}_image.png", "masks/{}_annotation.png", "folder"),
        ("images/img_{}.png", "masks/mask_{}.png", "folder"),
        ("images/{}_training.tif", "1st_manual/{}_manual1.gif", "folder"),
        ("images/{}.jpg", "masks/{}.npy", "folder"),
        ("{}_image.png", "{}_annotation.png", "one folder"),
        ("img_{}.png", "mask_{}.png", "one folder"),
        ("{}.jpg", "{}.png", "one folder"),
        ("train/{}.jpg", "train/{}_mask.png", "one folder"),
    ],
)
def test_usual_clothes_are_recognised(tmp_path: Path, image: str, drawn: str, layout: str) -> None:
    write(tmp_path, image, drawn)
    benchmark, splits = opened(tmp_path)
    assert splits.layout == layout
    assert len(every(splits)) == len(STEMS)
    assert splits.rule.startswith("carved")
    for pair in (*splits.train, *splits.val, *splits.test["test"]):
        (stem,) = [stem for stem in STEMS if stem in pair.image.name]
        assert stem in pair.mask.name
    np.testing.assert_array_equal(benchmark.read(splits.test["test"][0]).mask, DRAWN)


def test_mmsegmentation_keeps_its_splits(tmp_path: Path) -> None:
    for split, stems in (("train", STEMS[:12]), ("val", STEMS[12:16]), ("test", STEMS[16:])):
        write(
            tmp_path, f"img_dir/{split}/{{}}_leftImg8bit.png", f"ann_dir/{split}/{{}}_gtFine_labelTrainIds.png", stems
        )
    _, splits = opened(tmp_path)
    assert [len(splits.train), len(splits.val), len(splits.test["test"])] == [12, 4, 4]
    assert splits.rule == "given"


def test_voc_leaves_images_without_a_mask_and_takes_its_lists(tmp_path: Path) -> None:
    write(tmp_path, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", draw=lambda path: mask(path, VOC, PALETTE))
    photograph(tmp_path / "JPEGImages/detection_only.jpg")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", STEMS[:15]), ("val", STEMS[15:]), ("trainval", STEMS)):
        (lists / f"{name}.txt").write_text("\n".join(stems))
    benchmark, splits = opened(tmp_path)
    assert every(splits) == STEMS
    assert {pair.stem for pair in splits.val} == set(STEMS[15:])
    assert splits.rule.startswith("given val; test carved")
    assert set(np.unique(benchmark.read(splits.val[0]).mask)) == {0, 1, 255}, "the border between objects is ignored"
    (lists / "val.txt").unlink()
    _, splits = opened(tmp_path)
    assert every(splits) == STEMS[:15], "train.txt alone says what there is, and it is split here"


VOC = DRAWN.copy()
VOC[7] = 255
PALETTE = [0, 0, 0, 128, 0, 0, *[0] * (3 * 253), 224, 224, 192]


@pytest.mark.parametrize(
    "labels", [{"background": 0, "liver": 1, "tumour": 2}, {"0": "background", "1": "liver", "2": "tumour"}]
)
def test_nnunet_names_its_classes_and_its_test_part(tmp_path: Path, labels: dict) -> None:
    write(tmp_path, "imagesTr/{}_0000.png", "labelsTr/{}.png", STEMS[:15], lambda path: mask(path, DRAWN * np.uint8(2)))
    write(tmp_path, "imagesTs/{}_0000.png", "labelsTs/{}.png", STEMS[15:], lambda path: mask(path, DRAWN))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "rgb"}}))
    benchmark, splits = opened(tmp_path)
    assert benchmark.class_names == ("background", "liver", "tumour")
    assert {pair.mask.stem for pair in splits.test["test"]} == set(STEMS[15:])
    np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN * 2)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("id,filename,mask_path", "{0},a/{0}.jpg,b/{0}.png"),
        ("segmentation,photo", "b/{0}.png,a/{0}.jpg"),
        ("first,second", "a/{0}.jpg,b/{0}.png"),
    ],
)
def test_a_csv_may_call_its_columns_otherwise(tmp_path: Path, header: str, row: str) -> None:
    write(tmp_path, "a/{}.jpg", "b/{}.png")
    (tmp_path / "list.csv").write_text(header + "\n" + "\n".join(row.format(stem) for stem in STEMS))
    benchmark, splits = opened(tmp_path)
    assert (splits.layout, every(splits)) == ("csv", STEMS)
    np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN)


@pytest.mark.parametrize(
    ("image", "drawn", "images", "masks"),
    [
        ("img/{}.jpg", "seg/{}_m.png", "img/*.jpg", "seg/{{stem}}_m.png"),
        ("a/{}_rgb.png", "b/{}_m.png", "a/{{stem}}_rgb.png", "b/{{stem}}_m.png"),
        ("all/{}.png", "all/{}_m.png", "all/*.png", "all/{{stem}}_m.png"),
        ("deep/er/{}.png", "other/place/{}.png", "deep/**/*.png", "other/*/{{stem}}.png"),
        ("a/{}.png", "b/{}.png", "a/*.png", "b/*.png"),
    ],
)
def test_patterns_find_pairs(tmp_path: Path, image: str, drawn: str, images: str, masks: str) -> None:
    write(tmp_path, image, drawn)
    benchmark, splits = opened(tmp_path, images=images.format(), masks=masks.format())
    assert every(splits) == [Path(image.format(stem)).stem.removesuffix("_rgb") for stem in STEMS]
    np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN)


def test_patterns_keep_subjects_apart_whose_files_have_one_name(tmp_path: Path) -> None:
    for subject in ("p1", "p2", "p3"):
        write(tmp_path, f"{subject}/img/{{}}.jpg", f"{subject}/seg/{{}}_m.png", STEMS[:4])
    (tmp_path / "p3/seg/s00_m.png").unlink()
    mask(tmp_path / "p3/seg/s00_m.png", np.zeros((24, 30), np.uint8))
    benchmark, splits = opened(tmp_path, images="*/img/*.jpg", masks="*/seg/{stem}_m.png", group=r"(p\d)_")
    pairs = [pair for part in (splits.train, splits.val, splits.test["test"]) for pair in part]
    assert {pair.stem for pair in pairs} == {f"p{subject}_s0{scan}" for subject in (1, 2, 3) for scan in range(4)}
    assert all(pair.image.parents[1] == pair.mask.parents[1] for pair in pairs)
    assert [pair.stem for pair in pairs if not benchmark.read(pair).mask.any()] == ["p3_s00"]
    assert len({benchmark.group(pair) for pair in splits.train}) == 1


def test_patterns_may_name_splits(tmp_path: Path) -> None:
    for split, stems in (("train", STEMS[:12]), ("valid", STEMS[12:16]), ("test", STEMS[16:])):
        write(tmp_path, f"{split}/rgb/{{}}.jpg", f"{split}/lab/{{}}.png", stems)
    _, splits = opened(tmp_path, images="{split}/rgb/*.jpg", masks="{split}/lab/{stem}.png")
    assert [len(splits.train), len(splits.val), len(splits.test["test"])] == [12, 4, 4]


@pytest.mark.parametrize(
    ("images", "masks", "word"),
    [
        ("img/*.jpg", "", "give both"),
        ("/img/*.jpg", "seg/{stem}.png", "relative"),
        ("img/*.jpg", "../seg/{stem}.png", "relative"),
        ("img/*.jpg", "seg/mask.png", "{stem}"),
        ("img/*.jpg", "seg/{name}.png", "known are"),
        ("nowhere/*.jpg", "seg/{stem}.png", "fits no file"),
        ("img/*.jpg", "seg/{stem}_x.png", "have no mask"),
        ("img/*.jpg", "*/{stem}_m.png", "tell them apart"),
    ],
)
def test_patterns_that_do_not_fit_say_what_to_do(tmp_path: Path, images: str, masks: str, word: str) -> None:
    write(tmp_path, "img/{}.jpg", "seg/{}_m.png")
    write(tmp_path, "img/{}.jpg", "more/{}_m.png")
    with pytest.raises(DatasetError, match=word):
        opened(tmp_path, images=images, masks=masks)


def test_two_folders_that_share_names_are_offered_and_no_classes(tmp_path, capsys) -> None:
    write(tmp_path, "inner/scans/{}.png", "inner/outlines/{}.png")
    write(tmp_path, "inner/few/{}.png", "inner/outlines/{}.png", STEMS[:3])

    assert main(["check", f"mine={tmp_path}", "--workers", "1"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "inner/scans/ and inner/outlines/ share 20 names" in line
    given = {key: line.split(f"benchmarks.mine.{key}='")[1].split("'")[0] for key in ("images", "masks")}
    assert every(opened(tmp_path, **given)[1]) == STEMS
    assert (
        main(["check", f"mine={tmp_path}", "--workers", "1", "--images", given["images"], "--masks", given["masks"]])
        == 1
    )
    assert (
        "exact copies" in capsys.readouterr().out
    )  # all one photograph here: that, and nothing of its layout, is wrong


def test_photographs_that_are_numbered_alike_are_classes_still(tmp_path: Path) -> None:
    write(tmp_path, "cats/{}.png", "dogs/{}.png", draw=photograph)
    benchmark, _ = opened(tmp_path)
    assert benchmark.task == "classification"


def test_what_was_seen_is_told(tmp_path: Path) -> None:
    photograph(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "labels" / name).write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="seen: ") as caught:
        opened(tmp_path)
    for words in ("images/ (1 .jpg)", "labels/ (2 .txt)", "1 .nii.gz"):
        assert words in str(caught.value)


def test_black_and_one_colour_is_a_binary_mask(tmp_path: Path) -> None:
    green = DRAWN[..., None] * np.array([0, 200, 0], np.uint8)
    write(tmp_path, "images/{}.png", "masks/{}.png", draw=lambda path: mask(path, green))
    benchmark, splits = opened(tmp_path)
    np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN)


@pytest.mark.parametrize(
    ("array", "fits"),
    [
        (DRAWN, True),
        (DRAWN.astype(bool), True),
        (DRAWN.astype(np.int64)[..., None], True),
        (DRAWN.astype(np.float64), True),
        (DRAWN * 0.5, False),
        (DRAWN.astype(np.int64) * -1, False),
        (np.stack([DRAWN] * 3), False),
        (np.array({}), False),
    ],
)
def test_arrays_are_masks_of_whole_numbers(tmp_path: Path, array: np.ndarray, fits: bool) -> None:
    write(tmp_path, "images/{}.png", "masks/{}.npy", draw=lambda path: mask(path, array))
    benchmark, splits = opened(tmp_path)
    if fits:
        np.testing.assert_array_equal(benchmark.read(splits.train[0]).mask, DRAWN)
        return
    with pytest.raises(DatasetError, match=r"\.npy"):
        benchmark.read(splits.train[0])
