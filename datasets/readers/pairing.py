"""Images and masks are paired by stem, never by directory order: one file too many would shift every pair after it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.datasets.base import DatasetError, Pair, require_plain

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
MASK_EXTENSIONS = IMAGE_EXTENSIONS | {".gif"}
"""Extensions of masks; only users' own data have GIFs."""
MASK_SUFFIXES = ("_segmentation", "_mask", "_masks", "_label", "_labels", "_gt", "_seg")
_SUPERPIXELS = re.compile(r"_superpixels?$")


class Paired(NamedTuple):
    """The outcome of `pair_files`.

    Args:
        pairs: in the order of their stems.
        unpaired_images: images for which no mask was found.
        unused_masks: masks that belong to none of the images, as far as they belong to this benchmark.
    """

    pairs: tuple[Pair, ...] = ()
    unpaired_images: tuple[Path, ...] = ()
    unused_masks: tuple[Path, ...] = ()


def is_image(name: str, extensions: frozenset[str] = IMAGE_EXTENSIONS) -> bool:
    """Whether a file name is that of an image: not hidden (``.DS_Store``, ``._x.jpg``), not superpixels, not a README."""
    stem, extension = os.path.splitext(name)
    return extension.lower() in extensions and not name.startswith(".") and not _SUPERPIXELS.search(stem.lower())


def image_files(folder: Path, extensions: frozenset[str] = IMAGE_EXTENSIONS) -> list[Path]:
    """The images right below ``folder``, ordered by name so that the file system's order never matters. Raises DatasetError: the
    folder cannot be listed, or something named as an image is not a file or has an unprintable name."""
    try:
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, entry.is_file()) for entry in entries if is_image(entry.name, extensions))
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed ({error.strerror})") from error
    for name, _ in listing:
        require_plain(name, folder / name)
    strange = [folder / name for name, is_file in listing if not is_file]
    if strange:
        raise DatasetError(
            f"{strange[0]} is named like an image but is a folder, a pipe or a broken link; rename the folder, or give the image"
        )
    return [folder / name for name, _ in listing]


def name_key(name: str) -> str:
    """What names are compared by: without case, and an ä written as one character, where a Mac may write it as two."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def mask_key(path: Path) -> str:
    """Stem of a mask without case and without ``_mask``, ``_segmentation`` and their like."""
    stem = name_key(path.stem)
    for suffix in MASK_SUFFIXES:
        if stem.endswith(suffix):
            return stem[: -len(suffix)]
    return stem


def indexed(files: Iterable[Path], key: Callable[[Path], str]) -> dict[str, Path]:
    """Files of one folder by what ``key`` makes of their names. Raises DatasetError: two of one key."""
    by_key: dict[str, Path] = {}
    for path in files:
        if (first := by_key.setdefault(key(path), path)) != path:
            raise DatasetError(
                f"two files in {path.parent} have one name: {first.name} and {path.name}; remove one of them"
            )
    return by_key


def without_affixes(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without the beginning and the end that all share, digits left alone: 07 of ``img_07.png``."""
    stems = [name_key(path.stem) for path in files]
    shared = os.path.commonprefix
    before = len(shared(stems).rstrip("0123456789"))
    after = len(shared([stem[::-1] for stem in stems]).rstrip("0123456789"))
    return {stem[before : len(stem) - after]: path for stem, path in zip(stems, files, strict=True)}


def pair_files(
    image_paths: Iterable[Path], mask_paths: Iterable[Path], *, keep: Callable[[str], bool] | None = None
) -> Paired:
    """Pair images with masks of the same name, with or without one of `MASK_SUFFIXES`.

    Args:
        mask_paths: masks; may be those of other splits too.
        keep: chooses images by stem, where a folder mixes several benchmarks.

    Raises:
        DatasetError: two images, or two masks, with one stem.
    """
    by_stem = indexed(
        (path for path in image_paths if keep is None or keep(path.stem)), lambda path: name_key(path.stem)
    )
    mask_files = list(mask_paths)
    # A mask named exactly like its image wins; the shortened name is only the second try, so "a_gt.png" may be an image's
    # own name.
    exact = indexed(mask_files, lambda path: name_key(path.stem))
    shortened = indexed((path for path in mask_files if name_key(path.stem) not in by_stem), mask_key)
    masks = {stem: mask for stem in by_stem if (mask := exact.get(stem) or shortened.get(stem)) is not None}
    used = set(masks.values())
    unused = tuple(path for path in mask_files if path not in used and (keep is None or keep(mask_key(path))))
    return paired_by_key(by_stem, masks)._replace(unused_masks=unused)


def paired_by_key(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Paired:
    """Images and masks of equal keys as pairs, in the order of the images."""
    return Paired(
        pairs=tuple(Pair(stem=path.stem, image=path, mask=masks[key]) for key, path in images.items() if key in masks),
        unpaired_images=tuple(path for key, path in images.items() if key not in masks),
        unused_masks=tuple(path for key, path in masks.items() if key not in images),
    )


def pair_names(image_paths: Sequence[Path], mask_paths: Sequence[Path]) -> Paired:
    """Pairs by equal names or ``NAME_mask`` and its like. If none pair so, by names without the beginning and end that all images, or all
    masks, share. Raises DatasetError: one stray file, or both kinds of names at once."""
    paired = pair_files(image_paths, mask_paths)
    by_image, by_mask = without_affixes(image_paths), without_affixes(mask_paths)
    alike = by_image.keys() == by_mask.keys() and len(by_image) == len(image_paths) == len(mask_paths) > 1
    if not paired.pairs and not alike:
        _refuse_stray(image_paths, mask_paths)
    left = paired.unpaired_images, paired.unused_masks
    if paired.pairs and len(left[0]) > 1 and without_affixes(left[0]).keys() == without_affixes(left[1]).keys():
        raise DatasetError(
            f"{paired.pairs[0].image} has its mask by its whole name, and {len(left[0])} others by a part of theirs; name all alike"
        )
    return paired_by_key(by_image, by_mask) if alike and not paired.pairs else paired


def _refuse_stray(image_paths: Sequence[Path], mask_paths: Sequence[Path]) -> None:
    """Raises DatasetError: but for one file, all would pair by what their names do not share."""
    for files, others in ((image_paths, mask_paths), (mask_paths, image_paths)):
        if len(files) != len(others) + 1 or len(others) < 2:
            continue
        wanted, keys = without_affixes(others).keys(), without_affixes(files)
        odd = keys.keys() - wanted
        # It has a key of its own, or its name shares nothing with the others': then it is the first or the last of all in order.
        stems = sorted(files, key=lambda p: name_key(p.stem)), sorted(files, key=lambda p: name_key(p.stem)[::-1])
        likely = {keys[key] for key in odd if len(odd) == 1}.union(*(paths[:: len(paths) - 1] for paths in stems))
        for stray in sorted(likely):
            if without_affixes([path for path in files if path != stray]).keys() == wanted:
                raise DatasetError(
                    f"{stray} has no partner, and the other {len(others)} of {stray.parent} have one each in {others[0].parent}; "
                    "remove or complete it"
                )
