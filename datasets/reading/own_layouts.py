"""Layouts of folders that nobody packed for a benchmark: two folders of one's own, one folder, a CSV, patterns."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.datasets.base import DatasetError, Pair
from harness.datasets.reading.layouts import CsvLayout, FolderLayout, Layout, Part, resolve_folder, subfolders
from harness.datasets.reading.pairing import (
    IMAGE_EXTENSIONS,
    MASK_EXTENSIONS,
    Paired,
    image_files,
    is_image,
    is_named_as_mask,
    name_key,
    pair_files,
)

IMAGES = "images|image|imgs|img|sat"
MASKS = "masks|mask|labels|label|annotations|gt|map"
SPLITS = {"train": "train|training", "val": "val|valid|validation", "test": "test|testing"}

# Names that mean images and masks beside each other alone: a class may be called x.
ALL_IMAGES = f"{IMAGES}|img_dir|Training_Images|x"
ALL_MASKS = f"1st_manual|{MASKS}|ann_dir|Ground_Truth|y"
"""`resolve_folder` takes the first that is there by its very name: DRIVE's ``mask`` is where the camera looked."""

SPLIT_COLUMNS = ("split", "set", "fold", "partition")
MASK_COLUMN = re.compile(r"mask|label|seg|annot|target|truth|gt", re.IGNORECASE)


