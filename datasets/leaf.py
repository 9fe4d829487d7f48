"""Leaf disease segmentation: 588 leaf photographs (Kaggle). Masks are dark red on black, whose grey view peaks at 38: up to
00310 palette files {0, 1}, from 00311 on RGB with blended edges (disease: red above 63).

No official split: test and validation are carved. ``aug_data`` next to ``data`` holds copies of the same leaves and is
never read. Some photographs are in ``data`` several times under other numbers: turned, cropped, scaled, recoloured or with another
banner. `ONE_PHOTOGRAPH` lists them, and a carve keeps them on one side. They were found among all 588 images in two ways, and each checked
by eye: by correlating high-passed thumbnails of 32 px in all eight turns and mirrors (above 0.55, and the colours above 0.75); and by
the 120 strongest SIFT points of each at 360 px, also of the mirrored image, matched both ways with Lowe's ratio 0.7 to 0.75 and fitted by
RANSAC with a similarity or an affine map, where 7 points agree that do not lie on one line, as those of a stock agency's banner do.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.datasets.base import Pair
from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder
from harness.datasets.readers.pairing import image_files
from harness.datasets.readers.splitting import own_stem

ONE_PHOTOGRAPH = (
    "0 176 268", "9 136 177 370", "11 331", "28 210", "33 192", "44 275", "46 47", "58 59", "66 116", "69 118", "71 72 258", "80 306",
    "88 169", "105 115", "113 150", "128 394", "146 188", "151 163", "153 279", "157 218", "173 430", "190 191 515", "196 517", "208 281",
    "220 221", "245 294", "257 553", "290 291", "320 440", "384 527", "385 491", "423 546", "497 498", "556 559", "581 582",
)  # fmt: skip
"""Numbers of images that show one photograph, or one leaf, one string per group."""
_FIRST = {f"{int(number):05d}": f"{int(group.split()[0]):05d}" for group in ONE_PHOTOGRAPH for number in group.split()}


def _layout(name: str, prefix: str) -> FolderLayout:
    def masks_are_png(root: Path) -> bool:
        masks = resolve_folder(root, f"{prefix}masks")
        return masks is not None and any(path.suffix.lower() == ".png" for path in image_files(masks)[:1])

    parts = {"all": Part(images=f"{prefix}images", masks=f"{prefix}masks")}
    return FolderLayout(name=name, parts=parts, probe=masks_are_png)


class Leaf(FolderBenchmark):
    """Binary: diseased area."""

    name = "leaf"
    title = "Leaf"
    mask_rule = "nonzero"
    mask_colour = (128, 0, 0)
    class_names = ("background", "disease")
    metrics = ("iou", "dice", "mae")
    selection_metric = "iou"
    terms = "none stated"
    source = (
        "Kaggle's leaf disease segmentation data set (fakhrealam9537), or AutoGluon's leaf_disease_segmentation.zip"
    )
    archives = (f"{AUTOGLUON}/leaf_disease_segmentation.zip",)
    published_sizes: ClassVar = {"all": 588}
    folders = ("leaf_disease", "leaf-disease-segmentation-dataset", "leaf_disease_segmentation", "leaf")
    test_fraction = 0.2
    carved_by = "hashed stem, copies of a photograph together"

    def layouts(self) -> tuple[Layout, ...]:
        # `data/data` unpacks to `data`: `resolve_folder` steps over a folder within a folder of its own name.
        return (_layout("original", "data/"), _layout("flat", ""), CsvLayout())

    def group(self, pair: Pair) -> str:
        return _FIRST.get(own_stem(pair), own_stem(pair))
