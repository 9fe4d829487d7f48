"""CVC-ClinicDB (CVC-612): 612 frames of 29 sequences (Bernal et al., 2015, doi 10.1016/j.compmedimag.2015.02.007).

Frames of one sequence are near-duplicates, so a split by frame leaks. Split rule ``default`` takes a bundle's own test frames
where the layout has them, and whole sequences otherwise. ``carved`` always takes whole sequences. ``pranet`` takes PraNet's
test frames, whose sequences are in its training frames too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part
from harness.datasets.readers.splitting import Arranged, Pairs

TEST_LIST = "pranet-cvc612-test"

FIRST_FRAMES = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448, 467, 479,
    504, 529, 547, 572, 592,
)  # fmt: skip
"""First frame of each of the 29 sequences; frames are numbered 1 to 612."""


def sequence_of(stem: str) -> int:
    """Sequence (1 to 29) of a frame. Raises DatasetError: ``stem`` is not a frame number."""
    if not stem.isdigit() or not 1 <= int(stem) <= 612:
        raise DatasetError(f"CVC-ClinicDB's frames are numbered 1 to 612; {stem!r} is not, so its sequence is unknown")
    return bisect_right(FIRST_FRAMES, int(stem))


class CVC612(FolderBenchmark):
    """Binary: polyp. Split rules: see the module."""

    name = "cvc612"
    title = "CVC-612"
    class_names = ("background", "polyp")
    metrics = ("s_measure", "e_mean", "e_max", "e_adaptive", "weighted_f", "mae", "iou", "dice")
    selection_metric = "s_measure"
    terms = "research and education"
    source = "https://polyp.grand-challenge.org/CVCClinicDB/, PraNet's Train- and TestDataset, or AutoGluon's polyp.zip"
    archives = (f"{AUTOGLUON}/polyp.zip",)
    published_sizes: ClassVar = {"all": 612}
    native_size = (384, 288)
    folders = ("CVC-ClinicDB", "CVC-612", "cvc612", "polyp", "PraNet")
    carved_by = "whole sequences"
    split_rules = ("default", "pranet")

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(name="original", parts={"all": Part(images="Original", masks="Ground Truth")}),
            FolderLayout(name="kaggle", parts={"all": Part(images="PNG/Original", masks="PNG/Ground Truth")}),
            FolderLayout(
                name="pranet",
                parts={
                    "train": Part(images="TrainDataset/image|images", masks="TrainDataset/masks", keep=str.isdigit),
                    "test": Part(images="TestDataset/CVC-ClinicDB/images", masks="TestDataset/CVC-ClinicDB/masks"),
                },
            ),
            CsvLayout(test={"test": "test_CVC-ClinicDB.csv"}, keep=str.isdigit),
        )

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if self.options.split_rule == "pranet" and "all" in parts:
            by_list = self.split_by_list(parts["all"], TEST_LIST)
            if by_list is None:
                raise DatasetError(
                    f"split rule 'pranet' needs the published frame numbers; {root} has none of its images"
                )
            return by_list
        return super().arrange(parts, root=root, layout=layout)

    def group(self, pair: Pair) -> str:
        return f"sequence {sequence_of(pair.stem):02d}"