def split_of(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for one of its names in `SPLITS`, without case."""
    return next((split for split, names in SPLITS.items() if word.strip().casefold() in names.split("|")), None)


def named_splits(folder: Path, ending: str, names_images: Callable[[Path], object]) -> dict[str, Path]:
    """Split -> its list in ``folder``: ``val.csv``, or where that is not there one with another of its names, such as ``valid.csv``.

    Args:
        ending: ``.csv`` or ``.txt``.
        names_images: whether a file is a list, asked of those with another name: notes and tables are called so too.

    Raises:
        DatasetError: two lists of one split, and neither is called by its very name.
    """
    files = [path for path in sorted(folder.glob(f"*{ending}")) if path.is_file()]
    chosen = {}
    for split in SPLITS:
        lists = [path for path in files if path.stem == split] or [
            path for path in files if split_of(path.stem) == split and names_images(path)
        ]
        if len(lists) > 1:
            raise DatasetError(
                f"{folder} has two lists of the {split} split, {lists[0].name} and {lists[1].name}; move one of them away"
            )
        if lists:
            chosen[split] = lists[0]
    return chosen


@dataclass(frozen=True, kw_only=True)
class OwnFolders(FolderLayout):
    """A folder of images and a folder of masks, whose names may each carry words of their own; GIF and numpy masks too.
    ``spare_images``: images without a mask are left out: the folder serves other tasks too."""

    spare_images: bool = False

    def matches(self, root: Path) -> bool:
        if not super().matches(root):
            return False
        try:
            return any(part.pairs for part in self.parts_at(root).values())
        except DatasetError:  # which says what is wrong with them once this is the layout
            return True

    def read(self, part: Part, images: Path, masks: Path) -> Paired:
        if image_files(images) and (inner := folders_of_both(images, masks)):
            raise DatasetError(
                f"{images} holds images and a folder {inner[0]}/ of more, which {masks} has too; put all of them into one folder each, or "
                "give patterns of all (docs/own-data.md)"
            )
        paired = pair_files(image_files(images), image_files(masks, MASK_EXTENSIONS), bare=True)
        if self.spare_images:
            return Paired(pairs=paired.pairs, unpaired_images=(), unused_masks=paired.unused_masks)
        return paired


def folders_of_both(images: Path, masks: Path) -> list[str]:
    """Names of folders with images in ``images`` that are folders with masks in ``masks``."""
    names = [folder.name for folder in subfolders(images) if image_files(folder)]
    return [name for name in names if (masks / name).is_dir() and image_files(masks / name, MASK_EXTENSIONS)]


@dataclass(frozen=True, kw_only=True)
class OneFolder(Layout):
    """Images and masks in one folder, told by a word in the masks' names or by their format; or the same in folders of splits."""

    name: str = "one folder"
    distinctive: bool = False

    def matches(self, root: Path) -> bool:
        parts = self.parts_at(root) if root.is_dir() else {}
        pairs = sum(len(part.pairs) for part in parts.values())
        return ("all" in parts or "train" in parts) and 2 * pairs > sum(
            len(part.unpaired_images) for part in parts.values()
        )

    def parts_at(self, root: Path) -> dict[str, Paired]:
        folders = {split: resolve_folder(root, names) for split, names in SPLITS.items()}
        return {
            split: paired
            for split, folder in {"all": root, **folders}.items()
            if folder is not None and (paired := _in_one_folder(folder)).pairs
        }


def _in_one_folder(folder: Path) -> Paired:
    files = image_files(folder, MASK_EXTENSIONS)
    masks = [path for path in files if is_named_as_mask(path)]
    if not masks:  # photograph.jpg beside photograph.png
        photographs = {name_key(path.stem) for path in files if path.suffix.lower() in (".jpg", ".jpeg")}
        masks = [
            path
            for path in files
            if name_key(path.stem) in photographs and path.suffix.lower() not in (".jpg", ".jpeg")
        ]
    chosen = set(masks)
    images = [path for path in files if path not in chosen and path.suffix.lower() in IMAGE_EXTENSIONS]
    try:
        return pair_files(images, masks, bare=True)
    except DatasetError:  # two files with one name: whatever this folder is, it is not pairs
        return Paired(pairs=())


@dataclass(frozen=True, kw_only=True)
class OwnCsv(CsvLayout):
    """``train.csv`` with ``val.csv`` and ``test.csv`` as far as they are there (or `SPLITS`' other names), or one CSV of any name for
    all, which may name the split of each row in a column of `SPLIT_COLUMNS`."""

    name: str = "csv"
    mend: ClassVar[str] = "complete the folder, or mend the CSV"
    image_folders = Layout.image_folders

    def matches(self, root: Path) -> bool:
        return bool(self.files(root))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        files = self.files(root)
        parts: dict[str, Paired] = {}
        for part, path in files.items():
            rows = self._rows(path)
            named = [(stem, *row) for stem, row in zip(_stems([image for image, _ in rows]), rows, strict=True)]
            splits = _splits_by_row(path, given="" if len(files) == 1 else part)
            for split in dict.fromkeys(splits) or [part]:
                of_split = (
                    [row for row, its_split in zip(named, splits, strict=True) if its_split == split]
                    if splits
                    else named
                )
                parts[split] = self._paired(path, of_split)
        return parts

    def columns(self, path: Path) -> tuple[str, str]:
        columns = file_columns(path)
        if columns is None:
            raise DatasetError(WITHOUT_COLUMNS.format(path))
        return columns

    def unused_columns(self, root: Path) -> list[str]:
        """Columns called as those of splits are, which say something else, such as the numbers of folds."""
        files = list(self.files(root).values())
        words = _split_columns(files[0]) if len(files) == 1 else {}
        return [name for name, cells in words.items() if not any(_splits_in(cells))]

    def files(self, root: Path) -> dict[str, Path]:
        """Part -> its CSV. Raises DatasetError: two of one split."""
        files = named_splits(root, ".csv", _names_pairs)
        if "train" in files:  # one that names no images is a table of something else, such as of patients
            return files if file_columns(files["train"]) or _names_images(files["train"]) else {}
        others = lists_of_pairs(root)
        return {"all": others[0]} if len(others) == 1 and not files else {}


def lists_of_pairs(root: Path) -> list[Path]:
    """The CSVs right below ``root`` that name files in two columns."""
    return [path for path in sorted(root.glob("*.csv")) if path.is_file() and file_columns(path)]


def _stems(images: Sequence[str]) -> list[str]:
    """The images' names, or where these repeat their paths."""
    stems = [Path(name).stem for name in images]
    if len({name_key(stem) for stem in stems}) == len(stems):
        return stems
    folders = [[part for part in Path(name).parent.parts if part not in ("/", "..")] for name in images]
    return ["_".join([*parts, stem]) for parts, stem in zip(folders, stems, strict=True)]


def _split_columns(path: Path) -> dict[str, list[str]]:
    """Column of `SPLIT_COLUMNS` -> its cells."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else ()) if name and name.strip().casefold() in SPLIT_COLUMNS]
    return {name: [str(row[name] or "") for row in rows] for name in names}


def _splits_in(words: Sequence[str]) -> list[str]:
    """The split that each word says, empty for words of something else. A column of splits may say ``dev`` of validation."""
    return [split_of("val" if word.strip().casefold() == "dev" else word) or "" for word in words]


def _splits_by_row(path: Path, *, given: str) -> list[str]:
    """The split of each row, where a column of `SPLIT_COLUMNS` says it; else nothing.

    Args:
        given: the split that the file's name says where there are several files: it counts, and must not be denied.

    Raises:
        DatasetError: such a column has words of splits and others, or two have words of splits.
    """
    words = _split_columns(path)
    partly = {name: splits for name, cells in words.items() if any(splits := _splits_in(cells))}
    known = {name: splits for name, splits in partly.items() if all(splits)}
    if given:
        denied = next((name for name, splits in known.items() if set(splits) != {given}), None)
        if denied is not None:
            raise DatasetError(
                f"{path} has other splits than {given} in its column {denied}; remove the column, or the files of the other splits"
            )
        return []
    if partly and not known:
        name, splits = next(iter(partly.items()))
        others = dict.fromkeys(word for word, split in zip(words[name], splits, strict=True) if not split)
        raise DatasetError(
            f"{path} has {', '.join(map(repr, list(others)[:4]))} in its column {name}, which are no splits; write train, val or test in "
            "each row, or rename the column"
        )
    if len(known) > 1:
        raise DatasetError(f"{path} names splits in the columns {' and '.join(known)}; rename one of them")
    return next(iter(known.values()), [])


def _names_images(path: Path) -> bool:
    """Whether a cell of the first row is called as an image is, wherever that lies."""
    return any(is_image(Path(cell).name) for cell in _first_row(path).values())


def _names_pairs(path: Path) -> bool:
    """Whether two cells of the first row are files, or called as images and masks are."""
    return (
        sum(
            is_image(Path(cell).name, MASK_EXTENSIONS) or _is_file(path.parent, cell)
            for cell in _first_row(path).values()
        )
        >= 2
    )


def _is_file(folder: Path, cell: str) -> bool:
    try:
        return bool(cell) and "\0" not in cell and (folder / cell).is_file()
    except OSError:  # a text that is longer than names are
        return False


def _first_row(path: Path) -> dict[str, str]:
    """Column -> its first cell, with forward slashes; nothing of what is no CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names, first = list(rows.fieldnames or ()), next(rows, {})
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return {name: str(first.get(name) or "").replace("\\", "/") for name in names if name}


WITHOUT_COLUMNS = "{} has no two columns that name files; call them image and label, with paths relative to the CSV"


def file_columns(path: Path) -> tuple[str, str] | None:
    """The columns of images and of masks: ``image`` and ``label``, or the two whose first cells name files."""
    cells = _first_row(path)
    if {"image", "label"} <= cells.keys():
        return "image", "label"
    files = [name for name, cell in cells.items() if _is_file(path.parent, cell)]
    if len(files) != 2:
        return None
    masks = [name for name in files if MASK_COLUMN.search(name)]
    image, mask = files if len(masks) != 1 or masks[0] == files[1] else reversed(files)
    return image, mask


@dataclass(frozen=True, kw_only=True)
class Patterns(Layout):
    """Paths below the root by two patterns. ``*`` is any part of a name and ``**/`` any folders; in the masks' pattern they are
    what they were in the image's path, or else what makes exactly one file. ``{stem}`` is the image's name, ``{split}`` a
    folder or a word called train, val or test.

    Args:
        images: such as ``*/img/*.jpg``.
        masks: such as ``*/seg/{stem}_m.png``.
    """

    images: str
    masks: str
    name: str = "patterns"
    distinctive: bool = False

    def __post_init__(self) -> None:
        for what, pattern in (("images", self.images), ("masks", self.masks)):
            if not pattern:
                raise DatasetError(
                    f"a pattern of {what} is missing; give both, such as images='img/*.jpg' masks='seg/{{stem}}.png'"
                )
            if pattern.startswith("/") or ".." in pattern.split("/"):
                raise DatasetError(
                    f"the pattern {what}={pattern!r} leads out of the folder; give it relative to the folder"
                )
            if unknown := set(re.findall(r"\{.*?\}", pattern)) - {"{stem}", "{split}"}:
                raise DatasetError(
                    f"the pattern {what}={pattern!r} has {min(unknown)}; known are {{stem}} and {{split}}"
                )
        if not re.search(r"\*|\{stem\}", self.masks):
            raise DatasetError(
                f"the pattern masks={self.masks!r} names one file; say {{stem}} where the image's name stands"
            )

    def matches(self, root: Path) -> bool:
        return True

    def parts_at(self, root: Path) -> dict[str, Paired]:
        files = {_composed(path.relative_to(root).as_posix()): path for path in _walked(root)}
        pattern = _expression(_composed(self.images))
        images = {
            name: match
            for name, path in files.items()
            if is_image(path.name) and (match := pattern.fullmatch(name)) is not None
        }
        if not images:
            some = ", ".join([name for name, path in files.items() if is_image(path.name, MASK_EXTENSIONS)][:3])
            raise DatasetError(
                f"the pattern images={self.images!r} fits no file below {root} ({some or 'which holds no images'}); mend it"
            )
        masks = self._masks(images, files)
        images = {name: match for name, match in images.items() if name not in set(masks.values())}
        stems = [_stem(name, match) for name, match in images.items()]
        if len({name_key(stem) for stem in stems}) < len(stems):
            stems = [
                "_".join(dict.fromkeys(text.strip("/") for text in match.groups() if text)).replace("/", "_")
                for match in images.values()
            ]
        parts: dict[str, list[tuple[str, Path, Path | None]]] = {}
        for (name, match), stem in zip(images.items(), stems, strict=True):
            mask = files[masks[name]] if name in masks else None
            parts.setdefault(_split(match), []).append((stem, files[name], mask))
        return {
            split: Paired(
                pairs=tuple(
                    Pair(stem=stem, image=image, mask=mask) for stem, image, mask in entries if mask is not None
                ),
                unpaired_images=tuple(image for _, image, mask in entries if mask is None),
                unused_masks=(),
            )
            for split, entries in parts.items()
        }

    def _masks(self, images: Mapping[str, re.Match[str]], files: Mapping[str, Path]) -> dict[str, str]:
        """Image -> mask, as far as there is one. Raises DatasetError: several."""
        by_stem: dict[str, list[str]] = {}
        free = _expression(_composed(self.masks))
        for name in files:
            if (match := free.fullmatch(name)) is not None and "stem" in free.groupindex:
                by_stem.setdefault(match["stem"], []).append(name)
        masks = {}
        for name, match in images.items():
            exact = _filled(_composed(self.masks), name, match)
            several = by_stem.get(_stem(name, match), [])
            if exact in files and exact != name:
                masks[name] = exact
            elif len(several) > 1:
                raise DatasetError(
                    f"the pattern masks={self.masks!r} fits {several[0]} and {several[1]} for {name}; make it tell them apart"
                )
            elif several and several[0] != name:
                masks[name] = several[0]
        return masks


def _composed(text: str) -> str:
    """An ä as one character, as in `name_key`."""
    return unicodedata.normalize("NFC", text)


def _walked(folder: Path, *, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Visible files in and below ``folder``, by name. ``above``: folders that it lies in, which a link may lead back to."""
    here = folder.resolve()
    if here in above:
        return
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed ({error.strerror})") from error
    for inner in subfolders(folder):
        yield from _walked(inner, above=above | {here})


def _expression(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression, a group for each of its wildcards."""
    named: set[str] = set()

    def group(token: str) -> str:
        if token in ("*", "**/", "?"):
            return {"*": "([^/]*)", "**/": "((?:[^/]+/)*)", "?": "[^/]"}[token]
        if token[0] != "{":
            return re.escape(token)
        if token[1:-1] in named:
            return f"(?P={token[1:-1]})"
        named.add(token[1:-1])
        return f"(?P<{token[1:-1]}>[^/]+)"

    return re.compile("".join(map(group, re.findall(r"\*\*/|\*|\?|\{\w+\}|[^*?{]+|\{", pattern))))


def _filled(pattern: str, name: str, match: re.Match[str]) -> str:
    """The masks' pattern with what its wildcards stand for in the image ``name``."""
    named = {"{stem}": _stem(name, match), **{f"{{{key}}}": text for key, text in match.groupdict().items()}}
    of_names = set(match.re.groupindex.values())
    stars = iter([match[index] for index in range(1, match.re.groups + 1) if index not in of_names])
    return re.sub(
        r"\*\*/|\*|\{\w+\}",
        lambda wildcard: named.get(wildcard[0], wildcard[0]) if wildcard[0][0] == "{" else next(stars, wildcard[0]),
        pattern,
    )


def _stem(name: str, match: re.Match[str]) -> str:
    return match.groupdict().get("stem") or Path(name).stem


def _split(match: re.Match[str]) -> str:
    word = match.groupdict().get("split")
    if word is None:
        return "all"
    split = split_of(word)
    if split is None:
        raise DatasetError(f"{{split}} is {word!r} in {match[0]}; folders of splits are called train, val and test")
    return split
