"""Trans10K-v2: the images of Trans10K with eleven classes of transparent objects (Xie et al., arXiv 2101.08461)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.datasets.readers import decoding
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.layouts import FolderLayout, Layout, Part


class Trans10KV2(FolderBenchmark):
    """Twelve classes, background included. Official splits."""

    name = "trans10k_v2"
    title = "Trans10K-v2"
    task = "multiclass"
    num_classes = 12
    class_names = (
        "background", "shelf", "jar or tank", "freezer", "window", "glass door", "eyeglass", "cup", "floor glass",
        "glass bowl", "water bottle", "storage box",
    )  # fmt: skip
    metrics = ("miou", "accuracy")
    selection_metric = "miou"
    terms = "academic use"
    source = "https://github.com/xieenze/Trans2Seg (Trans10K-v2)"
    published_sizes: ClassVar = {"train": 5000, "val": 1000, "test": 4428}
    folders = ("Trans10K-v2", "Trans10Kv2", "Trans10k_cls12")

    def layouts(self) -> tuple[Layout, ...]:
        folders = {"train": "train", "val": "validation|val", "test": "test"}
        parts = {
            split: Part(images=f"{folder}/images", masks=f"{folder}/masks_12") for split, folder in folders.items()
        }
        return (FolderLayout(name="original", parts=parts, optional=frozenset(parts)),)

    def decode_mask(self, path: Path) -> decoding.Array:
        return decoding.read_indices(path, num_classes=self.num_classes)
