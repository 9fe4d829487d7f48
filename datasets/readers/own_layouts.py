"""Layouts of a user's own data: `LAYOUTS` is a table of common ways to store images with masks. A CSV describes any other."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers import pairing, splitting
from harness.datasets.readers.layouts import Layout, csv_pairs, read_csv, resolve_folder, subfolders
from harness.datasets.readers.opening import require_file
from harness.datasets.readers.pairing import MASK_EXTENSIONS, Paired, image_files, indexed, is_image, mask_key, name_key

IMAGES = "images|image|imgs|img|img_dir|sat|Training_Images"
MASKS = "1st_manual|masks|mask|labels|label|annotations|gt|map|ann_dir|Ground_Truth"
"""`resolve_folder` takes the first that is there by its exact name: DRIVE's ``mask`` is the camera's field of view."""
SPLITS = {"train": "train|training", "val": "val|valid|validation|dev", "test": "test|testing"}
MASK_COLUMN = re.compile(r"mask|label|seg|annot|target|truth|gt", re.IGNORECASE)

PairedParts = dict[str, Paired]


_SPLITTING = re.compile(r"(split|k?fold|partition|holdout)s?|(train|val|test)(s|set|data)|validate|unseen")
_BESIDES = re.compile(
    r"(list|set|image|img|mask|label|name|id|file|dataset)s?|data|txt|csv|json|is|my|final|hidden|public|private"
)
_TABLE = re.compile(
    r"(\.(txt|csv|tsv|n?d?jsonl?|ya?ml|xml|toml|ini|md|bak|li?st|xlsx?|ods|np[yz]|pkl|mat|parquet|gz|dat|ids|h5|hdf5))?",
    re.IGNORECASE,
)
"""Names, by their letters alone, of columns and files with splits, and endings of such files."""
_MOST_LISTS = 100
"""Files that are looked into for names of images; labels may be a text file each."""


def split_of(word: str) -> str | None:
    """``train``, ``val`` or ``test`` for one of its names in `SPLITS`, without case."""
    return next((split for split, names in SPLITS.items() if word.strip().casefold() in names.split("|")), None)


def names_a_split(name: str) -> bool:
    """Whether a name says no more than a split, or how data are split: ``test``, ``val_images``, ``train_test_split``, ``TestDataset``."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold())
    naming = [word for word in words if split_of(word) or _SPLITTING.fullmatch(word)]
    return bool(naming) and all(word in naming or _BESIDES.fullmatch(word) for word in words)


def has_splits(path: Path) -> bool:
    """Whether a CSV has a column of splits, right or wrong (`_splits`)."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        return False
    try:
        header, *rows = read_csv(path) or [[]]
    except DatasetError:  # no table
        return False
    try:
        return bool(_splits(path, header, rows, 0))
    except DatasetError:
        return True


def unused_splits(files: Sequence[Path], stems: Collection[str], known: Collection[set[str]]) -> list[Path]:
    """Those of the ``files`` that look like a split: by their name, by a column of splits, or because they list images (`_lists_some`)."""
    called = [path for path in files if names_a_split(path.stem) or has_splits(path)]
    return called + [path for path in files[:_MOST_LISTS] if _lists_some(path, stems, known)]


def _lists_some(path: Path, stems: Collection[str], known: Collection[set[str]]) -> bool:
    """Whether a file gives images their split, or lists some of them: neither all nor one of the sets that are ``known``. ``stems``: of
    all images, as `name_key` writes them. Besides these and words for splits it may hold one word, such as a header."""
    words = splitting.names_in(path)
    named = words.intersection(stems)
    splits = {word for word in words - named if names_a_split(word)}
    is_list = len(words - named - splits) <= min(1, len(named) - 1)
    return is_list and (bool(splits) or (named < set(stems) and named not in known))


def names_pairs(path: Path) -> bool:
    """Whether a row of a table has two image files, existing or not. Raises DatasetError: unreadable."""
    return any(sum(is_image(Path(cell).name, MASK_EXTENSIONS) for cell in row) > 1 for row in read_csv(path)[:2])


def tables_in(folder: Path, *endings: str) -> list[Path]:
    """The files with one of these endings, in whatever case, or with any that tables and lists have; ordered by name, none where there is
    no such folder."""
    listing = sorted(folder.iterdir()) if folder.is_dir() else []
    fitting = [p for p in listing if (p.suffix.lower() in endings if endings else _TABLE.fullmatch(p.suffix))]
    return [path for path in fitting if not path.name.startswith(".") and not path.is_dir()]


class OwnLayout(Layout):
    """A layout of the user's own data. ``parts_at`` gives no pairs of a folder in another layout, and raises DatasetError where the layout
    is this one and something is wrong. ``hint``: what the folder holds, for messages."""

    hint: str

    def matches(self, root: Path) -> bool:
        try:
            return any(part.pairs for part in self.parts_at(root).values())
        except DatasetError:  # reported when this layout is chosen
            return True

    def parts_at(self, root: Path) -> PairedParts:
        """The folder, and its folders of splits, each read alike."""
        parts = {part: self._in(folder) for part, folder in {"all": root, **_of_splits(root, "")}.items()}
        return {part: paired for part, paired in parts.items() if paired.pairs}

    def _in(self, folder: Path) -> Paired:
        return Paired()


def _of_splits(root: Path, inside: str) -> dict[str, Path]:
    """Split -> the folder ``inside`` its folder, as far as these are there. Raises DatasetError: two of one split."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        folders = [resolve_folder(root, f"{name}/{inside}") for name in names.split("|")]
        there = list(dict.fromkeys(folder for folder in folders if folder is not None))
        if len(there) > 1:
            raise DatasetError(f"{there[0]} and {there[1]} both belong to the {split} split; move one away")
        if there:
            found[split] = there[0]
    return found


