"""What losses read and return: a prediction, a target, and this worker's share of the loss of the global batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol as Shape

from torch import Tensor
from torch.nn import functional as F

IGNORE = 255
Total = Callable[[Tensor], Tensor]
"""Sums a tensor without gradient over all workers."""


class Prediction(Shape):
    """What a loss reads: masks (B, K, h, w) logits, classes (B, K, C + 1) logits or None."""

    @property
    def masks(self) -> Tensor: ...
    @property
    def classes(self) -> Tensor | None: ...


def alone(value: Tensor) -> Tensor:
    """The `Total` of a single worker."""
    return value


class Loss(ABC):
    """A task loss; call it with a prediction, a target (B, S, S) uint8 and, with several workers, their `Total`."""

    @abstractmethod
    def __call__(self, prediction: Prediction, target: Tensor, *, total: Total = alone) -> Tensor:
        """This worker's share, a scalar with gradient, in fp32 whatever the precision of the prediction."""


def upsampled(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, K, h, w) as fp32 at ``size``, bilinear without aligned corners, as Conv-LoRA released (256 to
    1024)."""
    return F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False)
