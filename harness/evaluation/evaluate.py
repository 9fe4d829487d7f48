"""Evaluation of a split: forward passes in the calling thread, reading ahead and scoring behind them in others."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.evaluation.scorer import ImageScore, SplitScorer

Item = tuple[str, Tensor, NDArray[np.uint8], *tuple[Any, ...]]
"""stem, input (3, S, S), mask (H, W) at its own size, and whatever else of an image the prediction takes."""


def evaluate_split(
    predict: Callable[..., Tensor],
    items: Iterable[Item],
    scorer: SplitScorer,
    *,
    batch_size: int = 1,
    workers: int | None = None,
    seen: Callable[[str, NDArray[np.float32]], None] | None = None,
) -> SplitScorer:
    """Predict and score every item.

    NumPy and SciPy let go of the interpreter lock in their loops, and Pillow when it decodes, so threads read the next
    batch and score the last while one is computed. Scores do not depend on the number of threads or the order of items.

    Args:
        predict: inputs (B, 3, S, S) to probabilities (B, S, S) or (B, 1, S, S) of a binary benchmark, or class scores
            (B, C, S, S); on any device. Called without gradient, and with a list of each thing more that items hold.
        items: what to score; may be a generator that decodes as it goes, in another thread.
        scorer: takes the scores; may hold images already.
        batch_size: items a forward pass.
        workers: scoring threads; the machine's cores (at most 8) if None. With 0 all happens in the calling thread.
        seen: called with each stem and its scores, (S, S) or (C, S, S), in the order of items.

    Returns:
        ``scorer``.

    Raises:
        ValueError: the scorer cannot score a prediction (non-finite, wrong shape), with the image's stem.
    """
    threads = min(os.cpu_count() or 1, 8) if workers is None else workers
    batches, seen = _batches(items, batch_size), seen or (lambda stem, scores: None)
    if threads == 0:
        for stem, scores, mask in _predictions(predict, batches):
            seen(stem, scores)
            scorer.insert(stem, _measure(scorer, stem, scores, mask))
        return scorer
    pending: deque[tuple[str, Future[ImageScore]]] = deque()
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="metrics") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
    ):
        try:
            for stem, scores, mask in _predictions(predict, _ahead(batches, reader)):
                seen(stem, scores)
                pending.append((stem, pool.submit(_measure, scorer, stem, scores, mask)))
                while len(pending) > 2 * threads + batch_size:  # bounds what waits in memory
                    done, future = pending.popleft()
                    scorer.insert(done, future.result())
            for done, future in pending:
                scorer.insert(done, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return scorer


def _measure(scorer: SplitScorer, stem: str, scores: NDArray, mask: NDArray[np.uint8]) -> ImageScore:
    try:
        return scorer.measure(scores, mask)
    except ValueError as error:
        raise ValueError(f"image {stem!r}: {error}") from error


def _batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _ahead(batches: Iterator[list[Item]], reader: ThreadPoolExecutor) -> Iterator[list[Item]]:
    """The batches in their order, each read while the one before is in use."""
    coming = reader.submit(next, batches, None)
    while (batch := coming.result()) is not None:
        coming = reader.submit(next, batches, None)
        yield batch


def _predictions(
    predict: Callable[..., Tensor], batches: Iterator[list[Item]]
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    for batch in batches:
        with torch.no_grad():
            more = zip(*(item[3:] for item in batch), strict=True)
            scores = predict(torch.stack([item[1] for item in batch]), *map(list, more))
        if scores.ndim == 4 and scores.shape[1] == 1:
            scores = scores[:, 0]
        for item, values in zip(batch, scores.float().cpu().numpy(), strict=True):
            yield item[0], values, item[2]
