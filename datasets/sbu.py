"""SBU shadow: 4089 + 638 photographs with shadows (Vicente et al., ECCV 2016); four training images lack a mask."""

from __future__ import annotations

from typing import ClassVar

from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part


class SBU(FolderBenchmark):
    """Binary: shadow. Official test, validation carved from train. Any mask value above 0 is shadow."""

    name = "sbu"
    title = "SBU"
    mask_rule = "nonzero"
    class_names = ("background", "shadow")
    metrics = ("ber", "iou", "mae")
    selection_metric = "ber"
    terms = "none stated"
    source = "https://www3.cs.stonybrook.edu/~cvl/projects/shadow_noisy_label/ (SBU-shadow.zip), or AutoGluon's zip"
    archives = (f"{AUTOGLUON}/SBU-shadow.zip",)
    published_sizes: ClassVar = {"train": 4085, "test": 638}
    folders = ("SBU-shadow", "SBU", "SBU_shadow_dataset")
    unpaired_allowed = True
    test_fraction = 0.2

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(
                name="original",
                parts={
                    "train": Part(
                        images="SBUTrain4KRecoveredSmall/ShadowImages", masks="SBUTrain4KRecoveredSmall/ShadowMasks"
                    ),
                    "test": Part(images="SBU-Test/ShadowImages", masks="SBU-Test/ShadowMasks"),
                },
                optional=frozenset({"train", "test"}),
            ),
            CsvLayout(),
        )
