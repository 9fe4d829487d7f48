"""How far a merged model is from the unmerged one, measured on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
