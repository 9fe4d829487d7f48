"""The joint polyp protocol of PraNet (Fan et al., MICCAI 2020, arXiv 2006.11392): trained on Kvasir-SEG and CVC-612 together.

PraNet's lists choose the test images, both in its own bundle and in the original archives: 100 of Kvasir-SEG, which leaves 900, and 62 of
CVC-612, which leave 550. A tenth of both is carved for validation, of CVC-612 in whole sequences. Three further sets are tested where they
are on disk. The 62 frames share 26 sequences with training. That is part of the protocol, and plans and checks say so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from harness.datasets import cvc612, kvasir
from harness.datasets.base import DataOptions, DatasetError, Pair
from harness.datasets.readers.folder_benchmark import AUTOGLUON, FolderBenchmark
from harness.datasets.readers.layouts import CsvLayout, FolderLayout, Layout, Part
from harness.datasets.readers.pairing import Paired
from harness.datasets.readers.splitting import Arranged, Pairs

FURTHER = {"colondb": ("CVC-ColonDB", 380), "etis": ("ETIS-LaribPolypDB", 196), "cvc300": ("CVC-300", 60)}
"""Test split -> its folder in PraNet's bundle, and its images. Their files are numbered as CVC-612's are."""


class _Sets(FolderLayout):
    """``kvasir`` and ``cvc612`` in two folders each, with those of `FURTHER` that are there, whose stems begin with their names."""

    def parts_at(self, root: Path) -> dict[str, Paired]:
        return {
            name: part._replace(
                pairs=tuple(replace(pair, stem=f"{name}_{pair.stem}", prefix=f"{name}_") for pair in part.pairs)
            )
            if name in FURTHER
            else part
            for name, part in super().parts_at(root).items()
        }


def _sets(name: str, **parts: tuple[str, str]) -> Layout:
    further = {
        f"{split}{part}": (f"{bundle}{folder}/images", f"{bundle}{folder}/masks")
        for split, (folder, _) in FURTHER.items()
        for part, bundle in (("", "TestDataset/"), ("+alone", ""))
    }
    folders = {part: Part(images=images, masks=masks) for part, (images, masks) in {**parts, **further}.items()}
    return _Sets(name=name, parts=folders, optional=frozenset(further))


class Polyp(FolderBenchmark):
    """Binary: polyp. Each test set is a split of its own."""

    name = "polyp"
    title = "Polyps (PraNet)"
    class_names = ("background", "polyp")
    metrics = ("dice_mean", "iou_mean", "dice", "iou", "weighted_f", "s_measure", "e_max", "mae")
    selection_metric = "s_measure"
    terms = "research and education"
    source = "Kvasir-SEG/ and CVC-ClinicDB/ in one folder, or PraNet's TrainDataset/ and TestDataset/, or AutoGluon's polyp.zip"
    archives = (f"{AUTOGLUON}/polyp.zip",)
    published_sizes: ClassVar = {"train": 1450, "test": 162}
    folders = ("PraNet", "polyp")
    test_splits = ("kvasir", "cvc612")
    further_tests = tuple(FURTHER)

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        if self.options.split_rule != "default":
            raise DatasetError(f"{self.name} is split by PraNet's lists alone; leave split_rule out")

    def layouts(self) -> tuple[Layout, ...]:
        seg, clinic = ("Kvasir-SEG|kvasir/images", "Kvasir-SEG|kvasir/masks"), "CVC-ClinicDB|CVC-612|cvc612"
        return (
            _sets("original", kvasir=seg, cvc612=(f"{clinic}/Original", f"{clinic}/Ground Truth")),
            _sets("kaggle", kvasir=seg, cvc612=(f"{clinic}/PNG/Original", f"{clinic}/PNG/Ground Truth")),
            _sets(
                "pranet",
                train=("TrainDataset/image|images", "TrainDataset/masks"),
                kvasir=("TestDataset/Kvasir/images", "TestDataset/Kvasir/masks"),
                cvc612=("TestDataset/CVC-ClinicDB/images", "TestDataset/CVC-ClinicDB/masks"),
            ),
            CsvLayout(test={"kvasir": "test_Kvasir.csv", "cvc612": "test_CVC-ClinicDB.csv"}),
        )

    def needed_parts(self) -> tuple[str, ...]:
        return self.test_splits

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        """Both sets, whatever folders they come in, are split by PraNet's lists."""
        pool = [pair for name, pairs in parts.items() if name not in FURTHER for pair in pairs]
        train, val, test, rules = Pairs(), Pairs(), dict[str, Pairs](), list[str]()
        for kind, listed in ((kvasir.Kvasir, kvasir.TEST_LIST), (cvc612.CVC612, cvc612.TEST_LIST)):
            pairs = [pair for pair in pool if kvasir.is_kvasir(pair.stem) is (kind is kvasir.Kvasir)]
            split = kind(self.options).split_by_list(pairs, listed)
            if split is None:
                raise DatasetError(
                    f"{root} has none of PraNet's test images of {kind.title}; its files need their published names"
                )
            train, val, test[kind.name] = train + split.train, val + split.val, split.test["test"]
            rules.append(f"{kind.name}: {split.rule}")
        for name, (_, size) in FURTHER.items():
            if further := parts.get(name):
                test[name] = further
                rules.append(f"{name}: {len(further)}" + f" of {size}" * (len(further) != size))
        return Arranged(train, val, test, "; ".join(rules), "published")

    def group(self, pair: Pair) -> str:
        return f"sequence {cvc612.sequence_of(pair.stem):02d}" if pair.stem.isdigit() else super().group(pair)

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        return super().notes([pair for pair in pairs if not pair.prefix], layout=layout, parts=parts)
