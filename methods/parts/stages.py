"""The weights of a cell's separable convolutions, side by side, so that one product makes all kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.parts.initialisation import kaiming_uniform
from harness.methods.parts.operations import CONVOLUTIONS

SIDE = max(form.kernel for form in CONVOLUTIONS.values())
"""Taps a side that a kernel is widened to; with padding to match, the zeros around a smaller one change nothing."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Depthwise k×k, then pointwise; no bias.

    Args:
        depthwise: (C, 1, k, k).
        pointwise: (C, C, 1, 1).
        dilation: spacing of the taps.
    """

    depthwise: Tensor
    pointwise: Tensor
    dilation: int

    def convolve(self, maps: Tensor, *, padding: int) -> Tensor:
        """(B, C, h, w) to the same, less what the padding does not cover."""
        depth = F.conv2d(maps, self.depthwise, padding=padding, dilation=self.dilation, groups=maps.shape[1])
        return F.conv2d(depth, self.pointwise)


class SeparableStages(nn.Module):
    """Every stage of the separable convolutions among ``operations``.

    The depthwise and the pointwise part of a stage have nothing between them, so they make one dense kernel, whose taps
    are products. Order of the stages: the first ones of operations with two, then those of the dilated operations,
    then the second ones.

    Args:
        operations: names in DARTS's order; those that are no convolutions are passed over.
        channels: C.
        generator: source of the initial weights.
    """

    _columns: Tensor

    def __init__(self, operations: Sequence[str], *, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.twice = [name for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 2]
        self.once = [name for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 1]
        self._names = [*self.twice, *self.once, *self.twice]
        sides = [CONVOLUTIONS[name].kernel for name in self._names]
        taps = [kaiming_uniform((channels, side**2), fan_in=side**2, generator=generator) for side in sides]
        mixers = [kaiming_uniform((channels, channels), fan_in=channels, generator=generator) for _ in sides]
        self.depthwise = nn.Parameter(torch.cat(taps, dim=1))
        """(C, Σ k²): the taps of all stages, a row a channel."""
        self.pointwise = nn.Parameter(torch.stack(mixers))
        """(stages, C, C)."""
        self.register_buffer("_columns", _places(sides), persistent=False)

    def stage(self, name: str, index: int) -> Stage:
        """Stage ``index`` (0 or 1) of an operation, as views of the weights."""
        form = CONVOLUTIONS[name]
        second = len(self.twice) + len(self.once)
        position = self._names.index(name) if index == 0 else second + self.twice.index(name)
        start = sum(CONVOLUTIONS[before].kernel ** 2 for before in self._names[:position])
        depthwise = self.depthwise[:, start : start + form.kernel**2]
        return Stage(
            depthwise=depthwise.reshape(-1, 1, form.kernel, form.kernel),
            pointwise=self.pointwise[position][:, :, None, None],
            dilation=form.dilation,
        )

    def kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Dense kernels (n, C out, C in, 5, 5), taps not yet spread: first stages of operations with two, those of the
        dilated operations, second stages."""
        channels, count = len(self.depthwise), len(self._names)
        wide = self.depthwise.new_zeros(channels, count * SIDE**2).index_copy(1, self._columns, self.depthwise)
        dense = self.pointwise[..., None, None] * wide.view(channels, count, SIDE, SIDE).transpose(0, 1).unsqueeze(1)
        first, dilated, second = dense.split([len(self.twice), len(self.once), len(self.twice)])
        return first, dilated, second


def _places(sides: Sequence[int]) -> Tensor:
    """Where taps of kernels k×k lie when each is in the middle of a square of `SIDE`², and the squares in a row."""
    places = []
    for number, side in enumerate(sides):
        offsets = torch.arange(side) + (SIDE - side) // 2
        places.append(number * SIDE**2 + (offsets[:, None] * SIDE + offsets).flatten())
    return torch.cat(places)
