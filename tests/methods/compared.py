"""A method on a small segmenter, and two computations held side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from harness.models.build import build_segmenter
from harness.registry import METHODS, method_config


def attached(name: str, *, backbone: str = "tiny", seed: int = 1, **options: Any) -> tuple[Any, Any]:
    """A segmenter of images of 64 pixels, and the method on it."""
    segmenter = build_segmenter(backbone, task="binary", image_size=64)
    method = METHODS.get(name)(method_config(name, options), seed=seed)
    method.attach(segmenter)
    return segmenter, method


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """In shares of the number, and of the largest one."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max()))


def require_alike(
    ours: Tensor, theirs: Tensor, pairs: Iterable[tuple[Any, Any]], *, tolerance: float, of_gradients: float
) -> None:
    """Outputs are, and so are the gradients of their parameters, of which none is zero."""
    near(ours, theirs, tolerance)
    weights = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for output in (ours, theirs):
        (output * weights).sum().backward()
    for own, other in pairs:
        assert own.grad.abs().max() > 0
        near(own.grad.reshape(other.shape), other.grad, of_gradients)
