"""Anybody's folder whose images have one label each: ``train/CLASS/*.png``, or ``CLASS/*.png`` to be split by the harness's rule.

The folders' names are the classes, in alphabetical order, as far as the training split has them; ``val/`` and ``test/`` are
kept where they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from harness.datasets.base import Benchmark, DataOptions, DatasetError, Pair, Sample
from harness.datasets.own import MOST_CLASSES, OwnBenchmark, own_folder, shared_names
from harness.datasets.reading.hugging_face import plain_folder
from harness.datasets.reading.labels import ClassFolders, read_labelled
from harness.datasets.reading.layouts import Layout, recognise
from harness.datasets.reading.lists import Arranged, Pairs
from harness.datasets.reading.own_layouts import IMAGES, MASKS, SPLITS

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
        return _rebuilt, (self.name, self.class_names, self.options)

    def layouts(self) -> tuple[Layout, ...]:
        return tuple(
            ClassFolders(splits=one.splits, never=one.never, classes=self.class_names) for one in (UNDIVIDED, DIVIDED)
        )

    def arrange(self, parts: Mapping[str, Pairs], *, root: Path, layout: Layout) -> Arranged:
        if lists := [*root.glob("train.txt"), *root.glob("splits/train.txt")]:
            raise DatasetError(
                f"{lists[0]}: lists do not split folders of classes; make train/, val/ and test/, or remove it"
            )
        return super().arrange(parts, root=root, layout=layout)

    def read(self, pair: Pair) -> Sample:
        return read_labelled(pair)


def own_labels(name: str, class_names: Sequence[str]) -> type[Benchmark]:
    """A benchmark class for a folder of one's own.

    Args:
        name: as it is called everywhere.
        class_names: the folders' names, in the order of their indices.
    """
    described = {"name": name, "title": name, "num_classes": len(class_names), "class_names": tuple(class_names)}
    return type("OwnLabelled", (OwnLabels,), described)


def _rebuilt(name: str, class_names: Sequence[str], options: DataOptions) -> Benchmark:
    return own_labels(name, class_names)(options)


def any_folder(name: str, folder: Path, options: DataOptions | None = None) -> tuple[type[Benchmark], Path]:
    """The class and the root of the data set in ``folder``: with masks where it has any, else with labels. ``hf:DIR`` is one of the
    Hugging Face Hub's formats (`harness.datasets.reading.hugging_face`).

    Raises:
        DatasetError: there is none, several are there, or its classes are wrong.
    """
    folder = plain_folder(folder)
    with_masks = OwnBenchmark(options).inside(folder)
    return (None if with_masks else _labelled(name, folder)) or own_folder(name, folder, options)


def _labelled(name: str, folder: Path) -> tuple[type[Benchmark], Path] | None:
    roots = OwnLabels().inside(folder)
    if not roots:
        return None
    if len(roots) > 1:
        raise DatasetError(
            f"{folder} holds several data sets: {', '.join(map(str, roots))}; give one of them as {name}=DIR"
        )
    if offer := shared_names(folder, name):  # two folders of one image each a name are hardly two classes
        raise DatasetError(f"{folder} has a folder of images a class, or images and masks: {offer}")
    layout = recognise(roots[0], (UNDIVIDED, DIVIDED))[0]
    assert isinstance(layout, ClassFolders)
    classes = layout.found(roots[0])
    if len(classes) > MOST_CLASSES or not all(one.isprintable() and len(one) <= 60 for one in classes):
        raise DatasetError(
            f"{roots[0]} has {len(classes)} folders of classes; {MOST_CLASSES} are the most, and a name has at most 60 "
            "characters that can be printed"
        )
    return own_labels(name, classes), roots[0]
