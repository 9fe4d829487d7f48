"""A user's own folder as a benchmark, without a line of Python: images, and masks or labels.

The layouts are a table, `harness.datasets.readers.own_layouts`. ``classes.txt`` names the classes of masks that hold indices, one per
line, the background first; for painted masks a colour follows each name. Without it masks are binary, unless COCO or nnU-Net names
classes. Lists (``train.txt``, ``val.txt``, ``test.txt``, also in ``splits/``) split an undivided folder. Splits that are missing are
carved, as for every benchmark.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from harness.datasets.base import BINARY, IGNORE, Benchmark, DataOptions, DatasetError, Pair, Sample
from harness.datasets.readers import coco, decoding, own_layouts, splitting
from harness.datasets.readers.coco import CocoLayout
from harness.datasets.readers.folder_benchmark import CARVED, FolderBenchmark, refuse_shared
from harness.datasets.readers.layouts import Layout, resolve_folder, subfolders
from harness.datasets.readers.opening import open_image
from harness.datasets.readers.pairing import image_files, name_key
from harness.datasets.readers.splitting import Arranged, Pairs, select_listed, split_by_lists

_CLASSES = "classes.txt"
MOST_CLASSES = 255
_LAYOUTS = (*own_layouts.LAYOUTS, CocoLayout(), own_layouts.OneFolder())


class OwnBenchmark(FolderBenchmark):
    """A user's own folder; `own_benchmark` makes a subclass that has a name and classes."""

    own = True
    terms = "your own"
    source = f"a folder with {'; '.join(layout.hint for layout in _LAYOUTS)}; or one folder of images per class (docs/own-data.md)"
    mend = "complete the folder, or remove what does not belong"
    mask_rule = "two levels"
    mask_colour = "any"
    folders = ()
    test_splits = ()

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        try:
            re.compile(self.options.group)
        except re.error as error:
            raise DatasetError(f"the group rule {self.options.group!r} is not a regular expression: {error}") from error
        if self.options.group:
            self.carved_by = f"groups of {self.options.group}"  # type: ignore[misc]

    def layouts(self) -> tuple[Layout, ...]:
        return _LAYOUTS

    def locate(self, data_root: Path) -> Path:
        if not data_root.is_dir():
            raise DatasetError(f"no folder {data_root} for {self.name}; give {self.source}")
        inner = subfolders(data_root)
        below = [data_root, *inner, *(each for folder in inner for each in subfolders(folder))][:400]
        pairs = {root: self._count(root) for root in self.inside(data_root)}
        if not pairs:
            raise DatasetError(
                f"{data_root} is not a data set with a layout of {self.name}; give {self.source}. Unpack archives; save volumes, "
                "arrays and one mask per object as one PNG per image; convert YOLO and LabelMe to COCO, for example with Roboflow"
            )
        root = max(pairs, key=lambda root: pairs[root])
        if len(pairs) > 1:
            listed = ", ".join(f"{root} ({count} pairs)" for root, count in [*pairs.items()][:6])
            raise DatasetError(f"{data_root} holds several data sets: {listed}; give one, such as {self.name}={root}")
        counts = Counter({path: len(image_files(path)) for path in below[1:] if not path.is_relative_to(root)})
        folders = [path for top in root.parents if top.is_relative_to(data_root) for path in (top, top / "splits")]
        above = [path for folder in folders for path in own_layouts.tables_in(folder)]
        if above and self.options.split_rule != CARVED:
            stems = _names(pair for part in self.layout_at(root).parts_at(root).values() for pair in part.pairs)
            if called := own_layouts.unused_splits(above, stems, ()):
                raise DatasetError(f"{called[0]} looks like a split and lies above {root}; move it there, or away")
        if max(counts.values(), default=0) > pairs[root]:
            seen = ", ".join(f"{path.relative_to(data_root)}/ ({n})" for path, n in counts.most_common(6) if n)
            raise DatasetError(
                f"{root} has {pairs[root]} pairs, and there are further images that would not be read: {seen}; give "
                f"{self.name}={root} if that is intended, or call the others' folders images/ and masks/, or {own_layouts.LIST_THEM}"
            )
        return root

    def _count(self, root: Path) -> int:
        try:
            return sum(len(part.pairs) for part in self.layout_at(root).parts_at(root).values())
        except DatasetError:
            return 0

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        more = layout.untested(root) if isinstance(layout, own_layouts.NnUnet) else ""
        if self.options.split_rule == CARVED:
            arranged = super().arrange(parts, root=root, layout=layout)
            return arranged._replace(rule=f"{arranged.rule}{more}", lists=layout.lists(root))
        if "all" in parts and len(parts) > 1:
            if "train" in parts:
                aside = len(parts["all"])
                raise DatasetError(f"{root} has pairs in train/ and also {aside}; move these into it, or away")
            parts = {"train" if name == "all" else name: pairs for name, pairs in parts.items()}
        lists = _lists(root) if set(parts) in ({"all"}, {"train"}) else {}
        used = {**layout.lists(root), **{path: str(path.relative_to(root)) for path in lists.values()}}
        self._refuse_unused(root, parts, lists=used)
        arranged = self._arrange(parts, lists, root=root, layout=layout)
        return arranged._replace(rule=f"{arranged.rule}{more}", lists=used)

    def _refuse_unused(self, root: Path, parts: Mapping[str, Pairs], *, lists: Collection[Path]) -> None:
        """Raise DatasetError if a file or a folder looks like a split but is not used, so that no given split is silently replaced. A file
        does by its name, by a column of splits, or if it lists some of the images other than the union of used lists (``trainval.txt``);
        a folder by its name, or by further pairs where no test split is given. ``lists``: files that say which pairs there are."""
        pairs = [pair for each in parts.values() for pair in each]
        read = {*lists, *(pair.mask for pair in pairs)}
        holding = {parent for pair in pairs for parent in (*pair.image.parents, *pair.mask.parents)}
        here = [root, *subfolders(root)]
        here += [] if lists else [path for folder in here[1:] for path in subfolders(folder)]
        folders = [path for folder in here for path in subfolders(folder) if own_layouts.names_a_split(path.name)]
        given = {*parts, *map(own_layouts.split_of, (path.stem for path in lists))}
        if "test" not in given:
            images, masks = (path.parent.parent for path in (pairs[0].image, pairs[0].mask))
            folders += [path for path in subfolders(images) if images != masks and (masks / path.name).is_dir()]
            folders += filter(self.recognised, subfolders(root))
        if given <= {"all", None}:  # one list of all: folders of splits that hold pairs are not used as such
            holding = {folder for folder in holding if own_layouts.split_of(folder.name) in (None, "train")}
        together = [set(map(name_key, splitting.read_list(path))) for path in lists if path.suffix.lower() == ".txt"]
        known = [one | other for one, other in itertools.combinations_with_replacement(together, 2)]
        files = [path for folder in here for path in own_layouts.tables_in(folder) if path not in read]
        called = own_layouts.unused_splits(files, _names(pairs), known)
        called += [p for p in folders if p not in holding and any(map(image_files, [p, *subfolders(p)]))]
        if called:
            raise DatasetError(
                f"{called[0]} looks like a split and is not used; complete or correct it, move it away, or carve test and validation "
                f"images with --set benchmarks.{self.name}.split_rule={CARVED} (data check: --split-rule {CARVED})"
            )

    def _arrange(
        self, parts: Mapping[str, Pairs], lists: Mapping[str, Path], *, root: Path, layout: Layout
    ) -> Arranged:
        """Given splits are kept; the rest is carved. ``lists``: split -> its list, of an undivided folder."""
        more = ""
        if lists:
            (every,) = parts.values()
            if len(lists) == len(own_layouts.SPLITS):
                return split_by_lists(every, lists)
            # Some of them: VOC does not publish the masks of its test images.
            parts = {split: select_listed(every, path) for split, path in lists.items()}
            refuse_shared(parts, root)
            named = {pair.stem for pairs in parts.values() for pair in pairs}
            if "train" in parts:
                more = splitting.in_no_list(every, [*named])
            else:
                parts["train"] = tuple(pair for pair in every if pair.stem not in named)
        parts = {"all": parts["train"]} if set(parts) == {"train"} else parts
        if "all" in parts or "test" in parts:
            arranged = super().arrange(parts, root=root, layout=layout)
            return arranged._replace(rule=f"{arranged.rule}{more}")
        seed, count = self.options.split_seed, splitting.share(len(parts["train"]), self.test_fraction)
        train, tested = splitting.carve(parts["train"], count=count, seed=seed, group=self.group)
        rule = (
            f"given val; test carved ({self.options.seed_in_words}, {len(tested)} of train by {self.carved_by}){more}"
        )
        return Arranged(train, parts["val"], {"test": tested}, rule, "carved")

    def group(self, pair: Pair) -> str:
        """What the first parentheses of the regular expression `DataOptions.group` matches in an image's name, or its whole match."""
        if not self.options.group:
            return super().group(pair)
        name = pair.stem.removeprefix(pair.prefix)
        match = re.search(self.options.group, name) or re.search(self.options.group, pair.stem)
        if match is None:
            rule = f"the group rule {self.options.group!r} fits no part of the name {name!r}"
            raise DatasetError(f"{self.name}: {rule}; --set benchmarks.{self.name}.group=REGEX")
        return name_key(match[1] if match.re.groups else match[0])

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        return []

    def mask_of(self, pair: Pair) -> decoding.Array:
        if pair.entry:
            return coco.mask_of(pair.mask, pair.entry, classes=self.class_names, category=self.options.category)
        return super().mask_of(pair)

    def decode_mask(self, path: Path) -> decoding.Array:
        mask = self._decoded(path)
        if not self.options.invert:
            return mask
        if self.task != "binary":
            raise DatasetError(
                f"invert=true swaps the classes of binary masks, and {path} has {self.num_classes}; leave it out"
            )
        return np.where(mask == IGNORE, mask, 1 - mask)

    def _decoded(self, path: Path) -> decoding.Array:
        labels = nnunet_labels(path.parent.parent) if path.parent.name in ("labelsTr", "labelsTs") else {}
        ignored = labels.get(_IGNORED, IGNORE)
        if colours := decoding.colours_of(self.class_names):
            return decoding.read_colours(path, colours)
        named = _IGNORED in labels or self.class_names != BINARY
        try:
            # A binary mask that holds 1 and an area to ignore, such as VOC's borders, holds indices too.
            if named or decoding.object_values(path, num_classes=256) == {1, ignored}:
                mask = decoding.read_indices(path, num_classes=256)
            else:
                mask = super().decode_mask(path)
        except DatasetError as error:
            open_image(path)  # a damaged file raises its own error
            raise DatasetError(f"{error}; {_EXPLAINED[self.task]}") from error
        mask = np.where(mask == ignored, np.uint8(IGNORE), mask)
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORE)]
        if wrong.size:
            known = f"there are {self.num_classes} classes, so 0 to {self.num_classes - 1} (255 is ignored)"
            known += "; if grey levels stand for classes, write them after each name in classes.txt, such as crop 128,128,128"
            raise DatasetError(f"{path} has the class indices {', '.join(map(str, np.unique(wrong)[:8]))}, and {known}")
        return mask


