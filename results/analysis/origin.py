"""A plug-in: which benchmark does an image come from? The images of five benchmarks, each labelled with its benchmark.

    sam-peft run --plugin results/analysis/origin.py --study results/analysis/studies/small-classification.yaml

Nothing is copied. The five are in one data root, and each keeps its own splits, so no test image has its like in training. Whole
sequences of CVC-612, both pictures of a lesion of ISIC and all tiles of a road image stay in one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from harness.datasets.base import Benchmark, DataOptions, DatasetError, Pair, Sample, Splits
from harness.datasets.cvc612 import CVC612
from harness.datasets.isic2017 import ISIC2017
from harness.datasets.kvasir import Kvasir
from harness.datasets.leaf import Leaf
from harness.datasets.readers.decoding import read_labelled
from harness.datasets.readers.folder_benchmark import SAMPLE_NOTE, FolderBenchmark
from harness.datasets.road import Road

MEMBERS: tuple[type[FolderBenchmark], ...] = (Kvasir, CVC612, ISIC2017, Leaf, Road)


class ImageOrigin(Benchmark):
    """Five classes, one a benchmark. Split rule ``val-as-test`` is ISIC 2017's, for whoever has no test part of it."""

    name = "origin"
    title = "Origin of an image"
    task: ClassVar[Literal["binary", "multiclass", "classification"]] = "classification"
    num_classes = len(MEMBERS)
    class_names = tuple(member.name for member in MEMBERS)
    metrics = ("accuracy", "nll", "ece")
    selection_metric = "nll"
    terms = "those of kvasir, cvc612, isic2017, leaf and road"
    source = "kvasir, cvc612, isic2017, leaf and road in one data folder; sam-peft data list says where to get each"
    published_sizes: ClassVar = {"all": sum(sum(member.published_sizes.values()) for member in MEMBERS)}

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        plain = replace(self.options, split_rule="default")
        self._members = {member.name: member(self.options if member is ISIC2017 else plain) for member in MEMBERS}

    def sizes_to_expect(self, layout: str) -> Mapping[str, int]:
        return {}  # the five are checked by themselves

    def locate(self, data_root: Path) -> Path:
        for member in self._members.values():
            member.locate(data_root)
        return data_root

    def splits(self, root: Path) -> Splits:
        try:
            parts = {name: member.splits(member.locate(root)) for name, member in self._members.items()}
        except DatasetError as error:  # may say what to set, and that is set for this benchmark
            raise DatasetError(str(error).replace(f".{ISIC2017.name}.", f".{self.name}.")) from error
        pairs: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
        for label, (name, splits) in enumerate(parts.items()):
            for split, of_split in pairs.items():
                images = [(f"{name}/{pair.stem}", pair.image) for pair in splits.parts[split]]
                of_split += [Pair(stem=stem, image=image, mask=image, label=label) for stem, image in images]
        notes = [f"{name} {part.note}" for name, part in parts.items() if part.note]
        generated = all(part.generated for part in parts.values())
        return Splits(
            train=tuple(pairs["train"]),
            val=tuple(pairs["val"]),
            test={"test": tuple(pairs["test"])},
            layout="roots",
            rule="; ".join(f"{name}: {part.rule}" for name, part in parts.items()),
            note=SAMPLE_NOTE if generated else ", ".join(notes),
            generated=generated,
        )

    def group(self, pair: Pair) -> str:
        name, _, stem = pair.stem.partition("/")
        return f"{name}/{self._members[name].group(replace(pair, stem=stem))}"

    def read(self, pair: Pair) -> Sample:
        return read_labelled(pair)
