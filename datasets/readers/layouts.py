"""On-disk layouts as data: which folders hold which part of a benchmark, and how a folder is recognised."""

from __future__ import annotations

import csv
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.pairing import Paired, image_files, name_key, pair_folders

Keep = Callable[[str], bool]
Probe = Callable[[Path], bool]


def plain_folder_name(name: str) -> str:
    """A folder name without case, spaces, dots, hyphens and underscores: re-packs differ in these."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def subfolders(folder: Path) -> list[Path]:
    """Visible folders right below ``folder``, ordered by name; none where it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError:
        return []


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


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images and masks of one part of a benchmark.

    Args:
        images: image folder, relative to the benchmark's root.
        keep: chooses images by stem where the folder mixes benchmarks.
    """

    images: str
    masks: str
    keep: Keep | None = None


class Layout(ABC):
    """One way in which a benchmark lies on disk.

    Attributes:
        name: the layout's name, as in `Splits.layout` and in ``sam-peft data sample --layout``.
        distinctive: its folders tell the benchmark; otherwise the root's own name must (``images`` beside ``masks`` is
            anybody's).
    """

    name: str
    distinctive: bool

    @abstractmethod
    def matches(self, root: Path) -> bool:
        """Whether ``root`` lies in this layout."""

    @abstractmethod
    def parts_at(self, root: Path) -> dict[str, Paired]:
        """Pairs by part: ``all``, or ``train``, ``val`` and the test splits. Raises DatasetError: files that a list names are
        missing, or two files have one stem."""

    def image_folders(self, root: Path) -> set[Path]:
        """Folders of images that this layout uses."""
        return {pair.image.parent for part in self.parts_at(root).values() for pair in part.pairs}


@dataclass(frozen=True, kw_only=True)
class FolderLayout(Layout):
    """Parts are folders.

    Args:
        name: see `Layout`.
        parts: part name -> folders. Several folders may form one part: name the further ones ``val+easy``,
            ``val+hard``.
        optional: parts that may be absent, as long as one part is there.
        distinctive: see `Layout`.
        probe: a further test of the root, where folder names alone say too little.
    """

    name: str
    parts: Mapping[str, Part]
    optional: frozenset[str] = frozenset()
    distinctive: bool = True
    probe: Probe | None = None

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
            paired = self.read(part, images, masks)
            parts[key] = joined_parts(parts[key], paired) if key in parts else paired
        return parts

    def read(self, part: Part, images: Path, masks: Path) -> Paired:
        """The pairs of two folders."""
        return pair_folders(images, masks, keep=part.keep)

    def image_folders(self, root: Path) -> set[Path]:
        return {folder for part in self.parts.values() if (folder := resolve_folder(root, part.images)) is not None}


def joined_parts(first: Paired, second: Paired) -> Paired:
    """Two folders as one part."""
    return Paired(
        pairs=first.pairs + second.pairs,
        unpaired_images=first.unpaired_images + second.unpaired_images,
        unused_masks=first.unused_masks + second.unused_masks,
    )


@dataclass(frozen=True, kw_only=True)
class CsvLayout(Layout):
    """AutoGluon's archives: ``train.csv``, ``val.csv``, ``test*.csv`` with relative paths in ``image`` and ``label``.

    Args:
        test: test split -> name of its CSV.
        keep: chooses rows of train and val by image stem.
        distinctive: see `Layout`.
    """

    test: Mapping[str, str] = field(default_factory=lambda: {"test": "test.csv"})
    keep: Keep | None = None
    name: str = "autogluon"
    distinctive: bool = False

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

    def image_folders(self, root: Path) -> set[Path]:
        return {(root / image).parent for image, _ in _rows(root / "train.csv")}

    def _read(self, path: Path, *, keep: Keep | None) -> Paired:
        pairs: dict[str, Pair] = {}
        for image_name, mask_name in _rows(path):
            image, mask = path.parent / image_name, path.parent / mask_name
            if keep is not None and not keep(image.stem):
                continue
            for file_path in (image, mask):
                if not file_path.is_file():
                    raise DatasetError(f"{path.name} names {file_path}, which is missing; unpack the archive again")
            pair = Pair(stem=image.stem, image=image, mask=mask)
            if (first := pairs.setdefault(name_key(image.stem), pair)) is not pair:
                raise DatasetError(f"two files with one stem in {path}: {first.image} and {image}; rename one")
        return Paired(pairs=tuple(pairs.values()))


def _rows(path: Path) -> list[tuple[str, str]]:
    """(image, label) of every row, with forward slashes; other columns, such as an unnamed index, do not matter."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image", "label"} <= set(reader.fieldnames or ()):
                raise DatasetError(f"{path} has no columns image and label; its header is {reader.fieldnames}")
            cells = [(row["image"], row["label"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is no readable CSV ({error}); unpack the archive again") from error
    if any(not image or not mask for image, mask in cells):
        raise DatasetError(f"{path} has a row without image or label; unpack the archive again")
    return [(image.replace("\\", "/"), mask.replace("\\", "/")) for image, mask in cells]


def recognise(root: Path, layouts: Iterable[Layout]) -> list[Layout]:
    """The layouts in which ``root`` lies: one, none, or several rivals.

    A CSV layout whose lists point into the folders of another layout is that archive's own index, so the other is no
    rival.
    """
    matching = [layout for layout in layouts if layout.matches(root)]
    lists = [layout for layout in matching if isinstance(layout, CsvLayout)]
    if lists and len(matching) > 1:
        listed = set().union(*(layout.image_folders(root) for layout in lists))
        matching = [layout for layout in matching if layout in lists or not (layout.image_folders(root) & listed)]
    return matching
