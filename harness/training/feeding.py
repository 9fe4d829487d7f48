"""From positions in the training split to predictions: loading ahead in the background, normalising, cached
embeddings."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.segmenter import Prompts
from harness.protocols.card import Protocol
from harness.training.batches import TrainingImages, UpdatePlan, load_batch, slice_of
from harness.training.distributed import Workers
from harness.training.embeddings import EmbeddingCache
from harness.training.precision import autocast, products
from harness.training.prediction import Loss, Prediction
from harness.training.prefix import FrozenPrefix
from harness.training.prompts import prompts_of, together


def normalise(images: Tensor, pixels: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """(B, 3, S, S) uint8 RGB to fp32, by mean and standard deviation of RGB in [0, 1]."""
    shape = (1, 3, 1, 1)
    centre, spread = (torch.tensor(values, device=images.device).view(shape) for values in pixels)
    return (images.float() / 255 - centre) / spread


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This worker's part of one forward pass.

    Args:
        indices: positions in the training split.
        flips: which of them are mirrored.
        images: (B, 3, S, S) uint8, mirrored; None if all embeddings are cached.
        targets: (B, S, S) uint8 class indices, mirrored.
        share: this worker's fraction of the global batch; 0 for a worker that got no image and runs one along, so that
            it takes part in what workers do together, without counting.
        passes: the images of the whole update over those of this pass: the number of passes, where they are of one size.
        prompts: what points out the objects of ``targets``; None under a protocol without prompts.
    """

    indices: list[int]
    flips: list[bool]
    images: Tensor | None
    targets: Tensor
    share: float
    passes: float = 1.0
    prompts: Prompts | None = None


LOADERS = 4
"""Threads that decode images; the CPU's cores if it has fewer."""


class Feeder:
    """Loads the next updates' images while this one computes, and turns a batch into a prediction.

    Use as a context manager; `prepare` updates, `take` them in the same order, `predict` each of their batches.

    Args:
        segmenter: see `harness.models.segmenter`.
        images: the training split.
        plan: which images when.
        protocol: normalisation, precision.
        device: where to compute.
        workers: for this worker's slice.
        embeddings: cache of the frozen encoder, or of the tokens of ``prefix``; None to run the encoder every time.
        prefix: the part of the encoder whose tokens ``embeddings`` holds; None where it holds what the encoder gives.
    """

    def __init__(
        self,
        segmenter: nn.Module,
        images: TrainingImages,
        *,
        plan: UpdatePlan,
        protocol: Protocol,
        device: torch.device,
        workers: Workers,
        embeddings: EmbeddingCache | None,
        prefix: FrozenPrefix | None = None,
    ) -> None:
        self._segmenter: Any = segmenter
        self._images = images
        self._plan = plan
        self._protocol = protocol
        self._device = device
        self._workers = workers
        self._embeddings = embeddings
        self._prefix = prefix
        self._loader = ThreadPoolExecutor(min(LOADERS, os.cpu_count() or 1), thread_name_prefix="feeder")
        self._pending: deque[Future[list[Batch]]] = deque()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.shutdown(cancel_futures=True)

    def prepare(self, epoch: int, step: int, *, for_architecture: bool = False, other_masks: bool = False) -> None:
        """Start loading an update, with the masks of other images where ``other_masks`` says so; see `UpdatePlan`."""
        self._pending.append(self._loader.submit(self._load, epoch, step, for_architecture, other_masks))

    def take(self) -> tuple[list[Batch], float]:
        """The update that was prepared first, on the device, and the seconds spent waiting for it."""
        begun = time.monotonic()
        batches = self._pending.popleft().result()
        waited = time.monotonic() - begun
        return [self._to_device(batch) for batch in batches], waited

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The protocol's precision for a forward pass."""
        return autocast(self._protocol, self._device)

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the backward pass of what `autocast` computed."""
        return products(self._protocol, self._device)

    def predict(self, batch: Batch) -> Prediction:
        """Logits of the batch."""
        given = () if batch.prompts is None else (batch.prompts,)
        if self._embeddings is None:
            assert batch.images is not None
            return self._segmenter(self._normalised(batch.images), *given)
        kept = self._embed(batch, self._embeddings)
        if self._prefix is not None:
            side = self._protocol.image_size
            kept = self._prefix.embedding(kept, size=(side, side))
        return self._segmenter.prompted(kept, *given) if given else self._segmenter.decode(kept)

    def _load(self, epoch: int, step: int, for_architecture: bool, other_masks: bool) -> list[Batch]:  # noqa: FBT001 - submitted, not called
        batches = []
        passes = self._plan.update(epoch, step, for_architecture=for_architecture)
        turns_of = self._plan.turns(step, for_architecture=for_architecture)
        for whole, all_turns in zip(passes, turns_of, strict=True):
            part, turns = (
                slice_of(each, rank=self._workers.rank, size=self._workers.size) for each in (whole, all_turns)
            )
            indices, turns = part or whole[:1], turns or all_turns[:1]
            flips = [self._plan.flipped(epoch, index, turn) for index, turn in zip(indices, turns, strict=True)]
            cache = self._embeddings
            cached = cache is not None and all(
                cache.ready(index, flip=flip) for index, flip in zip(indices, flips, strict=True)
            )
            masks = self._plan.other_masks(indices) if other_masks else indices
            images, targets = load_batch(self._images, indices, flips, masks=masks, with_images=not cached)
            if self._device.type == "cuda":
                targets = targets.pin_memory()
                images = None if images is None else images.pin_memory()
            batches.append(
                Batch(
                    indices=indices,
                    flips=flips,
                    images=images,
                    targets=targets,
                    share=len(part) / len(whole),
                    passes=sum(map(len, passes)) / len(whole),
                    prompts=self._prompts(epoch, indices, turns, targets),
                )
            )
        return batches

    def _prompts(self, epoch: int, indices: Sequence[int], turns: Sequence[int], targets: Tensor) -> Prompts | None:
        if self._protocol.prompt == "none":
            return None
        masks, key = zip(indices, turns, targets.numpy(), strict=True), (self._plan.seed, epoch)
        each = [
            prompts_of(mask, self._protocol, *key, index, *([turn] if turn else []), training=True)
            for index, turn, mask in masks
        ]
        return together(each, device=self._device)

    def _to_device(self, batch: Batch) -> Batch:
        images = batch.images
        if images is not None and self._embeddings is None:
            images = images.to(self._device, non_blocking=True)
        targets = batch.targets.to(self._device, non_blocking=True)
        return replace(batch, images=images, targets=targets)

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self._protocol.pixels)

    def _embed(self, batch: Batch, cache: EmbeddingCache) -> Tensor:
        """(B, D, h, w), or tokens, from the cache; each image that is missing is encoded alone."""
        encoded = self._segmenter.encode if self._prefix is None else self._prefix.tokens
        embeddings = []
        for place, (index, flip) in enumerate(zip(batch.indices, batch.flips, strict=True)):
            image = None if batch.images is None else batch.images[place]

            def encode(image: Tensor | None = image) -> Tensor:
                assert image is not None
                with torch.no_grad():
                    return encoded(self._normalised(image[None].to(self._device)))[0]

            embeddings.append(cache.get(index, flip=flip, image=image, encode=encode))
        return torch.stack(embeddings).to(self._device)


def task_loss(loss: Loss, prediction: Prediction, batch: Batch, *, workers: Workers) -> Tensor:
    """This worker's share of the loss; nothing from a worker that only runs along."""
    if not batch.share:
        return 0 * loss(prediction, batch.targets, total=lambda value: workers.total(0 * value))
    return loss(prediction, batch.targets, total=workers.total)
