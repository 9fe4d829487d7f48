"""ISIC 2017 part 1, lesion segmentation: 2000/150/600 dermoscopic images (Codella et al., arXiv 1710.05006).

Split rule ``val-as-test`` is for users without the test part: the official validation images are tested, validation is
carved from training. Some lesions are in the archive twice, mostly with other colours or edges. This rule leaves out
training pictures of a tested lesion, and keeps the two pictures of a training lesion on one side. The lists below were
found by correlating the detail of 48-pixel thumbnails over shifts and scales, and by eye.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import Pair
from harness.datasets.readers.folder_benchmark import AUTOGLUON, CARVED, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part
from harness.datasets.readers.splitting import Arranged, Pairs

VAL_AS_TEST = "val-as-test"

LESIONS_OF_VALIDATION = {"0012970": "0012127", "0000171": "0015124", "0000157": "0014946", "0000215": "0015313"}
"""Training picture -> validation picture of the same lesion; the first is the same file."""

SAME_LESION = {
    "0009998": "0000240", "0010571": "0000423", "0012673": "0012672", "0013184": "0012756", "0013594": "0012290",
    "0014657": "0000177", "0014739": "0000206", "0014748": "0000204", "0014771": "0000229", "0014778": "0000225",
    "0014788": "0000165", "0014795": "0000164", "0014818": "0000223", "0014846": "0000222",
}  # fmt: skip
"""Training picture -> an earlier training picture of the same lesion."""


def number(pair: Pair) -> str:
    """``ISIC_0000001`` -> ``0000001``."""
    return pair.stem.casefold().removeprefix("isic_")


def _part(split: str) -> Part:
    return Part(images=f"ISIC-2017_{split}_Data", masks=f"ISIC-2017_{split}_Part1_GroundTruth")


class ISIC2017(FolderBenchmark):
    """Binary: lesion. Official splits; see the module for those who have no test part."""

    name = "isic2017"
    title = "ISIC 2017"
    class_names = ("background", "lesion")
    metrics = ("jaccard", "dice", "iou", "mae")
    selection_metric = "jaccard"
    terms = "CC0, by the download page"
    redistribution = "CC0"
    source = (
        "https://challenge.isic-archive.com/data/#2017 (three data and three Part1 ground-truth archives), "
        "or AutoGluon's isic2017.zip"
    )
    archives = (f"{AUTOGLUON}/isic2017.zip",)
    published_sizes: ClassVar = {"train": 2000, "val": 150, "test": 600}
    folders = ("ISIC2017", "ISIC-2017", "ISIC_2017_Task1")
    split_rules = ("default", VAL_AS_TEST)
    without_test = VAL_AS_TEST
    stretched_copies = True
    carved_by = "hashed number of the lesion's first image"

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(
                name="original",
                parts={"train": _part("Training"), "val": _part("Validation"), "test": _part("Test_v2")},
                optional=frozenset({"train", "val", "test"}),
            ),
            CsvLayout(),
        )

    def sizes_to_expect(self, layout: str) -> Mapping[str, int]:
        if self.options.split_rule != VAL_AS_TEST:
            return self.published_sizes
        return {
            "train": self.published_sizes["train"] - len(LESIONS_OF_VALIDATION),
            "test": self.published_sizes["val"],
        }

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if self.options.split_rule != VAL_AS_TEST:
            return super().arrange(parts, root=root, layout=layout)
        tested = parts["val"]
        there = {number(pair) for pair in tested}
        kept = [pair for pair in parts["train"] if LESIONS_OF_VALIDATION.get(number(pair)) not in there]
        train, val, rule = self.carve_val(kept)
        dropped = len(parts["train"]) - len(kept)
        words = f"{VAL_AS_TEST}: official validation tested; {rule}"
        left_out = f"; {dropped} training images of tested lesions left out" if dropped else ""
        return Arranged(train, val, {"test": tested}, words + left_out)

    def needed_parts(self) -> tuple[str, ...]:
        return ("train", "val") if self.options.split_rule == VAL_AS_TEST else super().needed_parts()

    def group(self, pair: Pair) -> str:
        across = LESIONS_OF_VALIDATION if self.options.split_rule == CARVED else {}
        return {**SAME_LESION, **across}.get(number(pair), number(pair))

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        rule = ["validation as test"] if self.options.split_rule == VAL_AS_TEST else []
        return rule + super().notes(pairs, layout=layout, parts=parts)