def pair_own(images: Path, masks: Path) -> Paired:
    """The pairs of two folders by `pair_names`. Raises DatasetError: both have files, and none pair."""
    image_paths, mask_paths = image_files(images), image_files(masks, MASK_EXTENSIONS)
    if not image_paths or not mask_paths:
        return Paired()
    if both := [path.name for path in subfolders(images) if image_files(path) and (masks / path.name).is_dir()]:
        raise DatasetError(f"{images} holds images and a folder {both[0]}/ of more; put all into one, or {LIST_THEM}")
    if (paired := pairing.pair_names(image_paths, mask_paths)).pairs:
        return paired
    names = f"{image_paths[0].name}, {mask_paths[0].name}"
    raise DatasetError(f"{images} and {masks} are there, and no names pair ({names}); rename the files, or {LIST_THEM}")


LIST_THEM = "list the pairs in a CSV with the columns image and label (docs/own-data.md)"


@dataclass(frozen=True, kw_only=True)
class Folders(OwnLayout):
    """A folder of images and one of masks: alone, inside folders of splits, or with these inside. ``spare_images``: images without a
    mask are left out, since the folder serves other tasks too."""

    name: str
    hint: str
    images: str = IMAGES
    masks: str = MASKS
    spare_images: bool = False

    def parts_at(self, root: Path) -> PairedParts:
        images, masks = resolve_folder(root, self.images), resolve_folder(root, self.masks)
        of_images, of_masks = _of_splits(root, self.images), _of_splits(root, self.masks)
        if images and masks:
            inner_images, inner_masks = _of_splits(images, ""), _of_splits(masks, "")
            if inner_images.keys() & inner_masks.keys() and not image_files(images):
                of_images, of_masks = inner_images, inner_masks
            else:
                of_images, of_masks = {"all": images, **of_images}, {"all": masks, **of_masks}
        parts = {part: pair_own(of_images[part], of_masks[part]) for part in of_images if part in of_masks}
        if self.spare_images:
            parts = {part: paired._replace(unpaired_images=()) for part, paired in parts.items()}
        return {part: paired for part, paired in parts.items() if paired.pairs or paired.unpaired_images}


class NnUnet(OwnLayout):
    """``imagesTr/CASE_0000.png`` with ``labelsTr/CASE.png``; ``dataset.json`` names the classes (`harness.datasets.own`)."""

    name = "nnu-net"
    hint = "imagesTr/ with labelsTr/ (nnU-Net)"

    def parts_at(self, root: Path) -> PairedParts:
        parts = {}
        for part, end in (("train", "Tr"), ("test", "Ts")):
            images, masks = root / f"images{end}", root / f"labels{end}"
            if images.is_dir() and masks.is_dir():
                cases = indexed(image_files(images), lambda path: name_key(path.stem).removesuffix("_0000"))
                if several := [path for key, path in cases.items() if key.endswith("_0001")]:
                    raise DatasetError(f"{several[0]} is a second channel; make one RGB image of a case's channels")
                labels = indexed(image_files(masks, MASK_EXTENSIONS), lambda path: name_key(path.stem))
                parts[part] = pairing.paired_by_key(cases, labels)
        return parts if "train" in parts else {}

    @staticmethod
    def untested(root: Path) -> str:
        """What the rule adds where published test images have no labels."""
        images, labels = root / "imagesTs", root / "labelsTs"
        count = len(image_files(images)) if images.is_dir() and not labels.is_dir() else 0
        return f"; {count} images of imagesTs/ have no labels and are not tested" if count else ""


