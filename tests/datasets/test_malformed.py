"""Malformed data of one's own, with valid data among it: what is valid is read, and of what is not one line says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.cli.data import main
from harness.datasets.base import DatasetError
from harness.datasets.preparing.checking import first_look
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from tests.datasets import malformed
from tests.datasets import test_coco as coco
from tests.datasets.conftest import opened
from tests.datasets.test_own import DRAWN, STEMS, bands, mask, photograph, write

Write = Callable[[Path], Any]
READ = ""
ISCROWD: tuple[Any, ...] = ("0", "false", None, False, 0.0)
NO_ISCROWD: tuple[Any, ...] = ("maybe", 2, [])
SIZES: tuple[Any, ...] = (None, 40, "40x56", {})
STRIPE = np.zeros_like(DRAWN)
STRIPE[15:20, 4:9] = 1


def drawn(*values: np.ndarray, classes: str = "") -> Write:
    """Folders whose masks have these arrays in turn."""

    def lay(root: Path) -> None:
        write(root)
        for number, stem in enumerate(STEMS):
            mask(root / f"masks/{stem}_mask.png", values[number % len(values)].astype(np.uint8))
        if classes:
            (root / "classes.txt").write_text(classes)

    return lay


def frames(kind: str, where: str, count: int = 2) -> Write:
    """One file of several frames among others."""

    def lay(root: Path) -> None:
        write(root)
        stem = f"images/{STEMS[0]}" if where == "images" else f"masks/{STEMS[0]}_mask"
        (root / stem).with_suffix(".jpg" if where == "images" else ".png").unlink()
        made = [Image.fromarray(np.roll(DRAWN, shift, 0) * np.uint8(255)) for shift in range(count)]
        path = (root / stem).with_suffix(f".{kind.lower()}")
        made[0].save(
            path, kind, save_all=True, append_images=made[1:], **({"lossless": True} if kind == "WEBP" else {})
        )

    return lay


def coco_with(change: Callable[[dict], Any], file: str = "", text: Callable[[str], str] = str) -> Write:
    """COCO's images, and its JSON changed as an object and then as text."""

    def lay(root: Path) -> None:
        path = coco.write(root) / "_annotations.coco.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(text(json.dumps(content)))

    return lay


def crowd(value: Any) -> Write:
    return coco_with(lambda content: [each.update(iscrowd=value) for each in content["annotations"]])


def size(value: Any) -> Write:
    return coco_with(
        lambda content: [
            each["segmentation"].update(size=value)
            for each in content["annotations"]
            if "counts" in each["segmentation"]
        ]
    )


def coco_splits(images: str, file: str) -> Write:
    def lay(root: Path) -> None:
        for split in ("train", "valid", "test"):
            coco.write(root, images.format(split))
            (root / file.format(split)).parent.mkdir(parents=True, exist_ok=True)
            (root / images.format(split) / "_annotations.coco.json").rename(root / file.format(split))

    return lay


def nnunet(labels: str, draw: Callable[[Path], Any] = mask) -> Write:
    def lay(root: Path) -> None:
        write(root, "imagesTr/{}_0000.png", "labelsTr/{}.png", draw=draw)
        (root / "dataset.json").write_text(f'{{"labels": {labels}}}')

    return lay


def turned(orientation: int, *, of_mask: int = 1, width: int = 30) -> Write:
    """Photographs that EXIF turns, with masks of the stored size."""

    def lay(root: Path) -> None:
        write(root)
        for folder, turn in (("images", orientation), ("masks", of_mask)):
            for path in sorted((root / folder).iterdir()):
                exif = Image.Exif()
                exif[274] = turn
                Image.open(path).resize((width, 24), Image.Resampling.NEAREST).save(path, exif=exif)

    return lay


def stray(name: str, image: str = "images/img_{}.jpg", drawn: str = "masks/mask_{}.png", *, also: str = "") -> Write:
    def lay(root: Path) -> None:
        write(root, image, drawn, [f"{number:02}" for number in range(80)])
        photograph(root / name)
        if also:
            mask(root / also)

    return lay


