"""Anybody's folder as a benchmark, without a line of Python: images, masks, and what a few files beside them say.

Layouts: ``images/`` beside ``masks/`` under these or other usual names; the same inside ``train/``, ``val/``, ``test/``, or
these inside the two; VOC's and nnU-Net's folders; pairs in one folder; CSV files; COCO JSON; or two patterns.
``classes.txt`` names the classes of masks that hold indices, one a line, the background first; without it masks are
binary, unless COCO or nnU-Net name classes. Lists (``train.txt``, ``val.txt``, ``test.txt``, also in ``splits/``) split an
undivided folder; otherwise what is missing is carved, as for every benchmark.

Images with one label each lie in ``train/CLASS/*.png``, or in ``CLASS/*.png`` to be split by the harness's rule. The folders'
names are the classes, in alphabetical order, as far as the training split has them; ``val/`` and ``test/`` are kept where they
are given.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from harness.datasets.base import IGNORE, Benchmark, DataOptions, DatasetError, Pair, Sample
from harness.datasets.reading import coco, decoding, splitting
from harness.datasets.reading.coco import CocoLayout
from harness.datasets.reading.folder_benchmark import CARVED, FolderBenchmark
from harness.datasets.reading.hugging_face import LEFT_OUT, plain_folder
from harness.datasets.reading.labels import ClassFolders, read_labelled
from harness.datasets.reading.layouts import Layout, Part, recognise, resolve_folder, subfolders
from harness.datasets.reading.opening import open_image, upright
from harness.datasets.reading.own_layouts import (
    ALL_IMAGES,
    ALL_MASKS,
    IMAGES,
    MASKS,
    SPLITS,
    WITHOUT_COLUMNS,
    OneFolder,
    OwnCsv,
    OwnFolders,
    Patterns,
    folders_of_both,
    lists_of_pairs,
    named_splits,
    split_of,
)
from harness.datasets.reading.pairing import MASK_EXTENSIONS, bare_key, image_files, name_key
from harness.datasets.reading.splitting import Arranged, Pairs, read_list, select, split_by_lists

_MOST_FOLDERS, _MOST_TOLD = 40, 6
BINARY = ("background", "foreground")
CLASSES = "classes.txt"
MOST_CLASSES = 255


GROUP_SECONDS = 2.0
"""For the group of one name, which takes microseconds; a repetition in a repetition may take years."""


class OwnBenchmark(FolderBenchmark):
    """A folder of one's own; `own_benchmark` makes a class of it that has a name and classes."""

    terms = "your own"
    source = (
        "a folder with images/ and masks/, with train/, val/ and test/ that hold them, a CSV with the columns image and "
        "label, a COCO JSON, or patterns of its files (docs/own-data.md); or a folder of images a class (docs/classification.md)"
    )
    mend = "complete the folder, or remove what does not belong"
    whose_splits = "given"
    mask_colour = "any"
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
        """Pickled as name and classes: the class is made at run time, so another process finds it in no module."""
        return _rebuilt, (own_benchmark, self.name, self.class_names, self.options)

    def layouts(self) -> tuple[Layout, ...]:
        if self.options.images or self.options.masks:
            return (Patterns(images=self.options.images, masks=self.options.masks),)
        images, masks, rest = ALL_IMAGES, ALL_MASKS, frozenset({"val", "test"})
        inside = {split: Part(images=f"{names}/{images}", masks=f"{names}/{masks}") for split, names in SPLITS.items()}
        outside = {split: Part(images=f"{images}/{names}", masks=f"{masks}/{names}") for split, names in SPLITS.items()}
        undivided = {"all": Part(images=images, masks=masks), "val": inside["val"], "test": inside["test"]}
        voc = Part(images="JPEGImages", masks="SegmentationClass|SegmentationClassPNG")
        nnunet = {
            part: Part(images=f"images{end}", masks=f"labels{end}") for part, end in (("train", "Tr"), ("test", "Ts"))
        }
        return (
            OwnFolders(name="folder", parts=undivided, optional=rest, probe=_undivided),
            OwnFolders(name="folders", parts=inside, optional=rest),
            OwnFolders(name="folders", parts=outside, optional=rest),
            OwnFolders(name="voc", parts={"all": voc}, spare_images=True),
            OwnFolders(name="nnu-net", parts=nnunet, optional=rest),
            OwnCsv(),
            CocoLayout(splits=SPLITS),
            OneFolder(),
        )

    def recognised(self, root: Path) -> list[Layout]:
        layouts = super().recognised(root)
        return [layout for layout in layouts if not isinstance(layout, OneFolder)] or layouts

    def locate(self, data_root: Path) -> Path:
        if not data_root.is_dir():
            raise DatasetError(f"no folder {data_root} for {self.name}; give {self.source}")
        roots = self.inside(data_root)
        if not roots:
            offer = _unused(data_root) or shared_names(data_root, self.name) or self._unpaired(data_root)
            offer = offer or _no_columns(data_root)
            raise DatasetError(
                f"{data_root} is no data set that {self.name} could be; {offer or f'give {self.source}'}{_seen(data_root)}"
            )
        if len(roots) > 1:
            raise DatasetError(
                f"{data_root} holds several data sets: {', '.join(map(str, roots))}; give one of them as {self.name}=DIR, or "
                f"patterns of the files of all ({_setting(self.name, '*/images/*', '*/masks/{stem}.png')})"
            )
        return roots[0]

    def _unpaired(self, root: Path) -> str:
        """A hint for a message: images/ and masks/ are there, and no name of one is one of the other; empty where they are not."""
        folders = [root / "images", root / "masks"]
        files = [image_files(folder, MASK_EXTENSIONS) for folder in folders if folder.is_dir()]
        if len(files) < len(folders) or not all(files):
            return ""
        first, second = (min(found).relative_to(root) for found in files)
        asked = _setting(self.name, "images/*", f"masks/PREFIX_{{stem}}{second.suffix}")
        return f"images/ and masks/ are there, but no names pair ({first}, {second}); rename the files, or say how: {asked}"

    def needed_parts(self) -> tuple[str, ...]:
        return () if self.options.split_rule == CARVED else ("train",)

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        train, val, test, rule = self._arranged(parts, root=root, layout=layout)
        used = layout.files(root).values() if isinstance(layout, OwnCsv) else ()
        silent = isinstance(layout, (Patterns, ClassFolders))
        unused = [] if silent else [path.name for path in lists_of_pairs(root) if path not in used]
        if unused:
            rule += f"; not used: {_CALLED.format(', '.join(unused))}"
        if isinstance(layout, OwnCsv) and (columns := layout.unused_columns(root)):
            rule += f"; not used, as it names no splits: column {', '.join(columns)}"
        if (left_out := root / LEFT_OUT).is_file():
            rule += f"; splits left out: {left_out.read_text(encoding='utf-8')}"
        return train, val, test, rule

    def _arranged(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if self.options.split_rule == CARVED:
            return super().arrange(parts, root=root, layout=layout)
        if "all" in parts and len(parts) > 1:
            parts = _beside_splits(parts, root)
        parts = _or_all(parts)
        places = (root / "splits", root, root / "ImageSets" / "Segmentation")
        by_place = [lists for place in places if (lists := _lists(place, parts.get("all", ())))]
        lists = next((lists for lists in by_place if "train" in lists), by_place[0] if by_place else {})
        if "all" in parts and len(lists) == len(SPLITS):
            return split_by_lists(parts["all"], lists["train"].parent, lists=lists)
        unlisted = ""
        if "all" in parts and lists:  # some of them, as VOC keeps the masks of its test images to itself
            every = parts["all"]
            chosen = {split: select(every, read_list(path), source=path) for split, path in lists.items()}
            named = [pair.stem for pairs in chosen.values() for pair in pairs]
            if "train" in chosen:
                unlisted = splitting.in_no_list(every, named)
            else:
                chosen["train"] = tuple(pair for pair in every if pair.stem not in named)
            parts = _or_all(chosen)
        if "all" in parts or "test" in parts:
            train, val, test, rule = super().arrange(parts, root=root, layout=layout)
            return train, val, test, f"{rule}{unlisted}"
        seed, count = self.options.split_seed, splitting.share(len(parts["train"]), self.test_fraction)
        train, tested = splitting.carve(parts["train"], count=count, seed=seed, group=self.group)
        rule = f"given val; test carved (seed {seed}, {len(tested)} of train by {self.carved_by})"
        return train, parts["val"], {"test": tested}, f"{rule}{unlisted}"

    def group(self, pair: Pair) -> str:
        """What the first bracket of the regular expression `DataOptions.group` matches in an image's name, or its whole match."""
        if not self.options.group:
            return super().group(pair)
        name = pair.stem.removeprefix(pair.prefix)
        try:
            with _at_most(GROUP_SECONDS):
                match = re.search(self.options.group, name) or re.search(self.options.group, pair.stem)
        except TimeoutError:
            raise DatasetError(
                f"{self.name}: the group rule {self.options.group!r} takes more than {GROUP_SECONDS:g} s on the name "
                f"{name!r}; write it without a repetition in a repetition"
            ) from None
        if match is None:
            raise DatasetError(
                f"{self.name}: the group rule {self.options.group!r} fits no part of the name {name!r}; "
                f"--set benchmarks.{self.name}.group=REGEX"
            )
        return name_key(match[1] if match.re.groups else match[0])

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        return []

    def mask_of(self, pair: Pair) -> decoding.Array:
        if not pair.entry:
            return super().mask_of(pair)
        return coco.mask_of(pair.mask, pair.entry, classes=self.class_names, category=self.options.category)

    def decode_mask(self, path: Path) -> decoding.Array:
        try:
            if self.class_names == BINARY:
                return self._binary(path)
            mask = decoding.read_indices(path, num_classes=256)
        except DatasetError as error:
            open_image(path)  # a file that is damaged says so by itself
            raise DatasetError(f"{error}; {self._explanation()}") from error
        wrong = mask[(mask >= self.num_classes) & (mask != IGNORE)]
        if wrong.size:
            values = ", ".join(map(str, np.unique(wrong)[:8]))
            raise DatasetError(
                f"{path} has the class indices {values}, and {CLASSES} names {self.num_classes} classes, so 0 to "
                f"{self.num_classes - 1} (255 is ignored); complete {CLASSES}, or convert the masks"
            )
        return mask

    def _binary(self, path: Path) -> decoding.Array:
        try:
            return super().decode_mask(path)
        except DatasetError:
            image = upright(open_image(path))
            if image.mode not in ("P", "L") or not set(np.unique(indices := np.asarray(image))) <= {0, 1, IGNORE}:
                raise
            return indices  # with a border to be ignored, as VOC's

    def _explanation(self) -> str:
        if self.task == "binary":
            return (
                "masks are binary as long as there is no classes.txt (0 and 255, 0 and 1, or black and one colour); for "
                "several classes name them there, one a line, the background first"
            )
        return "masks of several classes hold one index a pixel (grey or palette PNG), not colours; convert them"


def _or_all(parts: Mapping[str, Pairs]) -> Mapping[str, Pairs]:
    """Training pairs alone are all there is, to be split here."""
    return {"all": parts["train"]} if set(parts) == {"train"} else parts


def _beside_splits(parts: Mapping[str, Pairs], root: Path) -> Mapping[str, Pairs]:
    """Pairs that lie beside the folders of other splits, for training. Raises DatasetError: beside one of training pairs too."""
    if "train" in parts:
        raise DatasetError(f"{root} has pairs in train/ and {len(parts['all'])} beside it; move these into it, or away")
    return {"train" if name == "all" else name: pairs for name, pairs in parts.items()}


def _lists(folder: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    """Split -> its list, as far as ``folder`` has them; without a ``train.txt`` no text that names none of ``pairs``."""
    stems = {name_key(Path(pair.stem).name) for pair in pairs}

    def names_images(path: Path) -> bool:
        return any(name_key(stem) in stems for stem in read_list(path))

    def is_list(path: Path) -> bool:
        try:
            return names_images(path)
        except DatasetError:  # a note in another encoding
            return False

    paths = named_splits(folder, ".txt", is_list)
    if (folder / "train.txt") in paths.values():
        return paths
    return {split: path for split, path in paths.items() if names_images(path)}


def own_benchmark(name: str, class_names: Sequence[str]) -> type[OwnBenchmark]:
    """A benchmark class for a folder of one's own. ``class_names``: the background first; two make it binary."""
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


MakeClass = Callable[[str, Sequence[str]], type[Benchmark]]


def _rebuilt(make: MakeClass, name: str, class_names: Sequence[str], options: DataOptions) -> Benchmark:
    return make(name, class_names)(options)


def own_folder(name: str, folder: Path, options: DataOptions | None = None) -> tuple[type[Benchmark], Path]:
    """The class and the root of the data set in ``folder``. Raises DatasetError: there is none, or its classes.txt is wrong."""
    benchmark = own_benchmark(name, BINARY)(options)
    root = benchmark.locate(folder)
    layout, category = benchmark.layout_at(root), benchmark.options.category
    if isinstance(layout, CocoLayout):
        return own_benchmark(name, _coco_classes(layout, root, category)), root
    if category:
        raise DatasetError(
            f"category={category} is for COCO files, and {root} has the layout {layout.name!r}; leave it away"
        )
    lists = [path for path in dict.fromkeys((root / CLASSES, folder / CLASSES)) if path.is_file()]
    names = (
        read_classes(lists[0])
        if lists
        else _nnunet_classes(root / "dataset.json")
        if layout.name == "nnu-net"
        else BINARY
    )
    return own_benchmark(name, names), root


def _coco_classes(layout: CocoLayout, root: Path, category: str) -> tuple[str, ...]:
    """The background, and the one category that is looked for or all that the annotations show."""
    names = layout.categories(root)
    where = f"the COCO files in {root}"
    if not names:
        raise DatasetError(f"{where} have no annotations; export them again")
    if category == coco.ANY:
        return BINARY
    if category and category not in names:
        raise DatasetError(f"{where} have no annotation of the category {category!r}; they have {', '.join(names)}")
    return _checked((BINARY[0], *([category] if category else [name for name in names if name != BINARY[0]])), where)


def _nnunet_classes(path: Path) -> tuple[str, ...]:
    """The labels of nnU-Net's ``dataset.json``: name -> index, or in its first version index -> name."""
    try:
        labels = json.loads(path.read_bytes())["labels"].items()
        first_version = all(str(name).isdigit() for name, _ in labels)
        indices = {int(key if first_version else value): str(value if first_version else key) for key, value in labels}
    except FileNotFoundError:
        return BINARY
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} names no classes under labels ({error}); complete it, or write {CLASSES}"
        ) from error
    if sorted(indices) != list(range(len(indices))):
        raise DatasetError(f"{path} numbers its labels {sorted(indices)}; number them from 0, or write {CLASSES}")
    return _checked(tuple(indices[index] for index in sorted(indices)), str(path))


