"""What trained weights start from, drawn from a generator that is handed in."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kaiming_uniform(shape: tuple[int, ...], *, fan_in: int, generator: torch.Generator) -> Tensor:
    """U(−b, b) with b = 1/√fan_in: what PyTorch's layers start from (Kaiming-uniform with a = √5)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
