"""What of a method went into the backbone, and how far the merged model is from the unmerged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(kw_only=True)
class Folding:
    """Sites whose update went into the backbone whole or in part, and those that keep one, with the reason.

    Args:
        extra_parameters: that inference still needs beyond the plain backbone.
    """

    folded: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    extra_parameters: int = 0


@torch.no_grad()
def predictions(segmenter: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Logits of every batch (B, 3, H, W) in evaluation mode; the mode it was in is put back."""
    training = segmenter.training
    segmenter.eval()
    try:
        return [leading(segmenter(batch)).float() for batch in batches]
    finally:
        segmenter.train(training)


def leading(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The mask logits of a segmenter's output, which a multi-class head puts first."""
    return output if isinstance(output, Tensor) else output[0]


def deviation(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """Largest absolute difference and ‖after − before‖ / ‖before‖ over all batches; None, None without batches."""
    if not before:
        return None, None
    largest = max(float((b - a).abs().max()) for b, a in zip(before, after, strict=True))
    difference = sum(float((b - a).double().square().sum()) for b, a in zip(before, after, strict=True))
    norm = sum(float(b.double().square().sum()) for b in before)
    return largest, (difference / norm) ** 0.5 if norm else 0.0
