"""Massachusetts Roads: 1171 aerial images of 1500x1500 (Mnih, PhD thesis, Toronto 2013). Missing imagery is white."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy import ndimage

from datasets.base import IGNORE, Pair, Sample
from datasets.reading import decoding
from datasets.reading.folder_benchmark import AUTOGLUON, FolderBenchmark
from datasets.reading.layouts import CsvLayout, FolderLayout, Layout, Part

SMALLEST_GAP = 0.002
"""A connected white area below this share of the image is a roof or a car park, not missing imagery."""


def missing_imagery(image: decoding.Array) -> np.ndarray:
    """Where an aerial image (H, W, 3) shows nothing: large connected areas of pure white, (H, W) bool."""
    white = (image == 255).all(axis=2)
    if not white.any():
        return white
    areas, count = ndimage.label(white)
    sizes = np.bincount(areas.ravel(), minlength=count + 1)
    large = sizes >= SMALLEST_GAP * white.size
    large[0] = False
    return large[areas]


class Road(FolderBenchmark):
    """Binary: road. Official splits. `DataOptions.road_missing_ignore` marks missing imagery as ignore."""

    name = "road"
    title = "Massachusetts Roads"
    class_names = ("background", "road")
    metrics = ("iou", "dice", "mae")
    selection_metric = "iou"
    terms = "none stated"
    source = "https://www.cs.toronto.edu/~vmnih/data/, Kaggle's massachusetts-roads-dataset, or AutoGluon's zip"
    archives = (f"{AUTOGLUON}/road_segmentation.zip",)
    published_sizes: ClassVar = {"train": 1108, "val": 14, "test": 49}
    folders = ("massachusetts_roads", "massachusetts-roads-dataset", "mass_roads", "road", "road_segmentation")
    native_side = 1500

    def layouts(self) -> tuple[Layout, ...]:
        original = {"train": "train", "val": "valid|val", "test": "test"}
        kaggle = {"train": "tiff/train", "val": "tiff/val", "test": "tiff/test"}
        return (
            FolderLayout(
                name="original",
                parts={
                    split: Part(images=f"{folder}/sat", masks=f"{folder}/map") for split, folder in original.items()
                },
            ),
            FolderLayout(
                name="kaggle",
                parts={split: Part(images=folder, masks=f"{folder}_labels") for split, folder in kaggle.items()},
            ),
            CsvLayout(),
        )

    def decode_mask(self, path: Path) -> decoding.Array:
        return decoding.read_binary(path, only_255=self.options.mask_255_only)

    def read(self, pair: Pair) -> Sample:
        sample = super().read(pair)
        if not self.options.road_missing_ignore:
            return sample
        return Sample(image=sample.image, mask=np.where(missing_imagery(sample.image), np.uint8(IGNORE), sample.mask))
