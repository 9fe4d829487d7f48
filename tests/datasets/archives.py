"""Samples in every layout that the archives come in, with images of another benchmark where a bundle mixes them in."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from harness.datasets import samples
from harness.datasets.samples import (
    DEFAULT_IMAGES,
    RECIPES,
    Array,
    Encode,
    Tree,
    draw_scene,
    grey,
    palette_png,
    tree_of,
)


def one_bit(path: Path, classes: Array) -> None:
    Image.fromarray(classes.astype(bool)).save(path)


MIXED = (grey, grey, samples.three_channels, one_bit)
PARTS = ("train", "val", "test")


def _lists(name: str, *, suffix: str, mask: str = ".png", encode: tuple[Encode, ...] = (grey,)) -> Tree:
    parts = {part: (f"{part}_images", f"{part}_masks") for part in PARTS}
    return Tree(folder=f"{name}/{name}", parts=parts, suffix=suffix, mask_names=(mask,), encode=encode)


OTHERS: Mapping[str, Mapping[str, Tree]] = {
    "kvasir": {
        "pranet": tree_of("kvasir", "pranet", folder="PraNet", suffix=".png", encode=MIXED),
        "autogluon": _lists("polyp", suffix=".png", encode=MIXED),
    },
    "cvc612": {
        "kaggle": tree_of("cvc612", "kaggle", suffix=".png"),
        "pranet": tree_of("cvc612", "pranet", folder="PraNet", suffix=".png", encode=MIXED),
        "autogluon": _lists("polyp", suffix=".png", encode=MIXED),
    },
    "isic2017": {"autogluon": _lists("isic2017", suffix=".jpg", mask="_segmentation.png")},
    "camo": {
        "sinet": tree_of("camo", "sinet", folder="SINet"),
        "autogluon": _lists("camo_sem_seg", suffix=".jpg"),
    },
    "sbu": {"autogluon": _lists("SBU-shadow", suffix=".jpg")},
    "leaf": {
        "flat": tree_of("leaf", "flat", encode=(palette_png,)),
        "autogluon": _lists("leaf_disease_segmentation", suffix=".jpg", encode=(palette_png,)),
    },
    "road": {
        "kaggle": tree_of("road", "kaggle", folder="massachusetts-roads-dataset", suffix=".tiff", mask_names=(".tif",)),
        "autogluon": _lists("road_segmentation", suffix=".tiff", mask=".tif"),
    },
}
TESTS = {"kvasir": "test_Kvasir.csv", "cvc612": "test_CVC-ClinicDB.csv", "camo": "test_CAMO.csv"}
FOREIGN: dict[tuple[str, str], Callable[[int], str]] = {
    **{("kvasir", layout): lambda index: str(1 + 200 * index) for layout in ("pranet", "autogluon")},
    **{("cvc612", layout): lambda index: RECIPES["kvasir"].stem(index, 4) for layout in ("pranet", "autogluon")},
    ("camo", "sinet"): lambda index: f"COD10K-CAM-1-Aquatic-{index + 1}",
}
"""Names of training images of another benchmark that a bundle mixes in."""


def layouts(name: str) -> tuple[str, ...]:
    return ("original", *OTHERS.get(name, {}))


def write_archive(
    name: str, root: Path, layout: str = "original", *, images: int = DEFAULT_IMAGES, size: int = 112
) -> Path:
    """A sample in one of `layouts`, as unpacked; returns the benchmark's folder."""
    tree = tree_of(name, **RECIPES[name].form) if layout == "original" else OTHERS[name][layout]
    given = None if layout == "original" else (layout, tree)
    folder = samples.write_samples(name, root, images=images, size=size, layout=given)
    for number in range(4 if (name, layout) in FOREIGN else 0):
        pixels = draw_scene(np.random.default_rng(number), (size, size), samples.POLYP)
        stem, (of_images, of_masks) = FOREIGN[name, layout](number), tree.parts["train"]
        Image.fromarray(pixels.image).save(folder / of_images / f"{stem}{tree.suffix}")
        tree.encode[0](folder / of_masks / f"{stem}{tree.mask_names[0]}", pixels.classes)
    if layout == "autogluon":
        for part, (of_images, of_masks) in tree.parts.items():
            rows = [
                (number, f"{of_images}/{path.name}", f"{of_masks}/{path.stem}{tree.mask_names[0]}")
                for number, path in enumerate(sorted((folder / of_images).iterdir()))
            ]
            lines = [["", "image", "label"], *rows] if part == "train" else [["image", "label"], *(r[1:] for r in rows)]
            with (folder / (TESTS.get(name, "test.csv") if part == "test" else f"{part}.csv")).open(
                "w", newline=""
            ) as file:
                csv.writer(file).writerows(lines)
    return folder
