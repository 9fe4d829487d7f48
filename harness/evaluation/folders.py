"""Scoring folders of predictions that came from elsewhere: pairing, reading, all cores, constant memory."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import DatasetError, require_plain
from harness.datasets.reading.decoding import (
    LOSSY_FORMATS,
    is_grey_palette,
    mask_values,
    read_binary,
    read_indices,
    require_lossless,
    two_colours,
)
from harness.datasets.reading.opening import MOST_PIXELS, open_image, require_file, upright
from harness.datasets.reading.pairing import MASK_EXTENSIONS, image_files, indexed, mask_key
from harness.evaluation.resize import resize_bilinear, resize_nearest
from harness.evaluation.scorer import ImageScore, SplitScorer
from harness.system.errors import UsageError
from harness.system.machine import affinity

Foreground = Literal["half", "nonzero"]
_CHUNK = 2  # images a task; Ctrl-C waits for the tasks under way


@dataclass(frozen=True, kw_only=True)
class FolderPair:
    """A prediction file and its mask file."""

    stem: str
    prediction: Path
    mask: Path


def pair_predictions(predictions: Path, masks: Path, *, partial: bool = False) -> tuple[FolderPair, ...]:
    """Pair two folders by stem, without case and without ``_mask`` and its like.

    Args:
        predictions: images, or ``.npy`` arrays.
        masks: what a data set of one's own may have.
        partial: leave out what is in one folder only.

    Raises:
        UsageError: a folder is missing or empty, or a file has no partner.
        DatasetError: two files of a folder have one name.
    """
    predicted = _by_key(predictions, [*image_files(_folder(predictions)), *_arrays(predictions)])
    images = image_files(_folder(masks))
    others = [path for path in image_files(masks, MASK_EXTENSIONS) if path not in images]
    named = set(map(mask_key, images))  # an array of the same name beside an image is no second mask
    truth = _by_key(masks, [*images, *(path for path in others if mask_key(path) not in named)])
    for key, folder, here, there in (
        (sorted(truth.keys() - predicted.keys()), predictions, "prediction", truth),
        (sorted(predicted.keys() - truth.keys()), masks, "mask", predicted),
    ):
        if key and not partial:
            raise UsageError(
                f"{folder} has no {here} for {there[key[0]].name}"
                + (f" and {len(key) - 1} more" if len(key) > 1 else "")
                + "; --partial scores what both folders have"
            )
    both = sorted(truth.keys() & predicted.keys())
    if not both:
        raise UsageError(f"no file of {predictions} has the name of a mask in {masks}; files are paired by name")
    return tuple(FolderPair(stem=predicted[key].stem, prediction=predicted[key], mask=truth[key]) for key in both)


def _arrays(folder: Path) -> list[Path]:
    arrays = sorted(path for path in folder.iterdir() if _is_array(path))
    for path in arrays:
        require_plain(path.name, path)
    return arrays


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; give a folder of images")
    return path


def _by_key(folder: Path, files: Sequence[Path]) -> Mapping[str, Path]:
    if not files:
        raise UsageError(f"{folder} holds no images")
    return indexed(files, mask_key)


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


def require_levels(pairs: Iterable[FolderPair]) -> None:
    """Refuse masks of 0 and 1 (or of 0 and 255 in 16 bits) where levels stand for probabilities: all would be background.

    One dark map may be a network's; a folder in which none is brighter is not.

    Raises:
        UsageError: no prediction is above the lowest level, or the lowest byte.
        DatasetError: unreadable.
    """
    brightest: tuple[int, int] = 0, 255
    for pair in pairs:
        if _is_array(pair.prediction):
            return
        image = open_image(pair.prediction)
        full = _full(image)
        if image.mode in ("1", "P") or image.format in LOSSY_FORMATS:
            return
        most = int(mask_values(image, pair.prediction).max(initial=0))
        if most > full // 255:
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
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is unreadable ({reason}); write it anew with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"{path} holds several arrays; write one array a file with numpy.save")
    kinds = "f" if task == "binary" else "fiu"
    if array.dtype.kind not in kinds:
        expected = "floats in [0, 1]" if task == "binary" else "integer labels (H, W) or float scores (C, H, W)"
        raise DatasetError(f"{path} holds {array.dtype}; predictions are {expected}")
    if array.ndim < 2 or not array.size or math.prod(array.shape[-2:]) > MOST_PIXELS:
        raise DatasetError(f"{path} has the shape {array.shape}; predictions are (H, W) of 1 to {MOST_PIXELS} pixels")
    if array.dtype.kind in "iu" and not 0 <= array.min() <= array.max() <= 255:
        raise DatasetError(f"{path} has labels from {array.min()} to {array.max()}; class indices are 0 to 254")
    try:
        return np.array(array)
    except MemoryError as error:
        raise DatasetError(f"{path} does not fit into memory: {array.dtype} {array.shape}") from error


@dataclass(frozen=True, kw_only=True)
class FolderScoring:
    """How the images of two folders are scored; pickled to every worker.

    Args:
        scorers: empty scorers by name, one for each set of conventions.
        input_size: side to which predictions are resized first where the conventions score at the input's size;
            0 scores at the prediction's own size.
        foreground: decoding of binary masks: grey levels above 127, or above 0.
        stretched: predictions may have another aspect ratio than their masks; they are stretched.
    """

    scorers: Mapping[str, SplitScorer]
    input_size: int = 0
    foreground: Foreground = "half"
    stretched: bool = False

    def __call__(self, pair: FolderPair) -> dict[str, ImageScore]:
        """Scores of one image by the names of the scorers.

        Raises:
            UsageError: it cannot be read or scored.
        """
        first = next(iter(self.scorers.values()))
        try:
            prediction = read_prediction(pair.prediction, task=first.task)
            mask = self._mask(pair.mask, task=first.task)
            if not self.stretched:
                self._require_aspect(pair, prediction, mask)
            return {name: self._measure(scorer, prediction, mask) for name, scorer in self.scorers.items()}
        except DatasetError as error:
            raise UsageError(str(error)) from None
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{pair.prediction} against {pair.mask.name}: {error}") from None

    def _require_aspect(self, pair: FolderPair, prediction: NDArray, mask: NDArray[np.uint8]) -> None:
        """A prediction of another shape would be scored stretched; turned images and swapped files look so."""
        (height, width), (mask_height, mask_width) = prediction.shape[-2:], mask.shape
        rounding = 1 / mask_height + 1 / mask_width
        if abs(height / mask_height - width / mask_width) > rounding:
            raise UsageError(
                f"{pair.prediction} is {width}x{height}, its mask {pair.mask.name} {mask_width}x{mask_height}: another "
                "aspect ratio; give predictions of the images' shape, or --stretched where the network stretched them"
            )

    def _mask(self, path: Path, *, task: str) -> NDArray[np.uint8]:
        if task == "binary":
            return read_binary(path, rule=self.foreground, colour="any")
        return read_indices(path, num_classes=256)  # the scorer knows the classes, and that 255 is none

    def _measure(self, scorer: SplitScorer, prediction: NDArray, mask: NDArray[np.uint8]) -> ImageScore:
        if scorer.conventions.resolution == "input" and self.input_size:
            size = (self.input_size, self.input_size)
            if np.issubdtype(prediction.dtype, np.integer):
                prediction = resize_nearest(prediction, size)
            else:
                prediction = resize_bilinear(prediction, size)
        return scorer.measure(prediction, mask)


def score_folders(
    pairs: Sequence[FolderPair],
    scoring: FolderScoring,
    *,
    workers: int = 0,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Fill the scorers of ``scoring``. Images are read where they are scored, so memory does not grow with the folder.

    Args:
        pairs: what to score.
        scoring: how.
        workers: processes; all cores this process may use if 0, and none but this process if 1.
        progress: called with the number of images done.

    Raises:
        UsageError: an image cannot be scored; the message names it.
    """
    processes = min(workers or affinity(), -(-len(pairs) // _CHUNK))
    chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    done = 0
    work = partial(_score, scoring)
    for scored in _everywhere(work, chunks, processes) if processes > 1 else map(work, chunks):
        for stem, scores in scored:
            for name, score in scores.items():
                scoring.scorers[name].insert(stem, score)
        done += len(scored)
        progress(done)


Scored = list[tuple[str, dict[str, ImageScore]]]


def _score(scoring: FolderScoring, pairs: Sequence[FolderPair]) -> Scored:
    return [(pair.stem, scoring(pair)) for pair in pairs]


def _everywhere(
    work: Callable[[Sequence[FolderPair]], Scored], chunks: Sequence[Sequence[FolderPair]], processes: int
) -> Iterator[Scored]:
    """Chunks as they are finished; what the first failure leaves unstarted is not started."""
    with ProcessPoolExecutor(processes) as pool:
        # Workers inherit the blocked signal: Ctrl-C is this process's to answer, and each would print a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = [pool.submit(work, chunk) for chunk in chunks]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BrokenProcessPool as error:
            raise UsageError(
                "a scoring process was killed, most likely for memory; try fewer with --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
