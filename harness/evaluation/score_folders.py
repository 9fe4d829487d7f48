"""Scores of predictions that came from elsewhere: a folder of them against a folder of masks, paired by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import DatasetError, Pair
from harness.datasets.readers.decoding import (
    is_grey_palette,
    mask_values,
    mixed_encodings,
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


class _Scored(NamedTuple):
    """A prediction with its mask. An array counts as bright: its values are probabilities and not levels."""

    score: ImageScore
    brightest: float  # value of the prediction
    two_levels: bool  # all others are 0
    held: frozenset[int]  # by the mask, see `object_values`


def score_folders(
    predictions: Path,
    masks: Path,
    scorer: SplitScorer,
    *,
    read_mask: Callable[[Path], NDArray[np.uint8]],
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> SplitScorer:
    """Score every prediction of a folder; memory does not grow with it.

    Args:
        predictions: grey images (levels are probabilities, or class indices) or ``.npy`` arrays of probabilities.
        scorer: an empty one, which is filled.
        read_mask: a mask's file to (H, W) class indices, 255 = ignore.

    Raises:
        UsageError, DatasetError: the folders do not pair, or a file cannot be read or scored; the message names it.
    """
    pairs = pair_predictions(predictions, masks)
    scored: list[_Scored] = []
    with ThreadPoolExecutor(affinity()) as pool:
        futures = {pool.submit(_score, pair, scorer, read_mask): pair for pair in pairs}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                scored.append(future.result())
                scorer.insert(futures[future].stem, scored[-1].score)
                progress(done, len(pairs))
        finally:
            pool.shutdown(cancel_futures=True)
    binary = scorer.task == "binary"
    if mixed := mixed_encodings([each.held for each in scored], num_classes=scorer.num_classes, named=not binary):
        raise UsageError(f"in {masks} {mixed}")
    if binary:
        _refuse_dark(predictions, scored, threshold=scorer.conventions.threshold)
    return scorer


def _refuse_dark(predictions: Path, scored: Sequence[_Scored], *, threshold: float) -> None:
    """Raises UsageError: masks whose foreground is 1 (255 in 16 bits) or another level below the threshold, which would be scored as
    background. A map of probabilities may be dark, but not one mask among others."""
    are_masks = all(each.two_levels for each in scored)
    limit = max(_DARK, threshold) if are_masks else _DARK
    dark = [each.brightest for each in scored if 0 < each.brightest <= limit]
    brighter = sum(each.brightest > limit for each in scored)
    if dark and (are_masks or not brighter):
        raise UsageError(
            f"{len(dark)} predictions in {predictions} stay at or below grey level {round(255 * max(dark))} of 255, and {brighter} "
            "exceed it; where it means foreground, save 255 in its place (65535 in 16 bits)"
        )


def pair_predictions(predictions: Path, masks: Path) -> tuple[Pair, ...]:
    """The files of two folders, paired as images and masks of a user's own data are. Raises UsageError: a file has no partner;
    DatasetError: a folder cannot be read, or has one name twice."""
    files = image_files(predictions, MASK_EXTENSIONS | {".npy"})
    paired = pair_names(files, image_files(masks, MASK_EXTENSIONS))
    if not paired.pairs:
        raise UsageError(f"no file of {predictions} has the name of a mask in {masks}; files are paired by name")
    for folder, alone in ((predictions, paired.unused_masks), (masks, paired.unpaired_images)):
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise UsageError(f"{folder} has no partner for {alone[0].name}{more}; complete it, or move these away")
    return paired.pairs


def _score(pair: Pair, scorer: SplitScorer, read_mask: Callable[[Path], NDArray[np.uint8]]) -> _Scored:
    prediction, mask = read_prediction(pair.image, task=scorer.task), read_mask(pair.mask)
    (height, width), (mask_height, mask_width) = prediction.shape, mask.shape
    rounding = 1 / mask_height + 1 / mask_width
    # Turned images and swapped files have another shape.
    if abs(height / mask_height - width / mask_width) > rounding:
        raise UsageError(
            f"{pair.image} is {width}x{height}, its mask {pair.mask.name} {mask_width}x{mask_height}: another aspect ratio; "
            "give predictions of the images' shape"
        )
    is_array = pair.image.suffix.lower() == ".npy"
    brightest = 1.0 if is_array else float(prediction.max())
    two_levels = not is_array and bool(((prediction == 0) | (prediction == brightest)).all())
    try:
        score = scorer.measure(prediction, mask)
    except ValueError as error:
        raise UsageError(f"{pair.image} against {pair.mask.name}: {error}") from None
    return _Scored(score, brightest, two_levels, object_values(pair.mask, num_classes=scorer.num_classes))


def read_prediction(path: Path, *, task: str) -> NDArray:
    """Probabilities (H, W) of a binary benchmark, else labels (H, W).

    A grey image holds probabilities as 0..255, a 16-bit one as 0..65535, a 1-bit one as 0 and 1; in a coloured palette
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
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is unreadable ({reason}); write it with numpy.save") from error
    is_plane = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind == "f"
    if task != "binary" or not is_plane or not 0 < math.prod(array.shape) <= MOST_PIXELS:
        raise DatasetError(
            f"{path} is not an array of floats (H, W) in [0, 1], at most {MOST_PIXELS} pixels; labels of several classes are images"
        )
    return array
