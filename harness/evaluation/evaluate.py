"""Evaluation of a split: forward passes in the calling thread; images, masks and metrics in threads on all cores."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from harness.datasets.base import IGNORE
from harness.evaluation.scorer import ImageScore, SplitScorer
from harness.models.device import to_host
from harness.system.machine import cores

Item = tuple[str, Tensor, NDArray[np.uint8], *tuple[Any, ...]]
"""stem, input (3, S, S), mask (H, W) at its own size, and further inputs of the prediction, such as prompts."""


class Stopped(Exception):
    """An evaluation was stopped. None of its scores count, and it is repeated."""


def evaluate_split(
    predict: Callable[..., Tensor],
    items: Sequence[Item],
    scorer: SplitScorer,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    seen: Callable[[str, NDArray], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> SplitScorer:
    """Predict and score every item.

    Threads read the next batches and score the last ones while one is computed: NumPy, SciPy and Pillow release the interpreter lock. A
    GPU gets the next batch before anything waits for the results of the last. Scores do not depend on the number of threads or the order
    of items.

    Args:
        predict: inputs (B, 3, S, S) to probabilities (B, S, S) or (B, 1, S, S) of a binary benchmark, else to class scores
            (B, C, S, S). Its output may be on any device; a GPU makes the labels of several classes itself. Called without gradient, with
            one more list for each further input that items hold.
        items: may decode an item when it is read, in any thread.
        scorer: takes the scores; may hold images already.
        batch_size: items per forward pass.
        workers: threads; one per core if None.
        seen: called with each stem and its scores, (S, S) or (C, S, S), in the order of items; for several classes on a GPU with the
            labels (S, S) uint8.
        stop: called before each batch.

    Returns:
        ``scorer``.

    Raises:
        ValueError: a prediction that cannot be scored (not finite, wrong shape), with the image's stem.
        Stopped: ``stop`` returned True.
    """
    threads = cores() if workers is None else workers
    pending: deque[tuple[str, Future[ImageScore]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            ahead = _ahead(items, pool, threads + 2 * batch_size)
            for batch, wait in _predictions(predict, ahead, scorer, batch_size, stop=stop, shown=seen is not None):
                for item, (scores, shown) in zip(batch, wait(), strict=True):
                    if seen is not None:
                        seen(item[0], shown)
                    pending.append((item[0], pool.submit(_measure, scorer, item[0], scores, item[2])))
                while len(pending) > 2 * threads + batch_size:  # bounds how many wait in memory
                    stem, future = pending.popleft()
                    scorer.insert(stem, future.result())
            for stem, future in pending:
                scorer.insert(stem, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scorer


def _measure(scorer: SplitScorer, stem: str, scores: NDArray, mask: NDArray[np.uint8]) -> ImageScore:
    try:
        return scorer.measure(scores, mask)
    except ValueError as error:
        raise ValueError(f"image {stem!r}: {error}") from error


def _ahead(items: Sequence[Item], pool: ThreadPoolExecutor, count: int) -> Iterator[Item]:
    """The items in their order; ``count`` of them are read ahead."""
    coming: deque[Future[Item]] = deque()
    for index in range(len(items)):
        coming.append(pool.submit(items.__getitem__, index))
        if len(coming) > count:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


Scored = Callable[[], Iterable[tuple[NDArray, NDArray]]]
"""Waits for a batch; yields, for each image, what is scored and what `seen` gets."""


def _predictions(
    predict: Callable[..., Tensor],
    items: Iterator[Item],
    scorer: SplitScorer,
    batch_size: int,
    *,
    stop: Callable[[], bool],
    shown: bool,
) -> Iterator[tuple[list[Item], Scored]]:
    """Batches, each with a function that waits for its scores, after the next one has been started."""
    before: tuple[list[Item], Scored] | None = None
    while batch := [item for _, item in zip(range(batch_size), items, strict=False)]:
        if stop():
            raise Stopped
        with torch.no_grad():
            more = zip(*(item[3:] for item in batch), strict=True)
            scores = predict(torch.stack([item[1] for item in batch]), *map(list, more))
            scores = (scores[:, 0] if scores.ndim == 4 and scores.shape[1] == 1 else scores).float()
            # Scores of several classes are some hundred times as large as their labels.
            as_labels = scores.is_cuda and scores.ndim == 4 and scorer.task == "multiclass"
            wait = _labels(scores, batch, scorer, shown=shown) if as_labels else _whole(scores)
        if before is not None:
            yield before
        before = batch, wait
    if before is not None:
        yield before


def _whole(scores: Tensor) -> Scored:
    """All scores as they are."""
    wait = to_host(scores)
    return lambda: ((each, each) for each in wait().numpy())


def _labels(scores: Tensor, batch: Sequence[Item], scorer: SplitScorer, *, shown: bool) -> Scored:
    """The labels of scores (B, C, S, S), made on their device: at each mask's own size where the conventions compare there, and at that of
    the scores where they are shown. One byte per pixel leaves the device. Non-finite scores become a label that scorers refuse."""
    native = scorer.conventions.resolution == "native"
    sizes = [tuple(item[2].shape) if native else tuple(scores.shape[-2:]) for item in batch]
    made = [
        _argmax(interpolate(each[None], size=size, mode="bilinear", align_corners=False)[0])
        for each, size in zip(scores, sizes, strict=True)
    ]
    whole = [_argmax(each) for each in scores] if shown else []
    wait = to_host(torch.cat([labels.flatten() for labels in (*made, *whole)]))

    def arrays() -> Iterator[tuple[NDArray, NDArray]]:
        flat = wait().numpy()
        shapes = [*sizes, *(tuple(scores.shape[-2:]) for _ in whole)]
        parts = np.split(flat, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
        maps = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return zip(maps[: len(made)], maps[len(made) :] if shown else maps, strict=True)

    return arrays


def _argmax(scores: Tensor) -> Tensor:
    """(C, H, W) to the labels (H, W) uint8."""
    return torch.where(scores.isfinite().all(), scores.argmax(dim=0), IGNORE).to(torch.uint8)
