"""CAMO: 1250 images with camouflaged objects, 1000 for training (Le et al., CVIU 2019, doi 10.1016/j.cviu.2019.04.006).

Split rule ``camo+cod10k`` (quirk 9) adds COD10K's 3040 training images, which only the SINet bundle has; the test
stays CAMO's 250.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import DatasetError
from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part
from harness.datasets.readers.splitting import Arranged, Pairs

_JOINT = "camo+cod10k"


def is_camo(stem: str) -> bool:
    """CAMO's files are called ``camourflage_…``, COD10K's ``COD10K-CAM-…``."""
    return not stem.upper().startswith("COD10K")


class CAMO(FolderBenchmark):
    """Binary: camouflaged object. Official test, validation carved from train."""

    name = "camo"
    title = "CAMO"
    class_names = ("background", "camouflaged object")
    metrics = ("s_measure", "e_mean", "e_max", "e_adaptive", "weighted_f", "mae", "iou", "dice")
    selection_metric = "s_measure"
    terms = "non-commercial"
    source = (
        "https://sites.google.com/view/ltnghia/research/camo (CAMO-V.1.0-CVIU2019.zip), SINet's bundle, "
        "or AutoGluon's camo_sem_seg.zip"
    )
    archives = (f"{AUTOGLUON}/camo_sem_seg.zip",)
    published_sizes: ClassVar = {"train": 1000, "test": 250}
    folders = ("CAMO-V.1.0-CVIU2019", "CAMO", "camo_sem_seg", "SINet", "COD10K")
    split_rules = ("default", _JOINT)

    def layouts(self) -> tuple[Layout, ...]:
        keep = None if self.options.split_rule == _JOINT else is_camo
        return (
            FolderLayout(
                name="original",
                parts={
                    "train": Part(images="Images/Train", masks="GT"),
                    "test": Part(images="Images/Test", masks="GT"),
                },
                optional=frozenset({"train", "test"}),
            ),
            FolderLayout(
                name="sinet",
                parts={
                    "train": Part(images="TrainDataset/Imgs|Image", masks="TrainDataset/GT", keep=keep),
                    "test": Part(images="TestDataset/CAMO/Imgs|Image", masks="TestDataset/CAMO/GT"),
                },
            ),
            CsvLayout(test={"test": "test_CAMO.csv"}, keep=keep),
        )

    def sizes_to_expect(self, layout: str) -> Mapping[str, int]:
        return {} if self.options.split_rule == _JOINT else self.published_sizes

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if self.options.split_rule == _JOINT and all(is_camo(pair.stem) for pair in parts["train"]):
            raise DatasetError(
                f"split rule {_JOINT!r} needs SINet's TrainDataset with COD10K's images; {root} has CAMO alone"
            )
        arranged = super().arrange(parts, root=root, layout=layout)
        foreign = sum(not is_camo(pair.stem) for pair in arranged.train)
        more = f"; {foreign} COD10K images in train" if foreign else ""
        return arranged._replace(rule=f"{arranged.rule}{more}")