class OneFolder(OwnLayout):
    """Images with masks ``NAME_mask``, or ``NAME.png`` of ``NAME.jpg``, in one folder or in folders of splits."""

    name = "one folder"
    hint = "NAME.jpg with NAME_mask.png or NAME.png"
    rank = 0

    def parts_at(self, root: Path) -> PairedParts:
        parts = super().parts_at(root)
        return parts if parts.keys() & {"all", "train"} else {}

    def _in(self, folder: Path) -> Paired:
        files = image_files(folder, MASK_EXTENSIONS)
        names = {name_key(path.stem) for path in files}
        photographs = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg")]
        keys = {name_key(path.stem) for path in photographs}
        masks = [path for path in files if mask_key(path) != name_key(path.stem) and mask_key(path) in names]
        masks = masks or [path for path in files if name_key(path.stem) in keys and path not in photographs]
        try:
            paired = pairing.pair_files([path for path in files if path not in masks and is_image(path.name)], masks)
        except DatasetError:  # two files with one name: whatever this folder is, it is not pairs
            return Paired()
        return paired if 2 * len(paired.pairs) > len(paired.unpaired_images) else Paired()


class OwnCsv(OwnLayout):
    """``train.csv`` with ``val.csv`` and ``test.csv`` if they are there; ``metadata.csv`` in folders of splits; or one list
    of any name. A single list may have a column ``split``. The columns are ``image`` and ``label``, or the two
    whose cells are files. A first row that names files is not a header."""

    name = "csv"
    hint = "a CSV with the columns image and label"
    rank = 2

    def parts_at(self, root: Path) -> PairedParts:
        tables = self._tables(root)
        inner = [path for path in tables if path.parent != root]
        named: dict[str, Path] = {}
        for path in tables:
            split = split_of(path.parent.name if path in inner else path.stem)
            if split and named.setdefault(split, path) != path:
                raise DatasetError(f"{named[split]} and {path} are both lists of {split}; move one away")
        is_whole = len(tables) == 1 and (not named or has_splits(next(iter(tables))))
        if tables and not is_whole and ("train" not in named or len(named) < len(tables)):
            names = ", ".join(path.name for path in tables)
            raise DatasetError(
                f"{root} has {names}; call lists of splits train.csv, val.csv and test.csv, one of all pairs pairs.csv, move others away"
            )
        named = {"all": next(iter(tables))} if is_whole else named
        parts: PairedParts = {}
        for part, path in named.items():
            header, rows, image, mask = tables[path]
            splits = _splits(path, header, rows, image) if len(named) == 1 else []
            for split in dict.fromkeys(splits) or [part]:
                chosen = [row for row, its in zip(rows, splits or [split] * len(rows), strict=True) if its == split]
                parts[split] = Paired(pairs=tuple(csv_pairs(path, chosen, image, mask)))
        return parts

    def lists(self, root: Path) -> dict[Path, str]:
        return {
            path: f"{path.relative_to(root)} (image: {_called(header, image)}, mask: {_called(header, mask)})"
            for path, (header, _, image, mask) in self._tables(root).items()
        }

    def _tables(self, root: Path) -> dict[Path, tuple[list[str], list[list[str]], int, int]]:
        """The lists in ``root`` and in its folders of splits, as `_table` reads them."""
        folders = _of_splits(root, "").values()
        inner = [path for folder in folders for path in tables_in(folder, ".csv") if path.stem == "metadata"]
        tables = [*tables_in(root, ".csv", ".tsv"), *inner]
        return {path: table for path in tables if (table := _table(path)) is not None}


def _called(header: Sequence[str], column: int) -> str:
    return f"column {header[column]}" if column < len(header) else f"column {column + 1}"


