"""Anybody's folder as a benchmark, without a line of Python: images, masks, and what a few files beside them say.

Layouts: ``images/`` beside ``masks/``; the same inside ``train/``, ``val/``, ``test/``, or these inside the two; CSV files
with the columns ``image`` and ``label``. ``classes.txt`` names the classes of masks that hold indices, one a line, the
background first; without it masks are binary. Lists (``train.txt``, ``val.txt``, ``test.txt``, also in ``splits/``) split
an undivided folder; otherwise what is missing is carved, as for every benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.datasets.base import IGNORE, Benchmark, DataOptions, DatasetError, Pair
from harness.datasets.reading import decoding, splitting
from harness.datasets.reading.folder_benchmark import FolderBenchmark
from harness.datasets.reading.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder
from harness.datasets.reading.lists import Arranged, Pairs, split_by_lists
from harness.datasets.reading.pairing import Paired, image_files

BINARY = ("background", "foreground")
CLASSES = "classes.txt"
MOST_CLASSES = 255

IMAGES = "images|image|imgs|img|sat"
MASKS = "masks|mask|labels|label|annotations|gt|map"
SPLITS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}


class OwnBenchmark(FolderBenchmark):
    """A folder of one's own; `own_benchmark` makes a class of it that has a name and classes."""

    terms = "your own"
    source = (
        "a folder with images/ and masks/, with train/, val/ and test/ that hold them, or a CSV with the columns image and "
        "label (docs/own-data.md); or a folder of images a class (docs/classification.md)"
    )
    mend = "complete the folder, or remove what does not belong"
    whose_splits = "given"
    folders = ()

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        try:
            re.compile(self.options.group)
        except re.error as error:
            raise DatasetError(f"the group rule {self.options.group!r} is no regular expression: {error}") from error
        if self.options.group:
            self.carved_by = f"groups of {self.options.group}"  # type: ignore[misc]

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """By name and classes: the class itself is in no module where another process could find it."""
        return _rebuilt, (self.name, self.class_names, self.options)

    def layouts(self) -> tuple[Layout, ...]:
        inside = {split: Part(images=f"{names}/{IMAGES}", masks=f"{names}/{MASKS}") for split, names in SPLITS.items()}
        outside = {split: Part(images=f"{IMAGES}/{names}", masks=f"{MASKS}/{names}") for split, names in SPLITS.items()}
        return (
            FolderLayout(name="folder", parts={"all": Part(images=IMAGES, masks=MASKS)}, probe=_undivided),
            FolderLayout(name="folders", parts=inside, optional=frozenset({"val", "test"})),
            FolderLayout(name="folders", parts=outside, optional=frozenset({"val", "test"})),
            OwnCsvLayout(),
        )

    def locate(self, data_root: Path) -> Path:
        if not data_root.is_dir():
            raise DatasetError(f"no folder {data_root} for {self.name}; give {self.source}")
        found = self.inside(data_root)
        if not found:
            raise DatasetError(f"{data_root} is no data set that {self.name} could be; give {self.source}")
        if len(found) > 1:
            raise DatasetError(
                f"{data_root} holds several data sets: {', '.join(map(str, found))}; give one of them as {self.name}=DIR"
            )
        return found[0]

    def needed_parts(self) -> tuple[str, ...]:
        return ()  # what a folder of one's own must have, its layouts say

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if set(parts) == {"train"}:
            parts = {"all": parts["train"]}
        listed = next((folder for folder in (root / "splits", root) if (folder / "train.txt").is_file()), None)
        if "all" in parts and listed is not None:
            return split_by_lists(parts["all"], listed)
        if "all" in parts or "test" in parts:
            return super().arrange(parts, root=root, layout=layout)
        seed, count = self.options.split_seed, splitting.share(len(parts["train"]), self.test_fraction)
        train, tested = splitting.carve(parts["train"], count=count, seed=seed, group=self.group)
        rule = f"given val; test carved (seed {seed}, {len(tested)} of train by {self.carved_by})"
        return train, parts["val"], {"test": tested}, rule

    def group(self, pair: Pair) -> str:
        """By `DataOptions.group`: what its first bracket matches in the stem, or all that it matches."""
        if not self.options.group:
            return super().group(pair)
        found = re.search(self.options.group, pair.stem)
        if found is None:
            raise DatasetError(
                f"{self.name}: the group rule {self.options.group!r} fits no part of the name {pair.stem!r}; "
                f"--set benchmarks.{self.name}.group=REGEX"
            )
        return (found[1] if found.re.groups else found[0]).casefold()

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        return []

    def decode_mask(self, path: Path) -> decoding.Array:
        try:
            if self.task == "binary":
                return decoding.read_binary(path, only_255=self.options.mask_255_only)
            mask = decoding.read_indices(path, num_classes=256)
        except DatasetError as error:
            raise DatasetError(f"{error}; {self._explanation()}") from error
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORE)]
        if wrong.size:
            values = ", ".join(map(str, np.unique(wrong)[:8]))
            raise DatasetError(
                f"{path} has the class indices {values}, and {CLASSES} names {self.num_classes} classes, so 0 to "
                f"{self.num_classes - 1} (255 is ignored); complete {CLASSES}, or convert the masks"
            )
        return mask

    def _explanation(self) -> str:
        if self.task == "binary":
            return (
                "masks are binary as long as there is no classes.txt (0 and 255, 0 and 1, or a palette of black and one "
                "colour); for several classes name them there, one a line, the background first"
            )
        return "masks of several classes hold one index a pixel (grey or palette PNG), not colours; convert them"