_EXPLAINED = {
    "binary": "masks are binary unless there is a classes.txt (0 and 255, 0 and 1, or black and one colour); for several classes "
    "name them there, one per line, the background first; if masks are painted, each with its colour, such as crop 0,255,0 (grey levels: "
    "crop 128,128,128), and without colours if they hold one index per pixel",
    "multiclass": "masks of several classes hold one index per pixel (grey or palette PNG), or the colours that classes.txt gives after "
    "each name, such as crop 0,255,0",
}


def _names(pairs: Iterable[Pair]) -> set[str]:
    return {name_key(pair.stem.removeprefix(pair.prefix)) for pair in pairs}


_OF_LISTS = ("", "splits", "ImageSets/Segmentation")
"""Folders in which lists of splits are read."""


def _lists(root: Path) -> dict[str, Path]:
    """Split -> its list, a text file named after it. Raises DatasetError: two lists of one split, or lists in two folders."""
    lists: dict[str, Path] = {}
    for path in (path for folder in _OF_LISTS for path in own_layouts.tables_in(root / folder, ".txt")):
        split = own_layouts.split_of(path.stem)
        if split and (other := lists.setdefault(split, path)) != path:
            raise DatasetError(f"{other} and {path} are both lists of {split}; move one away")
    if len({path.parent for path in lists.values()}) > 1:
        raise DatasetError(f"{' and '.join(map(str, lists.values()))} are lists in two folders; put them into one")
    return lists


