"""ISIC 2017 part 1, lesion segmentation: 2000/150/600 dermoscopic images (Codella et al., arXiv 1710.05006)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from datasets.reading import decoding
from datasets.reading.folder_benchmark import AUTOGLUON, FolderBenchmark
from datasets.reading.layouts import CsvLayout, FolderLayout, Layout, Part


def _part(split: str) -> Part:
    return Part(images=f"ISIC-2017_{split}_Data", masks=f"ISIC-2017_{split}_Part1_GroundTruth")


class ISIC2017(FolderBenchmark):
    """Binary: lesion. Official splits."""

    name = "isic2017"
    title = "ISIC 2017"
    class_names = ("background", "lesion")
    metrics = ("jaccard", "dice", "iou", "mae")
    selection_metric = "jaccard"
    terms = "ISIC archive terms of use (CC0 confirmed for the 2016 edition)"
    source = (
        "https://challenge.isic-archive.com/data/#2017 (three data and three Part1 ground-truth archives), "
        "or AutoGluon's isic2017.zip"
    )
    archives = (f"{AUTOGLUON}/isic2017.zip",)
    published_sizes: ClassVar = {"train": 2000, "val": 150, "test": 600}
    folders = ("ISIC2017", "ISIC-2017", "ISIC_2017_Task1")

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(
                name="original",
                parts={"train": _part("Training"), "val": _part("Validation"), "test": _part("Test_v2")},
            ),
            CsvLayout(),
        )

    def decode_mask(self, path: Path) -> decoding.Array:
        return decoding.read_binary(path, only_255=self.options.mask_255_only)