def own_benchmark(name: str, class_names: Sequence[str]) -> type[Benchmark]:
    """A benchmark class for a folder of one's own.

    Args:
        name: as it is called everywhere.
        class_names: the background first; two make it binary.
    """
    binary = len(class_names) == 2
    described = {
        "name": name,
        "title": name,
        "task": "binary" if binary else "multiclass",
        "num_classes": len(class_names),
        "class_names": tuple(class_names),
        "metrics": ("s_measure", "iou", "dice") if binary else ("miou", "accuracy"),
        "selection_metric": "iou" if binary else "miou",
    }
    return type("Own", (OwnBenchmark,), described)


def _rebuilt(name: str, class_names: Sequence[str], options: DataOptions) -> Benchmark:
    return own_benchmark(name, class_names)(options)


def own_folder(name: str, folder: Path) -> tuple[type[Benchmark], Path]:
    """The class and the root of the data set in ``folder``.

    Raises:
        DatasetError: there is none, or its classes.txt is wrong.
    """
    root = own_benchmark(name, BINARY)().locate(folder)
    lists = [path for path in dict.fromkeys((root / CLASSES, folder / CLASSES)) if path.is_file()]
    return own_benchmark(name, read_classes(lists[0]) if lists else BINARY), root


def read_classes(path: Path) -> tuple[str, ...]:
    """Names, one a line, blank lines left out.

    Raises:
        DatasetError: unreadable, fewer than two, too many, or one twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no readable list ({error})") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DatasetError(
            f"{path} names {len(names)} classes; name 2 to {MOST_CLASSES}, one a line, the background first"
        )
    if len(set(names)) < len(names) or not all(name.isprintable() and len(name) <= 60 for name in names):
        raise DatasetError(f"{path}: a class is named twice, or its name is too long or cannot be printed")
    return names


def _undivided(root: Path) -> bool:
    images = resolve_folder(root, IMAGES)
    return images is not None and bool(image_files(images))


@dataclass(frozen=True, kw_only=True)
class OwnCsvLayout(CsvLayout):
    """``train.csv`` with ``val.csv`` and ``test.csv`` as far as they are there, or one CSV of any name for all."""

    name: str = "csv"
    lists: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def matches(self, root: Path) -> bool:
        return bool(self._files(root))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        return {part: self._read(path, keep=None) for part, path in self._files(root).items()}

    def image_folders(self, root: Path) -> set[Path]:
        return {pair.image.parent for part in self.parts_at(root).values() for pair in part.pairs}

    def _files(self, root: Path) -> dict[str, Path]:
        found = {split: root / f"{split}.csv" for split in self.lists if (root / f"{split}.csv").is_file()}
        if "train" in found:
            return found
        others = [path for path in sorted(root.glob("*.csv")) if path.is_file() and _has_columns(path)]
        return {"all": others[0]} if len(others) == 1 and not found else {}


def _has_columns(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = [cell.strip().strip('"') for cell in file.readline(10_000).split(",")]
    except (OSError, UnicodeDecodeError):
        return False
    return {"image", "label"} <= set(header)
