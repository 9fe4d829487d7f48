"""Which images meet in which batch, and which are flipped: pure functions of (seed, epoch, position).

Common random numbers: no method, worker count or interruption shifts what another run sees, and a run resumes at any step by asking for
that step's batch. Draws are hashes instead of a library's generator, so that they are the same in every version of
every library.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Shape

import numpy as np
import torch
from torch import Tensor


class TrainingImages(Shape):
    """Images at the network's input size, by position in the training split."""

    def __len__(self) -> int: ...
    def image(self, index: int, /) -> Any:
        """(3, S, S) uint8 RGB."""
        ...

    def mask_input(self, index: int, /) -> Any:
        """(S, S) uint8 class index, 255 = ignore."""
        ...


def draw_number(*key: int | str) -> int:
    """A uniform 64-bit integer that depends on ``key`` alone."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@functools.lru_cache(maxsize=8)  # every step of an epoch asks for the same order
def shuffled(count: int, *key: int | str) -> tuple[int, ...]:
    """The indices 0 … count − 1 in an order that depends on ``key`` alone."""
    return tuple(sorted(range(count), key=lambda index: (draw_number(*key, index), index)))


def subset(count: int, limit: int, *, seed: int, split: str) -> list[int]:
    """Ascending indices of ``limit`` of ``count`` images (all of them if ``limit`` is 0); the rule behind
    ``train_limit``.

    A smaller limit chooses a subset of a larger one's images.
    """
    if not limit or limit >= count:
        return list(range(count))
    return sorted(shuffled(count, "limit", seed, split)[:limit])


def hold_out(count: int, fraction: float, *, seed: int) -> tuple[list[int], list[int]]:
    """(kept, held out): positions of the training split for weights, and ``fraction`` of it for architecture steps.

    Both parts hold at least one image if ``fraction`` is not 0.
    """
    if not fraction:
        return list(range(count)), []
    held = min(max(1, round(count * fraction)), count - 1)
    order = shuffled(count, "hold-out", seed)
    return sorted(order[held:]), sorted(order[:held])


@dataclass(frozen=True, kw_only=True)
class UpdatePlan:
    """The updates of every epoch.

    Args:
        indices: positions in the training split that weights learn from.
        held_out: positions for architecture steps, empty if they use ``indices``.
        shuffle_masks: whether each image of an architecture step has the mask of another one.
        batch_size: images of one forward pass over all workers.
        accumulate: forward passes of one update.
        epoch_images: how many images make an epoch, 0 for ``indices``. Beyond those, they come again in another order.
        flip: probability of a horizontal flip.
        seed: the run's seed.
    """

    indices: Sequence[int]
    held_out: Sequence[int] = ()
    shuffle_masks: bool = False
    batch_size: int
    accumulate: int = 1
    epoch_images: int = 0
    flip: float = 0.0
    seed: int = 0

    @property
    def updates_per_epoch(self) -> int:
        """The last update of an epoch takes what is left, be it fewer images."""
        return -(-self._length // (self.batch_size * self.accumulate))

    @property
    def _length(self) -> int:
        return self.epoch_images or len(self.indices)

    def update(self, epoch: int, step: int, *, for_architecture: bool = False) -> list[list[int]]:
        """Image positions of update ``step`` in ``epoch`` (both 0-based): ``accumulate`` batches, fewer at the end of
        an epoch.

        Batches for the architecture are of the held-out part, or of ``indices`` where there is none, and go round and
        round through an order of their own.
        """
        images = self.batch_size * self.accumulate
        if for_architecture:
            part = self.held_out or self.indices
            order = shuffled(len(part), "architecture", self.seed, epoch)
            chosen = [part[order[(step * images + k) % len(order)]] for k in range(images)]
        else:
            places = range(step * images, min((step + 1) * images, self._length))
            chosen = [self.indices[self._order(epoch, k // len(self.indices))[k % len(self.indices)]] for k in places]
        return [chosen[k : k + self.batch_size] for k in range(0, len(chosen), self.batch_size)]

    def turns(self, step: int, *, for_architecture: bool = False) -> list[list[int]]:
        """How often each image of `update` came before in the epoch; where all come once, a list of zeros."""
        images, part = self.batch_size * self.accumulate, len(self.indices)
        end = (step + 1) * images
        if for_architecture:
            part = len(self.held_out or self.indices)
        else:
            end = min(end, self._length)
        turns = [k // part for k in range(step * images, end)]
        return [turns[k : k + self.batch_size] for k in range(0, len(turns), self.batch_size)]

    def other_masks(self, images: Sequence[int]) -> list[int]:
        """For each image another one, whose mask it gets in an architecture step under ``shuffle_masks``, the same in every
        epoch: the images stand in a circle of drawn order, and each has the mask of the next."""
        circle = [self.indices[place] for place in shuffled(len(self.indices), "masks", self.seed)]
        following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        return [following[image] for image in images]

    def _order(self, epoch: int, turn: int) -> tuple[int, ...]:
        again = (turn,) if turn else ()
        return shuffled(len(self.indices), "order", self.seed, epoch, *again)

    def flipped(self, epoch: int, index: int, turn: int = 0) -> bool:
        """Whether image ``index`` is mirrored in ``epoch`` when it comes for the ``turn``-th time after its first."""
        again = (turn,) if turn else ()
        return draw_number("flip", self.seed, epoch, index, *again) < self.flip * 2**64


def slice_of(batch: Sequence[int], *, rank: int, size: int) -> list[int]:
    """The part of a global batch that worker ``rank`` of ``size`` takes; parts are disjoint and cover the batch, some
    may be empty."""
    return list(batch[rank * len(batch) // size : (rank + 1) * len(batch) // size])


def load_one(
    source: TrainingImages, index: int, *, flip: bool, mask: int, with_image: bool
) -> tuple[Tensor | None, Tensor]:
    """An image (3, S, S) uint8, None if it is not wanted, and the target (S, S) uint8 of image ``mask``, both mirrored where ``flip``."""
    image = _mirrored(source.image(index), flip=flip) if with_image else None  # one item may decode both at once
    return image, _mirrored(source.mask_input(mask), flip=flip)


def _mirrored(array: Any, *, flip: bool) -> Tensor:
    pixels = np.asarray(array)
    return torch.from_numpy(pixels[..., ::-1].copy() if flip else pixels)
