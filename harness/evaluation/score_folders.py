"""Scores of predictions that came from elsewhere: a folder of them against a folder of masks, paired by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import DatasetError, require_plain
from harness.datasets.readers.decoding import (
    LOSSY_FORMATS,
    is_grey_palette,
    mask_values,
    read_binary,
    read_indices,
    require_lossless,
    two_colours,
)
from harness.datasets.readers.opening import MOST_PIXELS, open_image, require_file, upright
from harness.datasets.readers.pairing import MASK_EXTENSIONS, image_files, indexed, mask_key, without_affixes
from harness.evaluation.scorer import ImageScore, SplitScorer
from harness.system.errors import UsageError
from harness.system.machine import affinity

Pair = tuple[Path, Path]
"""A prediction's file and its mask's."""
MaskReader = Callable[[Path], NDArray[np.uint8]]
"""A mask's file -> (H, W) class indices, 255 = ignore."""


def score_folders(
    predictions: Path,
    masks: Path,
    scorer: SplitScorer,
    *,
    read_mask: MaskReader | None = None,
    stretched: bool = False,
    partial: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> SplitScorer:
    """Score every prediction of a folder; memory does not grow with it.

    Args:
        predictions: grey images (levels are probabilities, or class indices) or ``.npy`` arrays.
        masks: read by ``read_mask``; by default as those of one's own data are.
        scorer: an empty one, which is filled.
        stretched: the predictions are squares that a network made of images of any shape.
        partial: leave out what is in one folder only.
        workers: threads; as many as this process may use cores if 0.

    Raises:
        UsageError, DatasetError: the folders do not pair, or a file cannot be read or scored; the message names it.
    """
    pairs = pair_folders(predictions, masks, partial=partial)
    if scorer.task == "binary":
        _require_levels([prediction for prediction, _ in pairs])
    read = read_mask or _mask_reader(scorer.task)
    with ThreadPoolExecutor(workers or affinity()) as pool:
        futures = {pool.submit(_score, pair, scorer, read, stretched=stretched): pair for pair in pairs}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                scorer.insert(futures[future][0].stem, future.result())
                progress(done, len(pairs))
        finally:
            pool.shutdown(cancel_futures=True)
    return scorer


def pair_folders(predictions: Path, masks: Path, *, partial: bool = False) -> list[Pair]:
    """Files of two folders by name, without case and without ``_mask`` and its like, as the images and masks of a data set are
    paired. Raises UsageError: a folder is missing or empty, or a file has no partner; DatasetError: one name twice."""
    for folder in (predictions, masks):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; give a folder of images")
    arrays = sorted(path for path in predictions.iterdir() if _is_array(path))
    for path in arrays:
        require_plain(path.name, path)
    predicted = _by_key(predictions, [*image_files(predictions), *arrays])
    images = image_files(masks)
    named = set(map(mask_key, images))  # an array of the same name as an image is no second mask
    others = [
        path for path in image_files(masks, MASK_EXTENSIONS) if path not in images and mask_key(path) not in named
    ]
    truth = _by_key(masks, [*images, *others])
    if not truth.keys() & predicted.keys():  # names that differ in what all of a folder share: pred_7 and mask_7
        shorter = without_affixes([*predicted.values()]), without_affixes([*truth.values()])
        if shorter[0].keys() == shorter[1].keys() and len(shorter[0]) == len(predicted) == len(truth) > 1:
            predicted, truth = shorter
    for folder, lacks, absent, there in (
        (predictions, "prediction", truth.keys() - predicted.keys(), truth),
        (masks, "mask", predicted.keys() - truth.keys(), predicted),
    ):
        if absent and not partial:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise UsageError(
                f"{folder} has no {lacks} for {there[min(absent)].name}{more}; --partial scores what both folders have"
            )
    both = sorted(truth.keys() & predicted.keys())
    if not both:
        raise UsageError(f"no file of {predictions} has the name of a mask in {masks}; files are paired by name")
    return [(predicted[key], truth[key]) for key in both]


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _by_key(folder: Path, files: Sequence[Path]) -> Mapping[str, Path]:
    if not files:
        raise UsageError(f"{folder} holds no images")
    return indexed(files, mask_key)


def _mask_reader(task: str) -> MaskReader:
    if task == "binary":
        return lambda path: read_binary(path, colour="any")
    return lambda path: read_indices(path, num_classes=256)  # the scorer knows the classes, and that 255 is none


def _score(pair: Pair, scorer: SplitScorer, read_mask: MaskReader, *, stretched: bool) -> ImageScore:
    prediction, mask = read_prediction(pair[0], task=scorer.task), read_mask(pair[1])
    (height, width), (mask_height, mask_width) = prediction.shape[-2:], mask.shape
    rounding = 1 / mask_height + 1 / mask_width
    if (
        not stretched and abs(height / mask_height - width / mask_width) > rounding
    ):  # turned images and swapped files look so
        raise UsageError(
            f"{pair[0]} is {width}x{height}, its mask {pair[1].name} {mask_width}x{mask_height}: another aspect ratio; give"
            " predictions of the images' shape, or --stretched where the network stretched them"
        )
    try:
        return scorer.measure(prediction, mask)
    except ValueError as error:
        raise UsageError(f"{pair[0]} against {pair[1].name}: {error}") from None


def read_prediction(path: Path, *, task: str) -> NDArray:
    """Binary: probabilities (H, W); multi-class: labels (H, W), or scores (C, H, W) from ``.npy``.

    A grey image holds probabilities as 0..255, a 16-bit one as 0..65535, a 1-bit one as 0 and 1; of a coloured palette
    every colour but black is foreground.

    Raises:
        DatasetError: unreadable, an array of another kind, or labels that lossy compression has changed.
    """
    if _is_array(path):
        return _read_array(path, task=task)
    image = upright(open_image(path))
    if task == "multiclass":
        require_lossless(image, path)
        return mask_values(image, path)
    if image.mode == "P" and not is_grey_palette(image):
        return two_colours(image, path).astype(float)
    if image.mode == "P":
        image = image.convert("L")
    return mask_values(image, path) / _full(image)


def _full(image: Image.Image) -> int:
    """The level that stands for probability 1."""
    return 65535 if image.mode.startswith("I") else 1 if image.mode == "1" else 255


def _require_levels(predictions: Sequence[Path]) -> None:
    """Refuse a folder of masks of 0 and 1 (or of 0 and 255 in 16 bits): read as probabilities, all would be background. One dark map
    may be a network's."""
    brightest: tuple[int, int] = 0, 255
    for path in predictions:
        if _is_array(path):
            return
        image = open_image(path)
        full = _full(image)
        most = int(mask_values(image, path).max(initial=0))
        if image.mode in ("1", "P") or image.format in LOSSY_FORMATS or most > full // 255:
            return
        brightest = max(brightest, (most, full))
    if brightest[0]:
        most, full = brightest
        raise UsageError(
            f"no prediction reaches more than {most} of {full}, which is probability {most / full:.2g}; where {most} stands"
            f" for foreground, save {full} in its place"
        )


def _read_array(path: Path, *, task: str) -> NDArray:
    """A prediction from ``.npy``: mapped first, so that its header alone makes nobody allocate what the file lacks."""
    require_file(path)
    try:
        with np.errstate(over="raise"):  # of the size that a header claims
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, ArithmeticError, MemoryError) as error:
        raise DatasetError(
            f"{path} is unreadable ({' '.join(str(error).split())}); write it with numpy.save"
        ) from error
    expected = (
        "floats in [0, 1] (H, W)" if task == "binary" else "labels from 0 to 254 (H, W) or float scores (C, H, W)"
    )
    is_array = isinstance(array, np.ndarray) and array.ndim >= 2 and 0 < math.prod(array.shape[-2:]) <= MOST_PIXELS
    if not is_array or not array.size or array.dtype.kind not in ("f" if task == "binary" else "fiu"):
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise DatasetError(f"{path} holds {what}; a prediction is {expected} of at most {MOST_PIXELS} pixels")
    if array.dtype.kind in "iu" and not 0 <= array.min() <= array.max() <= 255:
        raise DatasetError(f"{path} holds labels from {array.min()} to {array.max()}; a prediction is {expected}")
    return np.array(array)
