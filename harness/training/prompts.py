"""Prompts from the ground truth: a box or points for each object of a mask, a pure function of the mask, the rules and a key.

Objects are the connected parts of what is not background (8 neighbours; ignored pixels belong to none) in the mask that the
network is compared with, at its input's size. An image without any has no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from harness.datasets.base import IGNORE
from harness.models.device import to_device
from harness.models.segmenter import Prompts
from harness.protocols.protocol import Protocol
from harness.training.batches import draw_number

MOST_OBJECTS = 16
"""Only this many of an image's largest objects get a prompt, since each costs a pass of the decoder."""

Coordinates = NDArray[np.float32]
"""Prompts for an image's objects: boxes (n, 4) as left, top, right, bottom, or points (n, k, 2) as x, y; in pixels of the input, the
first of which has its centre at 0, as segment_anything counts them."""


def prompts_of(mask: NDArray[np.uint8], rules: Protocol, *key: int | str, moved: float) -> Coordinates:
    """The prompts of one image under ``rules.prompt``.

    Args:
        mask: (S, S) class index, 255 = ignore.
        key: what random numbers depend on: the seed, the image and, in training, the epoch.
        moved: each edge of a box moves by at most this share of the box's side.
    """
    parts, count = ndimage.label((mask != 0) & (mask != IGNORE), structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:MOST_OBJECTS]

    def uniform(*which: int) -> float:
        """Uniform in [0, 1)."""
        return draw_number("prompt", *key, *which) / 2**64

    prompts: list[NDArray[Any]] = []
    for number, index in enumerate(largest):
        rows, columns = np.nonzero(parts == index + 1)
        if rules.prompt == "points":
            chosen = [int(uniform(number, point) * len(rows)) for point in range(rules.prompt_points)]
            prompts.append(np.stack([columns[chosen], rows[chosen]], axis=1))
            continue
        box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], dtype=np.float64)
        if moved:
            sides = np.tile(box[2:] - box[:2] + 1, 2)
            shifts = np.array([2 * uniform(number, edge) - 1 for edge in range(4)])
            box = np.clip(box + moved * sides * shifts, 0, np.tile(mask.shape[::-1], 2) - 1)
        prompts.append(box)
    shape = (0, 4) if rules.prompt == "box" else (0, rules.prompt_points, 2)
    return np.array(prompts, dtype=np.float32) if prompts else np.zeros(shape, dtype=np.float32)


def together(each: Sequence[Coordinates], *, device: torch.device | None = None) -> Prompts:
    """The prompts of a batch, from those of its images."""
    image = torch.from_numpy(np.repeat(np.arange(len(each)), [len(prompts) for prompts in each]))
    where: Tensor = torch.from_numpy(np.concatenate(each))
    where = where if device is None else to_device(where, device)
    boxes = where.ndim == 2
    return Prompts(image=image, boxes=where if boxes else None, points=None if boxes else where)