class OwnLabels(OwnBenchmark):
    """A user's own folder with one folder of images per class; `own_benchmark` makes a subclass that has a name and classes."""

    task: ClassVar[Literal["binary", "multiclass", "classification"]] = "classification"
    class_names: ClassVar[tuple[str, ...]] = ()
    metrics = ("accuracy", "nll", "ece")
    selection_metric = "nll"
    source = "one folder of images per class, or train/, val/ and test/ that hold them (docs/decoders.md)"

    def layouts(self) -> tuple[Layout, ...]:
        return (own_layouts.ClassFolders(classes=self.class_names),)

    def read(self, pair: Pair) -> Sample:
        return decoding.read_labelled(pair)


def own_benchmark(name: str, classes: Sequence[str], base: type[OwnBenchmark] = OwnBenchmark) -> type[OwnBenchmark]:
    """A benchmark class for a user's own folder. ``classes``: the background first, and two make it binary; for `OwnLabels` the names of
    the folders, in the order of their indices."""
    described = {"name": name, "title": name, "num_classes": len(classes), "class_names": tuple(classes)}
    if base is OwnBenchmark:
        binary = len(classes) == 2
        described |= {
            "task": "binary" if binary else "multiclass",
            "metrics": ("s_measure", "iou", "dice") if binary else ("miou", "accuracy"),
            "selection_metric": "iou" if binary else "miou",
        }
    return type("Own", (base,), described)