def _table(path: Path) -> tuple[list[str], list[list[str]], int, int] | None:
    """Header, rows with forward slashes, and the columns of images and of masks; None of what has none. Raises DatasetError: a file that
    is named as a split cannot be read, or has no masks."""
    split = split_of(path.stem)
    require_file(path)
    try:
        rows = read_csv(path)
    except DatasetError:
        if names_a_split(path.stem):
            raise
        return None
    has_header = not (rows and any(is_image(Path(cell).name, MASK_EXTENSIONS) for cell in rows[0]))
    header, rows = (rows[0], rows[1:]) if rows and has_header else ([], rows)
    files = [at for at, cell in enumerate(rows[0] if rows else ()) if is_image(Path(cell).name, MASK_EXTENSIONS)]
    if {"image", "label"} <= set(header) and {header.index("image"), header.index("label")} <= set(files):
        return header, rows, header.index("image"), header.index("label")
    there = [at for at in files if (path.parent / rows[0][at]).is_file()]
    if len(there) == 2:
        masks = [at for at in there if at < len(header) and MASK_COLUMN.search(header[at])]
        image, mask = reversed(there) if masks == there[:1] else there
        return header, rows, image, mask
    if split and len(files) == 2:  # `csv_pairs` says which file is missing
        return header, rows, files[0], files[1]
    if files and split:
        raise DatasetError(f"{path} does not have two columns that name files (image and label), relative to it")
    return None


def _splits(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], image: int) -> list[str]:
    """The split of each row by the column that names it, or in ``metadata`` by the first folder of its image; empty without either.
    Raises DatasetError: only some rows name a split, or two columns disagree."""
    columns: dict[
        str, tuple[bool, list[str]]
    ] = {}  # where -> whether its name says that splits are there, and the words
    for at in range(max(map(len, rows), default=0)):
        name, cells = header[at] if at < len(header) else "", [row[at] if at < len(row) else "" for row in rows]
        may_name = name.casefold() in ("set", "subset", "phase", "usage")
        named = names_a_split(name) or (
            may_name and all(re.fullmatch(r"\d|te?|tra?|tr?n|tst|va?", cell) for cell in cells)
        )
        if named or may_name or all(map(split_of, cells)):
            columns[f"its {_called(header, at)}"] = named, cells
    if path.stem == "metadata":
        columns["the folders of its images"] = False, [row[image].partition("/")[0] for row in rows]
    found: dict[str, list[str]] = {}
    for where, (named, words) in columns.items():
        splits = [split_of(word) or "" for word in words]
        if not all(splits) and (any(splits) or named):
            raise DatasetError(
                f"{path} has {words[splits.index('')]!r} in {where}, which is not a split; correct or rename it"
            )
        if splits and all(splits):
            found[where] = splits
    if any(splits != next(iter(found.values())) for splits in found.values()):
        raise DatasetError(f"{path} has different splits in {' and in '.join(found)}; remove one of them")
    return next(iter(found.values()), [])


@dataclass(frozen=True, kw_only=True)
class ClassFolders(Layout):
    """Images with a label: one folder per class, ``CLASS/*.png``, or the same inside folders of splits. A stem is ``CLASS/NAME``.
    ``classes``: in the order of their indices."""

    classes: tuple[str, ...] = ()
    name: str = "class folders"

    def matches(self, root: Path) -> bool:
        return len(self.classes_at(root)) >= 2

    def classes_at(self, root: Path) -> tuple[str, ...]:
        """The folders of classes, in alphabetical order; of a divided data set those of its training split."""
        folder = _of_splits(root, "").get("train", root)
        if resolve_folder(folder, "|".join((IMAGES, MASKS, *SPLITS.values()))) is not None:
            return ()
        return tuple(path.name for path in subfolders(folder) if image_files(path))

    def parts_at(self, root: Path) -> PairedParts:
        of_splits = _of_splits(root, "")
        folders = of_splits if "train" in of_splits else {"all": root}
        return {part: self._read(folder) for part, folder in folders.items()}

    def _read(self, folder: Path) -> Paired:
        if stray := image_files(folder):
            raise DatasetError(f"{stray[0]} is not in a folder of a class and has no label; move it into one")
        pairs: list[Pair] = []
        for path in subfolders(folder):
            images = image_files(path)
            if images and path.name not in self.classes:
                raise DatasetError(f"{path} is not a folder of a class ({', '.join(self.classes)}); rename or move it")
            label = self.classes.index(path.name) if images else 0
            pairs += [Pair(stem=f"{path.name}/{image.stem}", image=image, mask=image, label=label) for image in images]
        return Paired(pairs=tuple(pairs))


LAYOUTS: tuple[OwnLayout, ...] = (
    Folders(name="folders", hint="images/ with masks/, alone or in train/, val/ and test/"),
    Folders(
        name="voc",
        hint="JPEGImages/ with SegmentationClass/ (Pascal VOC)",
        images="JPEGImages",
        masks="SegmentationClass|SegmentationClassPNG",
        spare_images=True
    ),
    NnUnet(), OwnCsv(),
)  # fmt: skip
"""With COCO JSON (`harness.datasets.readers.coco`) and, where nothing else fits, `OneFolder`."""
