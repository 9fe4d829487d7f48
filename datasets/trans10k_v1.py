"""Trans10K: 10,428 photographs with transparent things and stuff (Xie et al., arXiv 2003.13948)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.datasets.readers import decoding
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.layouts import FolderLayout, Layout, Part

CHANNEL_MEANS = {0: 0, 85: 1, 255: 2}


class Trans10KV1(FolderBenchmark):
    """Three classes. Official splits; the easy and the hard test images are two test splits."""

    name = "trans10k_v1"
    title = "Trans10K-v1"
    task = "multiclass"
    num_classes = 3
    class_names = ("background", "things", "stuff")
    metrics = ("miou", "accuracy")
    selection_metric = "miou"
    terms = "academic use"
    source = "https://xieenze.github.io/projects/TransLAB/TransLAB.html (Trans10K)"
    published_sizes: ClassVar = {"train": 5000, "val": 1000, "test": 4428}
    folders = ("Trans10K", "Trans10K-v1", "Trans10k_v1")
    test_splits = ("easy", "hard")

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(
                name="original",
                parts={
                    "train": Part(images="train/images", masks="train/masks"),
                    "val+easy": Part(images="validation|val/easy/images", masks="validation|val/easy/masks"),
                    "val+hard": Part(images="validation|val/hard/images", masks="validation|val/hard/masks"),
                    "easy": Part(images="test/easy/images", masks="test/easy/masks"),
                    "hard": Part(images="test/hard/images", masks="test/hard/masks"),
                },
            ),
        )

    def decode_mask(self, path: Path) -> decoding.Array:
        return decoding.read_channel_means(path, means=CHANNEL_MEANS)