def read_classes(path: Path) -> tuple[str, ...]:
    """Names, one a line, blank lines left out. Raises DatasetError: unreadable, fewer than two, too many, or one twice."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no readable list ({error})") from error
    return _checked(tuple(line.strip() for line in text.splitlines() if line.strip()), str(path))


def _checked(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DatasetError(
            f"{where} names {len(names)} classes; name 2 to {MOST_CLASSES}, one a line, the background first"
        )
    if len(set(names)) < len(names) or not all(name.isprintable() and len(name) <= 60 for name in names):
        raise DatasetError(f"{where}: a class is named twice, or its name is too long or cannot be printed; rename it")
    return names


def _undivided(root: Path) -> bool:
    images = resolve_folder(root, ALL_IMAGES)
    return images is not None and bool(image_files(images))


def _setting(name: str, images: str, masks: str) -> str:
    return f"--set benchmarks.{name}.images='{images}' --set benchmarks.{name}.masks='{masks}'; data check: --images, --masks"


def _folders(root: Path) -> list[Path]:
    """``root`` and the first folders down to two levels below it."""
    level = subfolders(root)[:_MOST_FOLDERS]
    return [root, *level, *[inner for folder in level for inner in subfolders(folder)[:_MOST_FOLDERS]]]


def _seen(root: Path) -> str:
    """The files below ``root`` by folder and ending, for a message: ``; seen: scans (24 .nii.gz)``."""
    contents = []
    for folder in _folders(root):
        try:
            names = [path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        except OSError:
            continue
        endings = Counter(
            "".join(Path(name).suffixes[-2 if name.endswith(".gz") else -1 :]) or "no ending" for name in names
        )
        if names:
            where = "beside them" if folder == root else f"{folder.relative_to(root)}/"
            contents.append(f"{where} ({', '.join(f'{count} {ending}' for ending, count in endings.most_common(3))})")
    more = ", …" if len(contents) > _MOST_TOLD else ""
    return f"; seen: {', '.join(contents[:_MOST_TOLD])}{more}" if contents else ""


def shared_names(root: Path, name: str) -> str:
    """A hint for a message: two folders whose files share names, one of which looks like masks; empty where there are none.
    ``name``: what it is called, for the message."""
    files = {
        folder: {bare_key(path): path for path in image_files(folder, MASK_EXTENSIONS)} for folder in _folders(root)
    }
    likely: list[tuple[int, Path, Path, Path, Path, str]] = []
    for (first, left), (second, right) in itertools.permutations(files.items(), 2):
        shared = sorted(left.keys() & right.keys())
        if len(shared) < 2 or 2 * len(shared) < min(len(left), len(right)):
            continue
        if all(_like_mask(right[key]) for key in shared[:3]) and not all(_like_mask(left[key]) for key in shared[:3]):
            likely.append((len(shared), first, second, left[shared[0]], right[shared[0]], shared[0]))
    if not likely:
        return ""
    count, images, masks, image, mask, key = max(likely)
    key = image.stem if image.stem in mask.stem else key
    image_names = "*" if key == image.stem else image.stem.replace(key, "{stem}") + ".*"
    here, there = images.relative_to(root), masks.relative_to(root)
    asked = _setting(name, f"{here}/{image_names}", f"{there}/" + mask.name.replace(key, "{stem}"))
    return f"{here}/ and {there}/ share {count} names; if they are images and masks, say so: {asked}"


def _like_mask(path: Path) -> bool:
    """Whether a file could be a mask: few values, or black and white."""
    try:
        image = open_image(path)
    except DatasetError:
        return False
    if image.mode in ("1", "P") or len(image.getcolors(256) or range(99)) <= 8:
        return True
    try:
        decoding.read_binary(path)
    except DatasetError:
        return False
    return True


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, in the main thread: only there a signal can end a search."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


UNDIVIDED = ClassFolders(splits={}, never="|".join((IMAGES, MASKS, *SPLITS.values())))
DIVIDED = ClassFolders(splits=SPLITS, never=f"{IMAGES}|{MASKS}")


class OwnLabels(OwnBenchmark):
    """A folder of one's own with a folder a class; `own_labels` makes a class of it that has a name and classes."""

    task: ClassVar[Literal["binary", "multiclass", "classification"]] = "classification"
    class_names: ClassVar[tuple[str, ...]] = ()
    metrics = ("accuracy", "nll", "ece")
    selection_metric = "nll"
    source = (
        "a folder with a folder of images a class, or train/, val/ and test/ that hold them (docs/classification.md)"
    )

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuilt, (own_labels, self.name, self.class_names, self.options)

    def layouts(self) -> tuple[Layout, ...]:
        return tuple(
            ClassFolders(splits=layout.splits, never=layout.never, classes=self.class_names)
            for layout in (UNDIVIDED, DIVIDED)
        )

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        pairs = [pair for part in parts.values() for pair in part]
        for folder in (root, root / "splits"):
            if (path := _lists(folder, pairs).get("train")) is not None:
                raise DatasetError(
                    f"{path}: lists do not split folders of classes; make train/, val/ and test/, or remove it"
                )
        return super().arrange(parts, root=root, layout=layout)

    def read(self, pair: Pair) -> Sample:
        return read_labelled(pair)


