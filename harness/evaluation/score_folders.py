"""Scores of predictions that came from elsewhere: a folder of them against a folder of masks, paired by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.decoding import (
    is_grey_palette,
    kinds_of,
    mask_values,
    object_values,
    require_lossless,
    two_colours,
)
from harness.datasets.readers.opening import MOST_PIXELS, open_image, upright
from harness.datasets.readers.pairing import MASK_EXTENSIONS, image_files, pair_names
from harness.evaluation.scorer import ImageScore, SplitScorer
from harness.system.errors import UsageError
from harness.system.machine import affinity

_DARK = 1 / 255


def score_folders(
    predictions: Path,
    masks: Path,
    scorer: SplitScorer,
    *,
    read_mask: Callable[[Path], NDArray[np.uint8]],
    partial: bool = False,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> SplitScorer:
    """Score every prediction of a folder; memory does not grow with it.

    Args:
        predictions: grey images (levels are probabilities, or class indices) or ``.npy`` arrays.
        scorer: an empty one, which is filled.
        read_mask: a mask's file to (H, W) class indices, 255 = ignore.
        partial: leave out what is in one folder only.

    Raises:
        UsageError, DatasetError: the folders do not pair, or a file cannot be read or scored; the message names it.
    """
    pairs = pair_predictions(predictions, masks, partial=partial)
    held: list[frozenset[int]] = []
    brightest: list[tuple[float, bool]] = []
    with ThreadPoolExecutor(affinity()) as pool:
        futures = {pool.submit(_score, pair, scorer, read_mask): pair for pair in pairs}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                score, brightness, values = future.result()
                scorer.insert(futures[future].stem, score)
                brightest.append(brightness)
                held.append(values)
                progress(done, len(pairs))
        finally:
            pool.shutdown(cancel_futures=True)
    _refuse_mixed_masks(masks, held, scorer)
    if scorer.task == "binary":
        _refuse_dark(predictions, brightest)
    return scorer


def _refuse_dark(predictions: Path, brightest: Sequence[tuple[float, bool]]) -> None:
    """Raises UsageError: masks of 0 and 1 (of 0 and 255 in 16 bits), which would be scored as background. A map of probabilities may be
    dark, but no mask among masks.

    Args:
        brightest: value of each prediction, and whether all others are 0.
    """
    dark = sum(0 < value <= _DARK for value, _ in brightest)
    brighter = sum(value > _DARK for value, _ in brightest)
    if dark and (not brighter or all(binary for _, binary in brightest)):
        raise UsageError(
            f"{dark} predictions in {predictions} hold no more than a grey level of 1 (255 in 16 bits), and {brighter} hold more; where 1 "
            "means foreground, save 255 in its place (65535 in 16 bits)"
        )


def _refuse_mixed_masks(masks: Path, held: Sequence[frozenset[int]], scorer: SplitScorer) -> None:
    """Raises UsageError: 255 is the object in some masks, and an area to ignore in others. ``held``: see `object_values`."""
    indices, full, both = kinds_of(held, num_classes=scorer.num_classes)
    if full and (indices or both) and (scorer.task == "binary" or not both):
        raise UsageError(
            f"of the masks in {masks} {indices + both} hold class indices, and {full} 0 and 255 alone; write the index of the object in "
            "all, or 255 in all masks of two classes"
        )


def pair_predictions(predictions: Path, masks: Path, *, partial: bool = False) -> tuple[Pair, ...]:
    """The files of two folders, paired as images and masks of a user's own data are. Raises UsageError: a file has no partner;
    DatasetError: a folder cannot be read, or has one name twice."""
    files = image_files(predictions, MASK_EXTENSIONS | {".npy"})
    paired = pair_names(files, image_files(masks, MASK_EXTENSIONS))
    if not paired.pairs:
        raise UsageError(f"no file of {predictions} has the name of a mask in {masks}; files are paired by name")
    for folder, lacks, alone in (
        (predictions, "prediction", paired.unused_masks),
        (masks, "mask", paired.unpaired_images),
    ):
        if alone and not partial:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise UsageError(
                f"{folder} has no {lacks} for {alone[0].name}{more}; --partial scores what both folders have"
            )
    return paired.pairs


def _score(
    pair: Pair, scorer: SplitScorer, read_mask: Callable[[Path], NDArray[np.uint8]]
) -> tuple[ImageScore, tuple[float, bool], frozenset[int]]:
    """The score of one image, its brightest value as in `_refuse_dark`, and the `object_values` of its mask. The brightest value of an
    array is taken as 1: its values are probabilities and not levels."""
    prediction, mask = read_prediction(pair.image, task=scorer.task), read_mask(pair.mask)
    (height, width), (mask_height, mask_width) = prediction.shape[-2:], mask.shape
    rounding = 1 / mask_height + 1 / mask_width
    # Turned images and swapped files have another shape.
    if abs(height / mask_height - width / mask_width) > rounding:
        raise UsageError(
            f"{pair.image} is {width}x{height}, its mask {pair.mask.name} {mask_width}x{mask_height}: another aspect ratio; "
            "give predictions of the images' shape"
        )
    try:
        is_array = pair.image.suffix.lower() == ".npy"
        brightest = 1.0 if is_array else float(prediction.max())
        binary = not is_array and bool(((prediction == 0) | (prediction == brightest)).all())
        held = object_values(pair.mask, num_classes=scorer.num_classes)
        return scorer.measure(prediction, mask), (brightest, binary), held
    except ValueError as error:
        raise UsageError(f"{pair.image} against {pair.mask.name}: {error}") from None


def read_prediction(path: Path, *, task: str) -> NDArray:
    """Binary: probabilities (H, W); multi-class: labels (H, W) from an image, scores (C, H, W) from ``.npy``.

    A grey image holds probabilities as 0..255, a 16-bit one as 0..65535, a 1-bit one as 0 and 1; of a coloured palette
    every colour but black is foreground.

    Raises:
        DatasetError: unreadable, an array of another kind, or labels that lossy compression has changed.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path, task=task)
    image = upright(open_image(path))
    if task == "multiclass":
        require_lossless(image, path)
        return mask_values(image, path)
    if image.mode == "P" and not is_grey_palette(image):
        return two_colours(image, path).astype(float)
    if image.mode == "P":
        image = image.convert("L")
    full = 65535 if image.mode.startswith("I") else 1 if image.mode == "1" else 255
    return mask_values(image, path) / full


def _read_array(path: Path, *, task: str) -> NDArray:
    """A prediction from ``.npy``, checked."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, ArithmeticError, MemoryError) as error:
        raise DatasetError(
            f"{path} is unreadable ({' '.join(str(error).split())}); write it with numpy.save"
        ) from error
    expected = "in [0, 1] (H, W)" if task == "binary" else "(C, H, W), and labels are images"
    dimensions = 2 if task == "binary" else 3
    is_array = isinstance(array, np.ndarray) and array.ndim == dimensions and array.dtype.kind == "f"
    if not is_array or not array.size or math.prod(array.shape[-2:]) > MOST_PIXELS:
        what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise DatasetError(f"{path} holds {what}; a prediction is floats {expected}, at most {MOST_PIXELS} pixels")
    return array
