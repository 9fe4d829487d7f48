"""Kvasir-SEG: 1000 colonoscopy images with polyps (Jha et al., arXiv 1911.07069). Masks are JPEG: 255 may be stored as 254.

No official split. The first of these is used: the lists of ``splits/`` where a copy has them; PraNet's test images, by stem; a
carve where neither is there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import Pair
from harness.datasets.readers.folder_benchmark import AUTOGLUON, CARVED, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder
from harness.datasets.readers.pairing import image_files
from harness.datasets.readers.splitting import Arranged, Pairs, split_by_lists

TEST_LIST = "pranet-kvasir-test"

_PUBLISHED = re.compile(r"c[jk][0-9a-z]{23}")
_KNOWN_COPY = re.compile(r"(train|val|test)_\d{4}")
"""Names in the copy at 352 pixels, which lost the published ones."""


def is_kvasir(stem: str) -> bool:
    """Kvasir's files are called ``cju…``; the polyp bundles mix them with CVC's numbers."""
    return not stem.isdigit()


def _looks_like_kvasir(root: Path) -> bool:
    masks = resolve_folder(root, "masks")
    return masks is not None and any(
        path.suffix.lower() in (".jpg", ".jpeg") or path.stem.startswith("cju") for path in image_files(masks)
    )


class Kvasir(FolderBenchmark):
    """Binary: polyp."""

    name = "kvasir"
    title = "Kvasir-SEG"
    class_names = ("background", "polyp")
    metrics = ("s_measure", "e_mean", "e_max", "e_adaptive", "weighted_f", "mae", "iou", "dice")
    selection_metric = "s_measure"
    terms = "research and education"
    source = "https://datasets.simula.no/kvasir-seg/ (kvasir-seg.zip), PraNet's bundle, or AutoGluon's polyp.zip"
    archives = (f"{AUTOGLUON}/polyp.zip",)
    published_sizes: ClassVar = {"all": 1000}
    folders = ("Kvasir-SEG", "kvasir", "polyp", "PraNet")

    def layouts(self) -> tuple[Layout, ...]:
        return (
            FolderLayout(
                name="original",
                parts={"all": Part(images="images", masks="masks")},
                probe=_looks_like_kvasir,
            ),
            FolderLayout(
                name="pranet",
                parts={
                    "train": Part(images="TrainDataset/image|images", masks="TrainDataset/masks", keep=is_kvasir),
                    "test": Part(images="TestDataset/Kvasir/images", masks="TestDataset/Kvasir/masks"),
                },
            ),
            CsvLayout(test={"test": "test_Kvasir.csv"}, keep=is_kvasir),
        )

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if "all" in parts and self.options.split_rule != CARVED:
            if (folder := root / "splits").is_dir():
                return split_by_lists(
                    parts["all"], {split: folder / f"{split}.txt" for split in ("train", "val", "test")}
                )
            if by_list := self.split_by_list(parts["all"], TEST_LIST):
                return by_list
        return super().arrange(parts, root=root, layout=layout)

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        """Many data sets have folders called images and masks, so file names must show whether this is Kvasir-SEG."""
        stems = [pair.stem.casefold() for pair in pairs]
        foreign = sum(not (_PUBLISHED.fullmatch(stem) or _KNOWN_COPY.fullmatch(stem)) for stem in stems)
        if layout.name == "original" and foreign:
            return [f"other images: {foreign} of {len(stems)} have no name of Kvasir-SEG"]
        return super().notes(pairs, layout=layout, parts=parts)