def own_labels(name: str, class_names: Sequence[str]) -> type[Benchmark]:
    """A benchmark class for a folder of one's own. ``class_names``: the folders' names, in the order of their indices."""
    described = {"name": name, "title": name, "num_classes": len(class_names), "class_names": tuple(class_names)}
    return type("OwnLabelled", (OwnLabels,), described)


def any_folder(name: str, folder: Path, options: DataOptions | None = None) -> tuple[type[Benchmark], Path]:
    """The class and the root of the data set in ``folder``: with masks where it has any, else with labels. ``hf:DIR`` is one of the
    Hugging Face Hub's formats (`harness.datasets.reading.hugging_face`).

    Raises:
        DatasetError: there is none, several are there, or its classes are wrong.
    """
    folder = plain_folder(folder)
    with_masks = own_benchmark(name, BINARY)(options).inside(folder)
    return (None if with_masks else _labelled(name, folder)) or own_folder(name, folder, options)


_CALLED = "{}; call lists of splits train.csv, val.csv and test.csv"


def _unused(root: Path) -> str:
    """A hint for a message: several CSVs name pairs, and no name says of which splits; empty where none does."""
    unused = ", ".join(path.name for path in lists_of_pairs(root))
    return f"it has {_CALLED.format(unused)}" if unused else ""


