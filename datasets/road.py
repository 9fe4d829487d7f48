"""Massachusetts Roads: 1171 aerial images of 1500x1500 (Mnih, PhD thesis, Toronto 2013). Missing imagery is white.

Layout ``tiles``: pieces of training images, ``<image id>_r<row>c<column>``, and no validation or test folder. They are
split by image, so that no piece of a tested image is trained on, and tables call them tiles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import Pair
from harness.datasets.readers import splitting
from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder
from harness.datasets.readers.pairing import image_files

_TILE = re.compile(r"(?P<image>.+)_r\d+c\d+")


def image_of_tile(stem: str) -> str | None:
    """The image that a tile was cut from; None unless the name is that of a tile."""
    match = _TILE.fullmatch(stem.casefold())
    return match["image"] if match else None


def _holds_tiles_alone(root: Path) -> bool:
    """Whether the training images are tiles, without another part whose official images they may come from."""
    images = resolve_folder(root, "train/sat")
    others = any(resolve_folder(root, name) for name in ("valid|val", "test"))
    return images is not None and not others and all(image_of_tile(path.stem) for path in image_files(images))


class Road(FolderBenchmark):
    """Binary: road. Official splits; tiles are carved by image."""

    name = "road"
    title = "Road"
    class_names = ("background", "road")
    metrics = ("iou", "dice", "mae")
    selection_metric = "iou"
    terms = "none stated"
    source = "https://www.cs.toronto.edu/~vmnih/data/, Kaggle's massachusetts-roads-dataset, or AutoGluon's zip"
    archives = (f"{AUTOGLUON}/road_segmentation.zip",)
    published_sizes: ClassVar = {"train": 1108, "val": 14, "test": 49}
    folders = (
        "massachusetts_roads", "massachusetts-roads-dataset", "mass_roads", "road", "road_segmentation",
        "massachusetts_roads_tiles",
    )  # fmt: skip
    native_size = (1500, 1500)
    carved_by = "whole images"
    test_fraction = 0.3
    """For tiles, of which there are tens per image."""

    def layouts(self) -> tuple[Layout, ...]:
        original = {"train": "train", "val": "valid|val", "test": "test"}
        kaggle = {"train": "tiff/train", "val": "tiff/val", "test": "tiff/test"}
        return (
            FolderLayout(
                name="original",
                parts={
                    split: Part(images=f"{folder}/sat", masks=f"{folder}/map") for split, folder in original.items()
                },
                optional=frozenset(original),
                probe=lambda root: not _holds_tiles_alone(root),
            ),
            FolderLayout(
                name="kaggle",
                parts={split: Part(images=folder, masks=f"{folder}_labels") for split, folder in kaggle.items()},
                optional=frozenset(kaggle),
            ),
            FolderLayout(
                name="tiles", parts={"all": Part(images="train/sat", masks="train/map")}, probe=_holds_tiles_alone
            ),
            CsvLayout(),
        )

    def sizes_to_expect(self, layout: str) -> Mapping[str, int]:
        return {} if layout == "tiles" else self.published_sizes

    def group(self, pair: Pair) -> str:
        return image_of_tile(pair.stem) or splitting.own_stem(pair)

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        if layout.name != "tiles":
            return super().notes(pairs, layout=layout, parts=parts)
        return [f"{len(pairs)} tiles of {len({self.group(pair) for pair in pairs})} images"]
