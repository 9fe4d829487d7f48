"""Which frequencies a block's tokens hold (Park and Kim 2022, 2202.06709): the relative log amplitude of their spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6
"""Added to amplitudes before the logarithm, as in the authors' code."""


@torch.no_grad()
def half_diagonal(maps: Tensor) -> Tensor:
    """Log amplitude from frequency 0 towards (π, π), minus its first value, mean over images and channels.

    log(|fft2| + 1e-6) of every channel, moved so that frequency 0 is in the middle, averaged; the diagonal from the middle to
    the corner. Entry k is the frequency 2πk / side, k < side / 2. A shifted delta gives zeros, white noise ln(2) / 2 behind the
    first entry (frequency 0 is real, all others complex).

    Args:
        maps: (B, C, side, side), SAM's maps with its windows put together, timm's without the tokens in front.

    Raises:
        ValueError: the maps are not square.
    """
    if maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"a map of {maps.shape[-2]} × {maps.shape[-1]} tokens has no diagonal")
    side = maps.shape[-1]
    amplitude = torch.stack([torch.fft.fft2(one.float()).abs().add(FLOOR).log().mean(dim=0) for one in maps]).mean(
        dim=0
    )
    diagonal = torch.fft.fftshift(amplitude).diagonal()[side // 2 :]
    return diagonal - diagonal[0]
