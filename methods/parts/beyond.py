"""What the operations beyond DARTS's compute, without the ReLU before and the norm behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.parts.initialisation import kaiming_uniform
from harness.methods.parts.kernels import chain
from harness.methods.parts.operations import BEYOND

LARGEST = 0.25
"""Cycles a token up to which a frequency passes; 0.5 is the largest there is."""


class BeyondDarts(nn.Module):
    """The operations of `harness.methods.parts.operations.BEYOND` among ``operations``, each linear in its map.

    Args:
        operations: names; others are passed over.
        channels: C.
        generator: source of the initial weights, drawn as PyTorch starts a convolution.
    """

    def __init__(self, operations: Sequence[str], *, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        if "dw_conv_7x7" in operations:
            self.depthwise = nn.Parameter(kaiming_uniform((channels, 1, 7, 7), fan_in=49, generator=generator))
        if "conv_1x3_3x1" in operations:
            fan_in = 3 * channels
            self.row = nn.Parameter(kaiming_uniform((channels, channels, 1, 3), fan_in=fan_in, generator=generator))
            self.column = nn.Parameter(kaiming_uniform((channels, channels, 3, 1), fan_in=fan_in, generator=generator))

    def operate(self, name: str, maps: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        if name == "low_pass":
            return low_pass(maps)
        if name == "dw_conv_7x7":
            return F.conv2d(maps, self.depthwise, padding=3, groups=maps.shape[1])
        return F.conv2d(F.conv2d(maps, self.row, padding=(0, 1)), self.column, padding=(1, 0))

    def kernel(self, name: str) -> Tensor:
        """The dense kernel (C, C, k, k), k the operation's reach, that gives the same with zero padding of k // 2, at the
        borders too: rows beyond a border stay zero under the 1×3 convolution, which has no bias."""
        if name == "dw_conv_7x7":
            return torch.diag_embed(self.depthwise[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
        square = F.pad(self.row, (0, 0, 1, 1)), F.pad(self.column, (1, 1, 0, 0))
        whole = chain(square[0][None], square[1][None])[0]
        rim = (whole.shape[-1] - BEYOND[name].reach) // 2
        return whole[..., rim:-rim, rim:-rim]


def low_pass(maps: Tensor) -> Tensor:
    """The part of each map (B, C, h, w) whose frequencies are at most `LARGEST` along both axes; maps are periodic in it."""
    height, width = maps.shape[-2:]
    rows = torch.fft.fftfreq(height, device=maps.device).abs() <= LARGEST
    columns = torch.fft.rfftfreq(width, device=maps.device) <= LARGEST
    spectrum = torch.fft.rfft2(maps) * (rows[:, None] & columns)
    return torch.fft.irfft2(spectrum, s=(height, width))
