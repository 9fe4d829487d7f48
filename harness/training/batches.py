"""Which images form which batch, and which are flipped: pure functions of (seed, epoch, position).

Common random numbers: neither the method nor an interruption changes what a run sees, and a run resumes at any step. Random
numbers are hashes and not a library's generator, so that they are the same in every version of every library.
"""

from __future__ import annotations

import functools
import hashlib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class TrainingImages(typing.Protocol):
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


@functools.lru_cache(maxsize=8)  # every step of an epoch needs the same order
def shuffled(count: int, *key: int | str) -> tuple[int, ...]:
    """The indices 0 … count − 1 in an order that depends on ``key`` alone."""
    return tuple(sorted(range(count), key=lambda index: (draw_number(*key, index), index)))


def subset(count: int, limit: int, *, seed: int, split: str) -> list[int]:
    """Ascending indices of ``limit`` of ``count`` images (all of them if ``limit`` is 0); the rule of
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
        batch_size: images of one forward pass.
        accumulate: forward passes of one update.
        epoch_images: how many images make an epoch, 0 for ``indices``. Beyond those, they repeat in another order.
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
        """The last update of an epoch takes the remaining images, which may be fewer."""
        return -(-self._length // (self.batch_size * self.accumulate))

    @property
    def _length(self) -> int:
        return self.epoch_images or len(self.indices)

    def update(self, epoch: int, step: int, *, for_architecture: bool = False) -> list[list[int]]:
        """Image positions of update ``step`` in ``epoch`` (both 0-based): ``accumulate`` batches, fewer at the end of an epoch.

        Batches for the architecture come from the held-out part, or from ``indices`` where there is none. They repeat an order of
        their own.
        """
        part = self._part(for_architecture=for_architecture)

        def image(position: int) -> int:
            turn, rank = divmod(position, len(part))
            kind, turns = ("architecture", ()) if for_architecture else ("order", (turn,) if turn else ())
            return part[shuffled(len(part), kind, self.seed, epoch, *turns)[rank]]

        return self._batches(map(image, self._positions(step, for_architecture=for_architecture)))

    def turns(self, step: int, *, for_architecture: bool = False) -> list[list[int]]:
        """How often each image of `update` came earlier in the epoch; zeros where every image comes once."""
        count = len(self._part(for_architecture=for_architecture))
        return self._batches(k // count for k in self._positions(step, for_architecture=for_architecture))

    def _part(self, *, for_architecture: bool) -> Sequence[int]:
        return (for_architecture and self.held_out) or self.indices

    def _positions(self, step: int, *, for_architecture: bool) -> range:
        images = self.batch_size * self.accumulate
        end = (step + 1) * images
        return range(step * images, end if for_architecture else min(end, self._length))

    def _batches(self, values: Iterable[int]) -> list[list[int]]:
        every = list(values)
        return [every[k : k + self.batch_size] for k in range(0, len(every), self.batch_size)]

    def other_masks(self, images: Sequence[int]) -> list[int]:
        """For each image another one, whose mask it gets in an architecture step under ``shuffle_masks``, the same in every epoch.

        The images form a circle of random order, and each has the mask of the next.
        """
        circle = [self.indices[rank] for rank in shuffled(len(self.indices), "masks", self.seed)]
        following = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        return [following[image] for image in images]

    def flipped(self, epoch: int, index: int, turn: int = 0) -> bool:
        """Whether image ``index`` is mirrored in ``epoch`` when it recurs for the ``turn``-th time."""
        turns = (turn,) if turn else ()
        return draw_number("flip", self.seed, epoch, index, *turns) < self.flip * 2**64


def load_one(source: TrainingImages, index: int, *, flip: bool, mask: int) -> tuple[Tensor, Tensor]:
    """An image (3, S, S) uint8 and the target (S, S) uint8 of image ``mask``, both mirrored if ``flip``."""
    # The image first, as one item may decode both at once.
    return _mirrored(source.image(index), flip=flip), _mirrored(source.mask_input(mask), flip=flip)


def _mirrored(array: Any, *, flip: bool) -> Tensor:
    pixels = np.asarray(array)
    return torch.from_numpy(pixels[..., ::-1].copy() if flip else pixels)
