"""What lies beside the pairs in the real archives and must not disturb: junk, superpixels, copies, gaps."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from harness.datasets.samples.scenes import Palette, draw_scene
from harness.datasets.samples.trees import Stem, Tree, cvc_stem, kvasir_stem

Rows = dict[str, list[tuple[str, str]]]

_OTHERS = 4


def add_extras(name: str, folder: Path, *, layout: str, tree: Tree, seed: int, size: int, rows: Rows) -> None:
    """Add a layout's traps to a sample that is already written."""
    for images, _ in tree.parts.values():
        (folder / images / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    generator = np.random.default_rng([seed, 99])
    if name == "isic2017" and layout == "original":
        _superpixels(folder, rows)
    if name == "sbu" and layout == "original":
        _images_without_masks(folder / tree.parts["train"][0], generator, size)
    if name == "leaf" and layout == "original":
        _augmented_copies(folder, rows["all"])
    if name == "road":
        _missing_imagery(folder, [image for part in rows.values() for image, _ in part][::5])
    if layout in ("pranet", "autogluon") and name in ("kvasir", "cvc612"):
        _foreign(folder, tree, generator, size, stem=cvc_stem if name == "kvasir" else kvasir_stem)
    if layout == "sinet":
        _foreign(folder, tree, generator, size, stem=lambda index, count: f"COD10K-CAM-1-Aquatic-{index + 1}")


def _superpixels(folder: Path, rows: Rows) -> None:
    for part in rows.values():
        for image, _ in part:
            path = folder / image
            with Image.open(path) as opened:
                opened.convert("RGB").resize(opened.size).save(path.with_name(f"{path.stem}_superpixels.png"))
        first = folder / part[0][0]
        first.with_name("README.md").write_text("licence and description\n", encoding="utf-8")


def _images_without_masks(images: Path, generator: np.random.Generator, size: int) -> None:
    for index in range(2):
        pixels = generator.integers(0, 255, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"without_mask_{index}.jpg")


def _augmented_copies(folder: Path, rows: list[tuple[str, str]]) -> None:
    for kind, position in (("images", 0), ("masks", 1)):
        target = folder / "aug_data" / "aug_data" / kind
        target.mkdir(parents=True, exist_ok=True)
        for row in rows[:6]:
            source = folder / row[position]
            with Image.open(source) as opened:
                opened.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target / f"{source.stem}_flipped{source.suffix}")


def _missing_imagery(folder: Path, images: list[str]) -> None:
    for name in images:
        with Image.open(folder / name) as opened:
            pixels = np.array(opened)
        pixels[:, -pixels.shape[1] // 4 :] = 255
        Image.fromarray(pixels).save(folder / name)


def _foreign(folder: Path, tree: Tree, generator: np.random.Generator, size: int, *, stem: Stem) -> None:
    """Training images of the other benchmark that a bundle mixes in."""
    images, masks = tree.parts["train"]
    palette = Palette(background=(178, 92, 78), foreground=((228, 158, 70),))
    added = []
    for index in range(_OTHERS):
        scene = draw_scene(generator, (size, size), palette)
        image = f"{images}/{stem(index, _OTHERS)}{tree.image_suffix}"
        mask = f"{masks}/{stem(index, _OTHERS)}{tree.mask_names[0]}"
        Image.fromarray(scene.image).save(folder / image)
        tree.encode[0](folder / mask, scene.classes)
        added.append((image, mask))
    if "train" in tree.lists:
        with (folder / tree.lists["train"]).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([100 + number, image, mask] for number, (image, mask) in enumerate(added))
