"""Shared by the nine benchmarks: find the folder, recognise its layout, pair files, carve splits that were not published,
decode."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from harness.datasets.base import Benchmark, DataOptions, DatasetError, NotFound, Pair, Sample, Splits, Tested
from harness.datasets.readers import decoding, splitting
from harness.datasets.readers.layouts import Layout, plain_folder_name, subfolders
from harness.datasets.readers.opening import stored_size
from harness.datasets.readers.pairing import name_key
from harness.datasets.readers.splitting import Arranged, Pairs

AUTOGLUON = "https://automl-mm-bench.s3.amazonaws.com/semantic_segmentation"
"""Where AutoGluon keeps its archives, as Conv-LoRA used them."""

SAMPLE_MARKER = ".generated-sample"
"""A file of this name in a benchmark's folder says that the data was generated; every table then says so too."""

SAMPLE_NOTE = "generated sample"
"""What tables say in that case."""

CARVED = "carved"
"""The split rule of every benchmark that pools whatever parts are there and carves a test and a validation part from them."""

_PART_IN_WORDS = {"train": "training", "val": "validation"}
_WHOSE_SPLITS = {"autogluon": "AutoGluon's", "pranet": "PraNet's"}


class FolderBenchmark(Benchmark):
    """A benchmark described by its layouts.

    Args:
        options: the protocol's switches.

    Raises:
        DatasetError: the benchmark has no such ``options.split_rule``.
    """

    folders: ClassVar[tuple[str, ...]]
    """Names under which the folder is found below a data root (case, spaces, hyphens do not matter)."""
    archives: ClassVar[tuple[str, ...]] = ()
    """Addresses that ``sam-peft data prepare --from`` takes as they are, as far as they are known."""
    split_rules: ClassVar[tuple[str, ...]] = ("default",)
    """Besides `CARVED`, which all have."""
    without_test: ClassVar[str] = CARVED
    """The split rule to offer where the test part is missing."""
    test_splits: ClassVar[tuple[str, ...]] = ("test",)
    further_tests: ClassVar[tuple[str, ...]] = ()
    """Test splits that may be absent, and that `published_sizes` leaves out."""
    carved_by: ClassVar[str] = "hashed stem"
    """What `group` keeps together, in the words of the rule."""
    test_fraction: ClassVar[float] = 0.1
    val_fraction: ClassVar[float] = 0.1
    unpaired_allowed: ClassVar[bool] = False
    """Images without a mask are a known fact of the published archive and left out, instead of being an error."""
    native_size: ClassVar[tuple[int, int] | None] = None
    """(width, height) of the images where all original ones are of one size."""
    stretched_copies: ClassVar[bool] = False
    """There are copies whose images were stretched to squares while their masks kept the original shape."""
    mend: ClassVar[str] = "unpack the archive again"
    """What messages say about missing files."""
    mask_rule: ClassVar[decoding.Rule] = "half"
    """What is foreground in a binary mask, see `harness.datasets.readers.decoding.read_binary`; ``mask_colour`` likewise."""
    mask_colour: ClassVar[decoding.Colour | Literal["any"] | None] = None

    def __init__(self, options: DataOptions | None = None) -> None:
        super().__init__(options)
        rules = dict.fromkeys((*self.split_rules, CARVED))
        if self.options.split_rule not in rules:
            known = ", ".join(rules)
            raise DatasetError(f"{self.name} has no split rule {self.options.split_rule!r} (choose from {known})")

    @abstractmethod
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts that are recognised."""

    def decode_mask(self, path: Path) -> decoding.Array:
        """The mask as class indices, (H, W) uint8; a binary one by ``mask_rule``."""
        only_255, colour = self.options.mask_255_only, self.mask_colour
        return decoding.read_binary(path, rule=self.mask_rule, only_255=only_255, colour=colour)

    def mask_of(self, pair: Pair) -> decoding.Array:
        """The mask of a pair as class indices, (H, W) uint8."""
        return self.decode_mask(pair.mask)

    def locate(self, data_root: Path) -> Path:
        if not data_root.is_dir():
            raise NotFound(f"no folder {data_root} (--data DIR names another); {self._how_to_get()}")
        known = {plain_folder_name(name) for name in self.folders}
        named = [path for path in subfolders(data_root) if plain_folder_name(path.name) in known]
        candidates = [data_root] if self.recognised(data_root) else []
        for folder in named:
            candidates += self.inside(folder)
        if not candidates:
            tried = ", ".join(str(data_root / name) for name in self.folders)
            raise NotFound(
                f"no {self.title} in {data_root} (tried {tried}; --datasets {self.name}=DIR names another); {self._how_to_get()}"
            )
        if len(candidates) > 1:
            listed = " and ".join(str(path) for path in candidates)
            raise DatasetError(f"{self.title} was found more than once: {listed}; --datasets {self.name}=DIR chooses")
        return candidates[0]

    def inside(self, folder: Path) -> list[Path]:
        """``folder`` itself, or folders in a known layout up to three levels below it, whatever it is called."""
        level = [folder]
        for _ in range(4):
            roots = [path for path in level if self.recognised(path)]
            if roots:
                return roots
            level = [inner for path in level for inner in subfolders(path)]
        return []

    def _how_to_get(self) -> str:
        return f"get it: {self.source} (your own data needs a name other than {self.name})"

    def recognised(self, root: Path) -> list[Layout]:
        """The layouts of ``root``: one, none, or rivals."""
        matching = [layout for layout in self.layouts() if layout.matches(root)]
        highest = max((layout.rank for layout in matching), default=0)
        return [layout for layout in matching if layout.rank == highest]

    def layout_at(self, root: Path) -> Layout:
        """The layout of ``root``. Raises DatasetError: none, or several at once."""
        layouts = self.recognised(root)
        if not layouts:
            names = ", ".join(layout.name for layout in self.layouts())
            raise DatasetError(f"{root} has none of the layouts of {self.title} ({names}); {self._how_to_get()}")
        if len(layouts) > 1:
            names = " and ".join(layout.name for layout in layouts)
            raise DatasetError(f"{root} has two layouts of {self.title} at once: {names}; move one of them away")
        return layouts[0]

    def splits(self, root: Path) -> Splits:
        layout = self.layout_at(root)
        parts = layout.parts_at(root)
        images = tuple(path for part in parts.values() for path in part.unpaired_images)
        if images and not self.unpaired_allowed:
            raise DatasetError(f"{len(images)} images of {self.title} have no mask, first {images[0]}; {self.mend}")
        used = {pair.mask for part in parts.values() for pair in part.pairs}  # parts may share a folder of masks
        unused = (mask for part in parts.values() for mask in part.unused_masks if mask not in used)
        masks = tuple(dict.fromkeys(unused))
        pairs = _unique_stems({name: part.pairs for name, part in parts.items()}, root)
        self._refuse_missing(pairs, root=root)
        train, val, test, rule, tested, lists = self.arrange(pairs, root=root, layout=layout)
        splits = {"train": train, "val": val, **test}
        if empty := [name for name, part in splits.items() if not part]:
            raise DatasetError(f"{root}: the {empty[0]} split of {self.title} is empty; {self.mend}")
        refuse_shared(splits, root)
        if images:
            rule += f"; {len(images)} images without a mask left out"
        if masks:
            rule += f"; {len(masks)} masks without an image left out ({masks[0].name}{', …' * (len(masks) > 1)})"
        every = [pair for part in splits.values() for pair in part]
        generated = (root / SAMPLE_MARKER).exists()
        note = SAMPLE_NOTE if generated else ", ".join(self.notes(every, layout=layout, parts=pairs))
        made = Splits(train=train, val=val, test=test, layout=layout.name, rule=rule, note=note)
        return replace(made, left_out=images + masks, generated=generated, tested=tested, lists=lists)

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        """Parts -> (train, val, test splits, rule): official parts stay, the missing are carved, val from train."""
        seed = self.options.split_seed
        if "all" in parts or self.options.split_rule == CARVED:
            rest = tuple(pair for part in parts.values() for pair in part)
            tests, vals = (splitting.share(len(rest), part) for part in (self.test_fraction, self.val_fraction))
            rest, tested = splitting.carve(rest, count=tests, seed=seed, group=self.group)
            train, val = splitting.carve(rest, count=vals, seed=seed, group=self.group)
            rule = f"carved ({self.options.seed_in_words}, {len(tested)} test and {len(val)} val by {self.carved_by})"
            return Arranged(train, val, {"test": tested}, rule, "carved")
        test = {name: pairs for name, pairs in parts.items() if name not in ("train", "val")}
        origin: Tested = "given" if self.own else "published"
        whose = "given" if self.own else _WHOSE_SPLITS.get(layout.name, "official")
        if parts.get("val"):
            return Arranged(parts["train"], parts["val"], test, whose, origin)
        train, val, rule = self.carve_val(parts["train"])
        return Arranged(train, val, test, f"{whose} test; {rule}", origin)

    def split_by_list(self, pairs: Sequence[Pair], name: str) -> Arranged | None:
        """Test images by a committed list of stems, validation carved from the rest; None where none of them is present."""
        listed = splitting.committed(name)
        tested = tuple(pair for pair in pairs if name_key(pair.stem) in listed)
        if not tested:
            return None
        train, val, rule = self.carve_val([pair for pair in pairs if name_key(pair.stem) not in listed])
        there = str(len(tested)) if len(tested) == len(listed) else f"{len(tested)} of its {len(listed)}"
        words = f"PraNet's test images by stem ({there}); {rule}"
        return Arranged(train, val, {"test": tested}, words, "published")

    def carve_val(self, pairs: Sequence[Pair]) -> tuple[Pairs, Pairs, str]:
        """Validation from training images, as (train, val, rule in words)."""
        seed = self.options.split_seed
        count = splitting.share(len(pairs), self.val_fraction)
        train, val = splitting.carve(pairs, count=count, seed=seed, group=self.group)
        words = f"{self.options.seed_in_words}, {len(val)} of {len(pairs)} train images by {self.carved_by}"
        return train, val, f"val carved ({words})"

    def group(self, pair: Pair) -> str:
        return splitting.own_stem(pair)

    def needed_parts(self) -> tuple[str, ...]:
        """The parts that the split rule needs."""
        return () if self.options.split_rule == CARVED else ("train", *self.test_splits)

    def _refuse_missing(self, parts: Mapping[str, Pairs], *, root: Path) -> None:
        missing = [part for part in self.needed_parts() if part not in parts]
        if "all" in parts or not missing:
            return
        there = " and ".join(f"the {name} part ({len(pairs)} pairs)" for name, pairs in parts.items())
        rule = self.without_test if "train" in parts else CARVED
        raise DatasetError(
            f"{root} has {there} of {self.title} and no {' and no '.join(missing)} part; get it: {self.source}; or "
            f"take split rule {rule!r}, which does without (--set benchmarks.{self.name}.split_rule={rule}; "
            f"data check: --split-rule {rule})"
        )

    def notes(self, pairs: Sequence[Pair], *, layout: Layout, parts: Collection[str]) -> list[str]:
        """How these files differ from the published benchmark: fewer images, splits of our own, one square size. ``parts``: names
        of the parts that are there."""
        notes = []
        published = sum(self.sizes_to_expect(layout.name).values())
        carved = self.options.split_rule == CARVED and "all" not in parts
        if carved and len(parts) == 1:
            notes.append(f"{len(pairs):,} {_PART_IN_WORDS.get(*parts, *parts)} pairs")
        elif published and len(pairs) < published:
            notes.append(f"{len(pairs):,} of {published:,}")
        notes += ["carved"] * carved
        size = _common_size(pairs)
        if size is None or size == self.native_size:
            return notes
        width, height = size
        # Of one size, but not square: a part of the originals may be, unless all originals are of another one.
        if width == height or self.native_size is not None:
            notes.append(f"{width} px copy" if width == height else f"{width}x{height} px copy")
        return notes

    def read(self, pair: Pair) -> Sample:
        mask = self.mask_of(pair)
        image = decoding.read_image(pair.image, stored_size=(mask.shape[1], mask.shape[0]))
        image = decoding.fit(image, mask, path=pair.image, stretched=self.stretched_copies)
        return Sample(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(mask))


def _unique_stems(parts: Mapping[str, Pairs], root: Path) -> dict[str, Pairs]:
    """The parts with distinct stems: where two number their files alike, the part's name goes before every stem."""
    for name, pairs in parts.items():
        stems = [name_key(pair.stem) for pair in pairs]
        if len(set(stems)) < len(stems):
            twice = next(pair for pair in pairs if stems.count(name_key(pair.stem)) > 1)
            raise DatasetError(f"{root}: two images of {name} have the stem {twice.stem!r}; remove or rename one")
    every = [name_key(pair.stem) for pairs in parts.values() for pair in pairs]
    if len(set(every)) == len(every):
        return dict(parts)
    return {
        name: tuple(replace(pair, stem=f"{name}_{pair.stem}", prefix=f"{name}_") for pair in pairs)
        for name, pairs in parts.items()
    }


def refuse_shared(splits: Mapping[str, Pairs], root: Path) -> None:
    """Raises DatasetError: lists of a data set name a file twice, under whatever path, or one mask for two images."""
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], Path] = {}
    for name, pairs in splits.items():
        for pair in pairs:
            image, mask = ((os.path.realpath(path), pair.entry) for path in (pair.image, pair.mask))
            if image in images:
                where = f"in {images[image]} and in {name}" if images[image] != name else f"in {name} twice"
                raise DatasetError(f"{root}: {pair.image} is {where}; take it out of one of them")
            if mask in masks:
                raise DatasetError(
                    f"{pair.mask} is the mask of {masks[mask].name} and of {pair.image.name}; give each its own"
                )
            images[image], masks[mask] = name, pair.image


def _common_size(pairs: Sequence[Pair]) -> tuple[int, int] | None:
    """The size that all images have in common; None where they differ, or one cannot be read. Reads headers until
    two differ, so all are read only in a copy of one size."""
    sizes = (stored_size(pair.image) for pair in pairs)
    try:
        first = next(sizes)
        return first if all(size == first for size in sizes) else None
    except DatasetError:
        return None  # `read` says which file is unreadable
