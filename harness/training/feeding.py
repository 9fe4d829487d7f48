"""From positions in the training split to predictions: loading in the background, normalisation, cached embeddings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.models.device import autocast, channels, to_device
from harness.models.segmenter import Prompts, SegmenterOutput
from harness.protocols.protocol import Protocol
from harness.system.machine import cores
from harness.training.batches import TrainingImages, UpdatePlan, load_one
from harness.training.cache import EmbeddingCache, KnownEmbedding
from harness.training.prompts import prompts_of, together


def normalise(images: Tensor, pixels: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """(B, 3, S, S) uint8 RGB to fp32, by mean and standard deviation of RGB in [0, 1]."""
    centre, spread = (channels(tuple(values), images.device) for values in pixels)
    return (images.float() / 255 - centre) / spread


class Batch(NamedTuple):
    """The images of one forward pass.

    Args:
        entries: (index, flipped) of each image.
        images: (B, 3, S, S) uint8, mirrored.
        known: what the cache of a frozen encoder holds for each image; empty without a cache.
        targets: (B, S, S) uint8 class indices, mirrored.
        passes: the images of the whole update divided by those of this pass; the number of passes where all have one size.
        prompts: of the objects in ``targets``; None under a protocol without prompts.
    """

    entries: list[tuple[int, bool]]
    images: Tensor
    targets: Tensor
    known: Sequence[KnownEmbedding] = ()
    passes: float = 1.0
    prompts: Prompts | None = None


LOOKAHEAD = 2
"""Number of updates that load while one computes."""


class Feeder:
    """Loads the next updates' images while this one computes, on all cores, and turns a batch into a prediction.

    Use as a context manager; `prepare` updates, `take` them in the same order, `predict` each of their batches.

    Args:
        segmenter: see `harness.models.segmenter`.
        images: the training split.
        plan: which images form which update.
        protocol: normalisation, precision, augmentations.
        device: where to compute.
        embeddings: cache of the frozen encoder; None to run the encoder every time.
    """

    def __init__(
        self,
        segmenter: nn.Module,
        images: TrainingImages,
        *,
        plan: UpdatePlan,
        protocol: Protocol,
        device: torch.device,
        embeddings: EmbeddingCache | None,
    ) -> None:
        self._segmenter: Any = segmenter
        self._images = images
        self._plan = plan
        self._protocol = protocol
        self._device = device
        self._embeddings = embeddings
        # Two pools, as assembling an update waits for reading its images. There is one reader per core, so each computes on one thread.
        self._readers = ThreadPoolExecutor(
            cores(), thread_name_prefix="feeder", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._updates = ThreadPoolExecutor(LOOKAHEAD + 1, thread_name_prefix="feeder-update")
        self._pending: deque[Future[list[Batch]]] = deque()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._updates.shutdown(cancel_futures=True)
        if self._embeddings is not None:
            self._embeddings.flush()

    def prepare(self, epoch: int, step: int, *, for_architecture: bool = False, other_masks: bool = False) -> None:
        """Start loading an update, with the masks of other images under ``other_masks``; see `UpdatePlan`."""
        self._pending.append(
            self._updates.submit(self._load, epoch, step, for_architecture=for_architecture, other_masks=other_masks)
        )

    def take(self) -> tuple[list[Batch], float]:
        """The update that was prepared first, on the device, and the seconds spent waiting for it."""
        begun = time.monotonic()
        batches = self._pending.popleft().result()
        waited = time.monotonic() - begun
        return [self._to_device(batch) for batch in batches], waited

    def predict(self, batch: Batch) -> SegmenterOutput:
        """Logits of the batch, in the protocol's precision."""
        return predicted(
            self._segmenter,
            self._protocol,
            batch.images,
            device=self._device,
            known=batch.known,
            prompts=batch.prompts,
            cache=self._embeddings,
        )

    def _load(self, epoch: int, step: int, *, for_architecture: bool, other_masks: bool) -> list[Batch]:
        batches = []
        passes = self._plan.update(epoch, step, for_architecture=for_architecture)
        turns_of = self._plan.turns(step, for_architecture=for_architecture)
        for indices, turns in zip(passes, turns_of, strict=True):
            flips = [self._plan.flipped(epoch, index, turn) for index, turn in zip(indices, turns, strict=True)]
            entries = list(zip(indices, flips, strict=True))
            masks = self._plan.other_masks(indices) if other_masks else indices
            loading = [
                self._readers.submit(self._read, epoch, index, turn, flip=flip, mask=mask)
                for (index, flip), turn, mask in zip(entries, turns, masks, strict=True)
            ]
            loaded = [future.result() for future in loading]
            targets = torch.stack([target for _, target, _ in loaded])
            batches.append(
                Batch(
                    entries=entries,
                    known=[each for _, _, each in loaded if each is not None],
                    images=self._pinned(torch.stack([image for image, _, _ in loaded])),
                    targets=self._pinned(targets),
                    passes=sum(map(len, passes)) / len(indices),
                    prompts=self._prompts(epoch, indices, turns, targets),
                )
            )
        return batches

    def _read(
        self, epoch: int, index: int, turn: int, *, flip: bool, mask: int
    ) -> tuple[Tensor, Tensor, KnownEmbedding | None]:
        """An image, its target, and what the cache of embeddings holds for the image."""
        image, target = load_one(self._images, index, flip=flip, mask=mask)
        if self._embeddings is not None:
            return image, target, self._embeddings.look_up(image)
        if not self._protocol.augment:
            return image, target, None
        from harness.training.augmentations import augmented  # importing torchvision takes a second

        return *augmented(image, target, self._protocol.augment, self._plan.seed, epoch, index, turn), None

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _prompts(self, epoch: int, indices: Sequence[int], turns: Sequence[int], targets: Tensor) -> Prompts | None:
        rules = self._protocol
        if rules.prompt == "none":
            return None
        masks, key = zip(indices, turns, targets.numpy(), strict=True), (self._plan.seed, epoch)
        each = [
            prompts_of(mask, rules, *key, index, *([turn] if turn else []), moved=rules.prompt_jitter)
            for index, turn, mask in masks
        ]
        return together(each, device=self._device)

    def _to_device(self, batch: Batch) -> Batch:
        images = batch.images
        if self._embeddings is None:
            images = images.to(self._device, non_blocking=True)
        return batch._replace(images=images, targets=batch.targets.to(self._device, non_blocking=True))


def predicted(
    segmenter: Any,
    protocol: Protocol,
    images: Tensor,
    *,
    device: torch.device,
    known: Sequence[KnownEmbedding] = (),
    prompts: Prompts | None = None,
    cache: EmbeddingCache | None = None,
) -> SegmenterOutput:
    """Logits of images (B, 3, S, S) uint8, in the protocol's precision.

    Args:
        known: what ``cache`` holds for each image. Those that it lacks are encoded alone.
    """
    given = () if prompts is None else (prompts,)
    with autocast(protocol.precision, device):
        if cache is None:
            return segmenter(normalise(to_device(images, device), protocol.pixels), *given)
        encode = partial(encoded, segmenter, protocol, device=device)
        kept = [cache.get(there, partial(encode, image)) for image, there in zip(images, known, strict=True)]
        embedding = torch.stack([to_device(each, device) for each in kept])
        return segmenter.prompted(embedding, *given) if given else segmenter.decode(embedding)


@torch.no_grad()
def encoded(segmenter: Any, protocol: Protocol, image: Tensor, *, device: torch.device) -> Tensor:
    """The embedding (C, h, w) of one image (3, S, S) uint8, encoded alone."""
    return segmenter.encode(normalise(to_device(image[None], device), protocol.pixels))[0]