_IGNORED = "ignore"
"""nnU-Net's label whose pixels are neither trained on nor scored."""


@lru_cache(maxsize=64)
def nnunet_labels(root: Path) -> dict[str, int]:
    """The labels of nnU-Net's ``dataset.json``, name -> index; empty without such a file.
    Raises DatasetError: it names no labels, or does not number them from 0."""
    path = root / "dataset.json"
    try:
        labels = coco.parse_json(path.read_bytes())["labels"].items() if path.is_file() else ()
        named = {str(name): int(index) for name, index in labels}
        if broken := [index for _, index in labels if int(index) != float(index)]:
            raise ValueError(f"{broken[0]} is not a whole number")
        if sorted(named.values()) != list(range(len(named))):
            raise ValueError(f"numbered {sorted(named.values())}, not from 0")
        if named and next(name for name, index in named.items() if index == 0).casefold() != "background":
            raise ValueError("0 is not the background, which nnU-Net requires")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{path} names no classes under labels ({error}); correct it, or write {_CLASSES}"
        ) from error
    return dict(sorted(named.items(), key=lambda entry: entry[1]))


def read_classes(path: Path) -> tuple[str, ...]:
    """Names, one per line, blank lines left out, each with its colour (``crop 0,255,0``) where masks are painted. Raises DatasetError:
    unreadable, fewer than two, too many, or one twice."""
    lines = splitting.read_text(path).splitlines()
    names = _checked(tuple(" ".join(line.split()) for line in lines if line.strip()), path)
    decoding.colours_of(names)
    return names


def _checked(names: tuple[str, ...], where: Path) -> tuple[str, ...]:
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DatasetError(f"{where} names {len(names)} classes; name 2 to {MOST_CLASSES}, the background first")
    if len(set(names)) < len(names) or not all(name.isprintable() and len(name) <= 60 for name in names):
        raise DatasetError(f"{where}: a class is named twice, or its name is too long or cannot be printed; rename it")
    return names


def any_folder(name: str, folder: Path, options: DataOptions | None = None) -> tuple[type[Benchmark], Path]:
    """The class and the root of the data set in ``folder``: with masks where it has any, else with labels.

    Raises:
        DatasetError: the folder holds no data set, or several, or its classes are wrong, or an option is not for such data.
    """
    benchmark = own_benchmark(name, BINARY)(options)
    if not benchmark.inside(folder) and (labelled := OwnLabels().inside(folder)):
        root, layout, taken = _labelled_root(name, folder, labelled), own_layouts.ClassFolders.name, ""
        classes = _checked(own_layouts.ClassFolders().classes_at(root), root)
        made = own_benchmark(name, classes, OwnLabels)
    else:
        root = benchmark.locate(folder)
        kind = benchmark.layout_at(root)
        layout, taken = kind.name, "category" if isinstance(kind, CocoLayout) else "invert"
        made = own_benchmark(name, _classes_of_masks(root, folder, kind, benchmark.options.category))
    for option, given in (("category", benchmark.options.category), ("invert", benchmark.options.invert is not None)):
        if given and option != taken:
            what = {"category": "COCO files", "invert": "binary mask images"}[option]
            raise DatasetError(f"{option} applies to {what}, and {root} has the layout {layout!r}; leave it out")
    return made, root


def _labelled_root(name: str, folder: Path, labelled: Sequence[Path]) -> Path:
    """The folder of folders of classes. Raises DatasetError: several, or there are images and masks that could not be paired."""
    if all(resolve_folder(folder, names) for names in (own_layouts.IMAGES, own_layouts.MASKS)):  # one per patient, say
        raise DatasetError(
            f"{folder} has images and masks in subfolders; put each kind into one, one mask per image, or {own_layouts.LIST_THEM}"
        )
    for path in own_layouts.tables_in(labelled[0], ".csv", ".tsv"):
        if own_layouts.names_pairs(path):
            raise DatasetError(f"{path} names images and masks that are not there; correct its paths, or move it away")
    if len(labelled) > 1:
        listed = ", ".join(map(str, labelled))
        raise DatasetError(f"{folder} holds several data sets: {listed}; give one of them as {name}=DIR")
    return labelled[0]


def _classes_of_masks(root: Path, folder: Path, layout: Layout, category: str) -> tuple[str, ...]:
    """By COCO's categories, ``classes.txt`` or nnU-Net's labels; else two."""
    if isinstance(layout, CocoLayout):
        return _checked(layout.classes(root, category), root)
    for path in (root / _CLASSES, folder / _CLASSES):
        if path.exists():
            return read_classes(path)
    labels = nnunet_labels(root) if isinstance(layout, own_layouts.NnUnet) else {}
    classes = tuple(label for label in labels if label != _IGNORED)
    return _checked(classes, root / "dataset.json") if labels else BINARY