def painted(classes: str, *colours: tuple[int, int, int], mode: str = "RGB") -> Write:
    """Masks of a background, a rectangle and a stripe in three colours."""

    def lay(root: Path) -> None:
        write(root)
        for path in (root / "masks").iterdir():
            image = Image.fromarray(np.array(colours, np.uint8)[np.maximum(DRAWN, 2 * STRIPE)])
            (image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)).save(path)
        if classes:
            (root / "classes.txt").write_text(classes)

    return lay


def pipe(name: str) -> Write:
    def lay(root: Path) -> None:
        write(root)
        os.mkfifo(root / name)

    return lay


THREE = DRAWN * 255
CROPS = "soil 0,0,0\ncrop 0,255,0\nweed 255,0,0\n"
COLOURS = (0, 0, 0), (0, 255, 0), (255, 0, 0)
NAMED = "ground\ntree\n"
CASES: dict[str, tuple[Write, dict[str, Any], str]] = {
    **{f"a third level {v}": (drawn(THREE + v * STRIPE), {}, f"mask values 0, {v}, 255") for v in (2, 7, 31, 32, 200, 254)},
    "a third level in one pixel": (drawn(THREE + 9 * (np.arange(720).reshape(24, 30) == 3)), {}, "mask values 0, 9, 255"),
    "two levels": (drawn(THREE), {}, READ),
    "indices alone": (drawn(DRAWN, classes=NAMED), {}, READ),
    "indices and 255": (drawn(DRAWN, THREE, THREE, classes=NAMED), {}, "8 masks hold class indices, and 16 hold 0 and 255"),
    "indices and one of 255": (drawn(*[DRAWN] * 23, THREE, classes=NAMED), {}, "23 masks hold class indices, and 1 hold"),
    "an area to ignore in one, alone in two": (
        drawn(DRAWN + 255 * STRIPE, THREE, THREE, classes=NAMED), {}, "8 masks hold class indices, and 16 hold 0 and 255"
    ),
    "an area to ignore, alone too": (drawn(*[DRAWN + 255 * STRIPE] * 7, THREE, classes=NAMED), {}, READ),
    "0 and 1, 0 and 255, no names": (drawn(DRAWN, THREE), {}, READ),
    "nnU-Net, 1 and 255": (
        nnunet('{"background": 0, "liver": 1}', lambda path: bands(0, 255 if path.stem in STEMS[:3] else 1)(path)),
        {},
        "21 masks hold class indices, and 3 hold 0 and 255",
    ),
    "nnU-Net": (nnunet('{"Background": 0, "liver": 1}', bands(0, 1)), {}, READ),
    "nnU-Net without a background": (nnunet('{"liver": 0, "tumour": 1}'), {}, "0 is not the background"),
    "nnU-Net, background last": (nnunet('{"liver": 0, "background": 1}'), {}, "0 is not the background"),
    "nnU-Net, a fraction": (nnunet('{"background": 0, "liver": 1.5}'), {}, "1.5 is not a whole number"),
    "nnU-Net, a label twice": (nnunet('{"background": 0, "liver": 1, "liver": 2}'), {}, "'liver' occurs twice"),
    **{
        f"a {kind} of {count} frames among {where}": (frames(kind, where, count), {}, word)
        for kind, where, count, word in (
            ("PNG", "images", 2, "2 pages"), ("PNG", "masks", 3, "3 pages"), ("WEBP", "images", 2, "2 pages"),
            ("WEBP", "masks", 2, "2 pages"), ("GIF", "masks", 2, "2 pages"), ("GIF", "masks", 1, READ), ("PNG", "images", 1, READ),
        )
    },
    **{f"COCO, iscrowd {value!r}": (crowd(value), {"category": "any"}, READ) for value in ISCROWD},
    **{f"COCO, iscrowd {value!r}": (crowd(value), {}, "which is 0 or 1") for value in NO_ISCROWD},
    **{f"COCO, size {value!r}": (size(value), {}, "do not fill its image") for value in SIZES},
    "COCO, a category twice": (
        coco_with(lambda content: content["categories"].append({"id": 1, "name": "debris"})), {}, "category 1 occurs twice"
    ),
    "COCO, a category repeated": (
        coco_with(lambda content: content["categories"].append({"id": 1, "name": "cell"})), {"category": "any"}, READ
    ),
    "COCO, a key twice": (
        coco_with(lambda content: None, text=lambda text: text.replace('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 1', 1)),
        {},
        "'iscrowd' occurs twice",
    ),
    "COCO, annotations twice": (
        coco_with(lambda content: None, text=lambda text: text[:-1] + ', "annotations": []}'), {}, "'annotations' occurs twice"
    ),
    "COCO, images below splits": (coco_splits("{}/data", "{}/labels.json"), {"category": "any"}, READ),
    "COCO, both below splits": (coco_splits("{}/images", "{}/annotations/instances.json"), {"category": "any"}, READ),
    "COCO, lists apart": (coco_splits("{}/images", "annotations/{}.json"), {"category": "any"}, READ),
    **{f"EXIF {turn}": (turned(turn), {}, "images are turned or mirrored by EXIF") for turn in (2, 3, 4)},
    "EXIF of a square": (turned(6, width=24), {}, "masks are taken as drawn on the image as viewers show it"),
    "EXIF of both": (turned(3, of_mask=3), {}, READ),
    "EXIF that the size decides": (turned(6), {}, READ),
    "painted classes": (painted(CROPS, *COLOURS), {}, READ),
    "painted in a palette": (painted(CROPS, *COLOURS, mode="P"), {}, READ),
    "painted in grey": (painted("a 0,0,0\nb 9,9,9\nc 255,255,255", *[(v, v, v) for v in (0, 9, 255)], mode="L"), {}, READ),
    "painted on white": (painted(CROPS.replace("0,0,0", "255, 255, 255"), (255, 255, 255), *COLOURS[1:]), {}, READ),
    "painted, no names": (painted("", *COLOURS), {}, "0,0,0; 0,255,0; 255,0,0: a binary mask is one colour on black; masks are"),
    "painted, names alone": (painted("soil\ncrop\nweed", *COLOURS), {}, "after each name, such as crop 0,255,0"),
    "a colour of no class": (painted(CROPS, *COLOURS[:2], (255, 0, 9)), {}, "255,0,9, which have no class"),
    "a class without a colour": (painted(CROPS + "water", *COLOURS), {}, "a colour each"),
    "a colour of two classes": (painted(CROPS + "water 255,0,0", *COLOURS), {}, "all different"),
    "a colour above 255": (painted(CROPS + "water 0,0,256", *COLOURS), {}, "a colour each"),
    "inverted": (drawn(255 - THREE), {}, "inverted?"),
    "inverted, and said so": (drawn(255 - THREE), {"invert": True}, READ),
    "mostly foreground, and said so": (drawn(255 - THREE), {"invert": False}, READ),
    "several classes inverted": (drawn(DRAWN + 2 * STRIPE, classes="a\nb\nc"), {"invert": True}, "leave it out"),
    "COCO inverted": (coco.write, {"invert": True}, "leave it out"),
    "a stray image": (stray("images/cover.jpg"), {}, "cover.jpg has no partner"),
    "one image more": (stray("images/img_80.jpg"), {}, "img_80.jpg has no partner"),
    "a stray mask": (stray("masks/legend.png"), {}, "legend.png has no partner"),
    "a pair by its whole name": (stray("images/x.jpg", also="masks/x.png"), {}, "x.jpg has its mask by its whole name, and 80 others"),
    "a stray beside equal names": (stray("images/cover.jpg", "images/{}.jpg", "masks/{}.png"), {}, "cover.jpg"),
    **{f"a pipe {name}": (pipe(name), {}, f"{name} is a pipe") for name in ("train.csv", "classes.txt", "set.json")},
}  # fmt: skip


