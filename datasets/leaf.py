"""Leaf disease segmentation: 588 leaf photographs (Kaggle). Masks are dark red on black, whose grey view peaks at 38: up to
00310 palette files {0, 1}, from 00311 on RGB with blended edges (disease: red above 63).

No official split: test and validation are carved. ``aug_data`` next to ``data`` holds copies of the same leaves and is
never read, so no copy of a test image can be trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder
from harness.datasets.readers.pairing import image_files


def _layout(name: str, prefix: str, *, distinctive: bool) -> FolderLayout:
    def masks_are_png(root: Path) -> bool:
        masks = resolve_folder(root, f"{prefix}masks")
        return masks is not None and any(path.suffix.lower() == ".png" for path in image_files(masks)[:1])

    parts = {"all": Part(images=f"{prefix}images", masks=f"{prefix}masks")}
    return FolderLayout(name=name, parts=parts, distinctive=distinctive, probe=masks_are_png)


class Leaf(FolderBenchmark):
    """Binary: diseased area."""

    name = "leaf"
    title = "Leaf"
    mask_rule = "index"
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

    def layouts(self) -> tuple[Layout, ...]:
        # `data/data` unpacks to `data`: `resolve_folder` steps over a folder within a folder of its own name.
        return (_layout("original", "data/", distinctive=False), _layout("flat", "", distinctive=False), CsvLayout())
