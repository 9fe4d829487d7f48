"""On-disk layouts as data: which folders hold which part of a benchmark, and how a folder is recognised."""

from __future__ import annotations

import csv
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.pairing import Paired, image_files, name_key, pair_files
from harness.datasets.readers.splitting import read_text

Keep = Callable[[str], bool]


def plain_folder_name(name: str) -> str:
    """A folder name without case, spaces, dots, hyphens and underscores, in which copies differ."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def subfolders(folder: Path) -> list[Path]:
    """Visible folders right below ``folder``, ordered by name; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:  # which knows folders from files without asking the disk for each
            visible = [entry for entry in entries if not entry.name.startswith((".", "__"))]
            names = sorted(
                each.name for each in visible if (Path(each).is_dir() if each.is_symlink() else each.is_dir())
            )
    except OSError:
        return []
    return [folder / name for name in names]


def resolve_folder(root: Path, relative: str) -> Path | None:
    """The folder ``relative`` below ``root``, or None.

    Names are compared by `plain_folder_name`; ``a|b`` accepts either; ``NAME/NAME``, which unpacking an archive into a folder of
    its own name leaves behind, counts as ``NAME``.
    """
    here = root
    for component in [part for part in relative.split("/") if part]:
        exact = next((here / name for name in component.split("|") if (here / name).is_dir()), None)
        names = {plain_folder_name(name) for name in component.split("|")}
        folder = exact or next((path for path in subfolders(here) if plain_folder_name(path.name) in names), None)
        if folder is None:
            return None
        inner = subfolders(folder)
        here = inner[0] if len(inner) == 1 and inner[0].name == folder.name and not image_files(folder) else folder
    return here


class Part(NamedTuple):
    """Images and masks of one part of a benchmark.

    Args:
        images: image folder, relative to the benchmark's root.
        keep: chooses images by stem where the folder mixes benchmarks.
    """

    images: str
    masks: str
    keep: Keep | None = None


class Layout(ABC):
    """One layout of a benchmark on disk; ``name`` is that in `Splits.layout`. Where a folder has several, those of the highest ``rank``
    count: a list says what folders alone would not."""

    name: str
    rank: ClassVar[int] = 1

    @abstractmethod
    def matches(self, root: Path) -> bool:
        """Whether ``root`` has this layout."""

    @abstractmethod
    def parts_at(self, root: Path) -> dict[str, Paired]:
        """Pairs by part: ``all``, or ``train``, ``val`` and the test splits. Raises DatasetError: files that a list names are
        missing, or two files have one stem."""

    def lists(self, root: Path) -> dict[Path, str]:
        """The lists of pairs that this layout reads -> how, in words."""
        return {}


@dataclass(frozen=True, kw_only=True)
class FolderLayout(Layout):
    """Parts are folders.

    Args:
        name: see `Layout`.
        parts: part name -> folders. Several folders may form one part: name the further ones ``val+easy``,
            ``val+hard``.
        optional: parts that may be absent, as long as one part is there.
        probe: a further test of the root, where folder names alone say too little.
    """

    name: str
    parts: Mapping[str, Part]
    optional: frozenset[str] = frozenset()
    probe: Callable[[Path], bool] | None = None

    def folders(self, root: Path) -> dict[str, tuple[Path, Path]]:
        """Part -> its folders of images and of masks, as far as both are there."""
        found = {name: [resolve_folder(root, of) for of in (p.images, p.masks)] for name, p in self.parts.items()}
        return {name: (images, masks) for name, (images, masks) in found.items() if images and masks}

    def matches(self, root: Path) -> bool:
        there = self.folders(root)
        needed = self.parts.keys() - self.optional <= there.keys()
        return needed and bool(there) and (self.probe is None or self.probe(root))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        parts: dict[str, Paired] = {}
        for name, (images, masks) in self.folders(root).items():
            part = self.parts[name]
            key = name.partition("+")[0]
            paired = pair_files(image_files(images), image_files(masks), keep=part.keep)
            before = parts.get(key, Paired())
            parts[key] = Paired(
                before.pairs + paired.pairs,
                before.unpaired_images + paired.unpaired_images,
                before.unused_masks + paired.unused_masks,
            )
        return parts


@dataclass(frozen=True, kw_only=True)
class CsvLayout(Layout):
    """AutoGluon's archives: ``train.csv``, ``val.csv``, ``test*.csv`` with relative paths in ``image`` and ``label``.

    Args:
        test: test split -> name of its CSV.
        keep: chooses rows of train and val by image stem.
    """

    test: Mapping[str, str] = field(default_factory=lambda: {"test": "test.csv"})
    keep: Keep | None = None
    name: str = "autogluon"
    rank = 2

    def matches(self, root: Path) -> bool:
        return all((root / name).is_file() for name in ("train.csv", *self.test.values()))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        files = {"train": root / "train.csv", "val": root / "val.csv", **{s: root / n for s, n in self.test.items()}}
        parts = {
            part: self._read(path, keep=None if part in self.test else self.keep)
            for part, path in files.items()
            if part != "val" or path.is_file()
        }
        return {name: part for name, part in parts.items() if part.pairs or name != "val"}

    def _read(self, path: Path, *, keep: Keep | None) -> Paired:
        header, *rows = read_csv(path) or [[]]
        if not {"image", "label"} <= set(header):
            raise DatasetError(f"{path} has no columns image and label; its header is {header}")
        image, mask = header.index("image"), header.index("label")
        rows = [row for row in rows if keep is None or len(row) <= image or keep(Path(row[image]).stem)]
        return Paired(pairs=tuple(csv_pairs(path, rows, image, mask)))


def read_csv(path: Path) -> list[list[str]]:
    """Rows with forward slashes, blank lines left out, cells between commas, semicolons or tabs. Raises DatasetError: unreadable."""
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        rows = [*csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))]
    except csv.Error as error:
        raise DatasetError(f"{path} is not a readable CSV file ({error}); restore it") from error
    return [[cell.strip().replace("\\", "/") for cell in row] for row in rows if any(row)]


def distinct_stems(names: Sequence[str]) -> list[str]:
    """Stems of paths; with their folders, as ``FOLDER_NAME``, where two paths share a name."""
    stems = [Path(name).stem for name in names]
    if len(set(map(name_key, stems))) == len(stems):
        return stems
    folders = [[part for part in Path(name).parent.parts if part not in ("/", "..")] for name in names]
    return ["_".join([*parts, stem]) for parts, stem in zip(folders, stems, strict=True)]


def csv_pairs(path: Path, rows: Sequence[Sequence[str]], image: int, mask: int) -> list[Pair]:
    """Pairs of a CSV's rows by their columns. Raises DatasetError: a file is missing, or not named."""
    if any(len(row) <= max(image, mask) or not row[image] or not row[mask] for row in rows):
        raise DatasetError(f"{path} has a row without image or label; complete or remove it")
    stems = distinct_stems([row[image] for row in rows])
    pairs = [
        Pair(stem=stem, image=path.parent / row[image], mask=path.parent / row[mask])
        for stem, row in zip(stems, rows, strict=True)
    ]
    if missing := [file for pair in pairs for file in (pair.image, pair.mask) if not file.is_file()]:
        raise DatasetError(f"{path} names {missing[0]}, which is missing; complete the folder, or correct the CSV")
    return pairs