def outcome(root: Path, **options: Any) -> str:
    """What a run says before it trains: the error or the warnings; empty where all is read without a word."""
    try:
        benchmark, splits = opened(root, **options)
        assert isinstance(benchmark, FolderBenchmark)
        said = first_look(benchmark, splits, root)
        for pairs in splits.parts.values():
            for pair in pairs:
                sample = benchmark.read(pair)
                assert sample.image.shape[:2] == sample.mask.shape
        return "\n".join(
            line
            for line in said
            if not {"test images", "groups across splits", "one-class masks"} & set(line.split(": "))
        )
    except DatasetError as error:
        return str(error)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_valid_is_read_and_what_is_not_is_one_line(tmp_path: Path, capsys, kind: str) -> None:
    lay, options, word = CASES[kind]
    if kind.startswith("COCO"):
        pytest.importorskip("pycocotools", reason="an extra: own-data")
    lay(tmp_path)
    said = outcome(tmp_path, **options)
    assert word in said
    assert len(said.splitlines()) == bool(word), said
    flags = [f"--{name}={str(value).lower()}" for name, value in options.items()]
    code = main(["check", f"mine={tmp_path}", *flags])
    printed = capsys.readouterr()
    assert word in printed.out + printed.err
    assert code in ((0, 1) if word == READ or "EXIF" in kind else (1, 2)), "copies across splits are no part of this"