def _no_columns(root: Path) -> str:
    """A hint for a message: there is a CSV of training images, and it names no files; empty where there is none."""
    path = next((path for path in sorted(root.glob("*.csv")) if split_of(path.stem) == "train"), None)
    return WITHOUT_COLUMNS.format(path) if path is not None else ""


def _labelled(name: str, folder: Path) -> tuple[type[Benchmark], Path] | None:
    roots = OwnLabels().inside(folder)
    if not roots:
        return None
    images, masks = resolve_folder(folder, ALL_IMAGES), resolve_folder(folder, ALL_MASKS)
    if images and masks and folders_of_both(images, masks):  # such as one a patient
        asked = _setting(name, f"{images.relative_to(folder)}/**/*", f"{masks.relative_to(folder)}/**/{{stem}}.png")
        raise DatasetError(
            f"{folder} has folders of images and of masks with folders in them; say how they pair: {asked}"
        )
    if len(roots) > 1:
        raise DatasetError(
            f"{folder} holds several data sets: {', '.join(map(str, roots))}; give one of them as {name}=DIR"
        )
    if offer := shared_names(folder, name):  # two folders of one image each a name are hardly two classes
        raise DatasetError(f"{folder} has a folder of images a class, or images and masks: {_unused(folder) or offer}")
    layout = recognise(roots[0], (UNDIVIDED, DIVIDED))[0]
    assert isinstance(layout, ClassFolders)
    classes = layout.classes_at(roots[0])
    if len(classes) > MOST_CLASSES or not all(label.isprintable() and len(label) <= 60 for label in classes):
        raise DatasetError(
            f"{roots[0]} has {len(classes)} folders of classes; {MOST_CLASSES} are the most, and a name has at most 60 "
            "characters that can be printed"
        )
    return own_labels(name, classes), roots[0]
