"""Images of noise, the same in every call."""

from __future__ import annotations

import torch
from torch import Tensor


def random_images(batch: int = 2, height: int = 64, width: int | None = None) -> Tensor:
    """B × 3 × height × width, square where no width is given."""
    return torch.randn(batch, 3, height, width or height, generator=torch.Generator().manual_seed(3))