def masks_of(root: Path, **options: Any) -> list[np.ndarray]:
    benchmark, splits = opened(root, **options)
    return [benchmark.read(pair).mask for pairs in splits.parts.values() for pair in pairs]


@pytest.mark.parametrize("kind", ["painted classes", "painted in a palette", "painted in grey", "painted on white"])
def test_painted_classes_are_those_of_their_colours(tmp_path: Path, kind: str) -> None:
    CASES[kind][0](tmp_path)
    assert all(np.array_equal(read, np.maximum(DRAWN, 2 * STRIPE)) for read in masks_of(tmp_path))


@pytest.mark.parametrize("invert", [True, False])
def test_inverted_masks_are_turned_where_the_user_says_so_and_what_is_ignored_stays(
    tmp_path: Path, invert: bool
) -> None:
    drawn(255 - THREE, 1 - DRAWN + 254 * STRIPE)(tmp_path)
    for read in masks_of(tmp_path, invert=invert):
        ignored = read == 255
        np.testing.assert_array_equal(read[~ignored], (DRAWN if invert else 1 - DRAWN)[~ignored])
        assert ignored.sum() in (0, STRIPE.sum())


def test_crowds_are_told_apart_however_they_are_written(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="an extra: own-data")
    for value, crowded in ((1, True), ("1", True), ("true", True), (True, True), ("0", False), ("False", False)):
        crowd(value)(tmp_path)
        values = {level for read in masks_of(tmp_path, category="any") for level in np.unique(read).tolist()}
        assert values == ({0, 255} if crowded else {0, 1}), value


@pytest.mark.parametrize("given", malformed.inputs(), ids=lambda given: given.kind)
def test_of_a_hundred_more_inputs_none_is_silently_wrong(tmp_path: Path, given: malformed.Input) -> None:
    if given.kind.startswith("COCO"):
        pytest.importorskip("pycocotools", reason="an extra: own-data")
    given.write(tmp_path)
    said = outcome(tmp_path)
    if said and not given.valid:
        return
    benchmark, splits = opened(tmp_path)
    read = {pair.image.stem: benchmark.read(pair).mask for pairs in splits.parts.values() for pair in pairs}
    assert len(read) == len(given.truth)
    for stem, truth in given.truth.items():
        (mask,) = (mask for name, mask in read.items() if stem in name)
        np.testing.assert_array_equal(mask, truth)
