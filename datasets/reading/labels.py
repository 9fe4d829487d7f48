"""Images with one label each: class folders to pairs, a pair to its sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.datasets.base import DatasetError, Pair, Sample
from harness.datasets.reading import decoding
from harness.datasets.reading.layouts import Layout, resolve_folder, subfolders
from harness.datasets.reading.pairing import Paired, image_files


def read_labelled(pair: Pair) -> Sample:
    """The image, and its label as a mask (1, 1). Raises DatasetError: unreadable file."""
    return Sample(image=decoding.read_image(pair.image), mask=np.array([[pair.label]], dtype=np.uint8))


@dataclass(frozen=True, kw_only=True)
class ClassFolders(Layout):
    """A folder a class: ``CLASS/*.png``, or the same inside folders of splits. A stem is ``CLASS/NAME``.
    Names of folders are as `resolve_folder` takes them."""

    splits: Mapping[str, str]  # split -> names of its folder; empty for an undivided folder
    never: str = ""  # names that folders of classes do not have
    classes: tuple[str, ...] = ()  # in the order of their indices; empty for whatever folders the training split has
    name: str = "class folders"
    distinctive: bool = False

    def matches(self, root: Path) -> bool:
        return len(self.classes_at(root)) >= 2

    def folders(self, root: Path) -> dict[str, Path]:
        """Part -> its folder."""
        found = {split: resolve_folder(root, names) for split, names in self.splits.items()}
        return (
            {split: folder for split, folder in found.items() if folder is not None} if self.splits else {"all": root}
        )

    def classes_at(self, root: Path) -> tuple[str, ...]:
        """The classes that folders name, in alphabetical order; of a divided data set those of its first split."""
        folder = self.folders(root).get(next(iter(self.splits), "all"))
        if folder is None or resolve_folder(folder, self.never) not in (None, folder):
            return ()
        return tuple(path.name for path in subfolders(folder) if image_files(path))

    def parts_at(self, root: Path) -> dict[str, Paired]:
        return {part: self._read(folder) for part, folder in self.folders(root).items()}

    def _read(self, folder: Path) -> Paired:
        if stray := image_files(folder):
            raise DatasetError(f"{stray[0]} lies beside the folders of the classes and has no label; move it into one")
        pairs: list[Pair] = []
        for path in subfolders(folder):
            images = image_files(path)
            if images and path.name not in self.classes:
                raise DatasetError(f"{path} is no folder of a class ({', '.join(self.classes)}); rename or move it")
            label = self.classes.index(path.name) if images else 0
            pairs += [Pair(stem=f"{path.name}/{image.stem}", image=image, mask=image, label=label) for image in images]
        return Paired(pairs=tuple(pairs))
