"""The mixed edge of NAS-LoRA (2512.03499): y = Σ_i softmax(α)_i · O_i(x) on a bottleneck map, with the operations of DARTS (1806.09055).

`methods.operations` says what the operations are. Deviations: the depthwise and pointwise weights start as PyTorch starts a convolution
(Kaiming-uniform, a = √5), drawn from the method's own generator; the cell computes in float32 under autocast, because its few channels
cost nothing and batch statistics in half precision do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.operations import CONVOLUTIONS, POOLS
from methods.sites import TokenLayout

MOMENTUM = 0.1
EPSILON = 1e-5


def kaiming_uniform(shape: tuple[int, ...], *, fan_in: int, generator: torch.Generator) -> Tensor:
    """U(−b, b) with b = 1/√fan_in: what PyTorch's layers start from (Kaiming-uniform with a = √5)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


class Stage(nn.Module):
    """Depthwise k×k, then pointwise; no bias.

    Args:
        channels: channels in and out.
        kernel: side k.
        dilation: spacing of the taps.
        generator: source of the initial weights.
    """

    def __init__(self, channels: int, *, kernel: int, dilation: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dilation = dilation
        self.depthwise = nn.Parameter(kaiming_uniform((channels, 1, kernel, kernel), fan_in=kernel**2, generator=generator))
        self.pointwise = nn.Parameter(kaiming_uniform((channels, channels, 1, 1), fan_in=channels, generator=generator))

    def forward(self, maps: Tensor, *, padding: int) -> Tensor:
        spread = F.conv2d(maps, self.depthwise, padding=padding, dilation=self.dilation, groups=maps.shape[1])
        return F.conv2d(spread, self.pointwise)


class Cell(nn.Module):
    """One softmax-mixed edge.

    Args:
        operations: names in DARTS's order, as `methods.operations.parse_operations` returns them.
        channels: channels of the map.
        style: ``darts`` or ``linear``.
        alpha_std: standard deviation of α at init. A single operation has no α.
        generator: source of the initial weights.
        fused: batch the operations into few convolutions; the same result as one by one.
        device: where the parameters live.

    Shape: (B, channels, h, w) to the same.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, operations: tuple[str, ...], *, channels: int, style: str, alpha_std: float, generator: torch.Generator, fused: bool
    ) -> None:
        super().__init__()
        self.operations = operations
        self.channels = channels
        self.style = style
        self.fused = fused
        self.skip_folded = False
        """Whether a merge has taken the skip connection out of the cell and into the backbone."""
        several = len(operations) > 1
        self.alpha = nn.Parameter(alpha_std * torch.randn(len(operations), generator=generator)) if several else None
        self.convolutions = nn.ModuleDict()
        for name in operations:
            if name not in CONVOLUTIONS:
                continue
            form = CONVOLUTIONS[name]
            stages = [Stage(channels, kernel=form.kernel, dilation=form.dilation, generator=generator) for _ in range(form.stages)]
            self.convolutions[name] = nn.ModuleList(stages)
        # One row of running statistics a batch norm, ordered so that those of a first stage and of a second lie side by side.
        first = [(name, 0) for name in operations if name in POOLS or name in CONVOLUTIONS]
        second = [(name, 1) for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 2]
        self.first_norms = len(first)
        self._row = {key: row for row, key in enumerate(first + second)}
        rows = len(self._row) if style == "darts" else 0
        self.register_buffer("running_mean", torch.zeros(rows, channels))
        self.register_buffer("running_var", torch.ones(rows, channels))

    def mixture(self) -> Tensor:
        """softmax(α), one entry an operation, float32."""
        if self.alpha is None:
            return next(self.parameters(), self.running_mean).new_ones(1)
        return self.alpha.float().softmax(dim=0)

    def skip_weight(self) -> Tensor:
        """What the skip connection lets pass: its share of the mixture, 0 where there is none or a merge has folded it."""
        mixture = self.mixture()
        if "skip_connect" not in self.operations or self.skip_folded:
            return mixture.new_zeros(())
        return mixture[self.operations.index("skip_connect")]

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return self._one_by_one(maps.float())

    def _one_by_one(self, maps: Tensor) -> Tensor:
        mixed = torch.zeros_like(maps)
        for weight, name in zip(self.mixture(), self.operations, strict=True):
            if name == "none" or (name == "skip_connect" and self.skip_folded):
                continue
            mixed = mixed + weight * self._operate(name, maps)
        return mixed

    def _operate(self, name: str, maps: Tensor) -> Tensor:
        darts = self.style == "darts"
        if name == "skip_connect":
            return maps
        if name in POOLS:
            # count_include_pad makes the average a fixed kernel at the borders too, which the linear style needs to be one convolution.
            pooled = F.max_pool2d(maps, 3, 1, 1) if name == "max_pool_3x3" else F.avg_pool2d(maps, 3, 1, 1, count_include_pad=not darts)
            return self.normalise(pooled, self._row[name, 0], self._row[name, 0] + 1) if darts else pooled
        half = CONVOLUTIONS[name].span // 2
        if not darts:
            maps = F.pad(maps, [half * CONVOLUTIONS[name].stages] * 4)
        for index, stage in enumerate(self.convolutions[name]):  # type: ignore[arg-type]
            maps = stage(maps.relu() if darts else maps, padding=half if darts else 0)
            if darts:
                maps = self.normalise(maps, self._row[name, index], self._row[name, index] + 1)
        return maps

    def normalise(self, maps: Tensor, start: int, stop: int) -> Tensor:
        """Batch norm without affine parameters; rows ``start:stop`` of the running statistics belong to the channels of ``maps``."""
        mean, variance = self.running_mean[start:stop].view(-1), self.running_var[start:stop].view(-1)
        if not self.training:
            return F.batch_norm(maps, mean, variance, training=False, eps=EPSILON)
        # Activation checkpointing runs the forward pass again inside the backward pass; the statistics must not count it twice.
        recomputing = torch._C._current_graph_task_id() != -1
        if recomputing:
            return F.batch_norm(maps, None, None, training=True, eps=EPSILON)
        return F.batch_norm(maps, mean, variance, training=True, momentum=MOMENTUM, eps=EPSILON)


class CellOnTokens(nn.Module):
    """A cell between down- and up-projection: tokens of the bottleneck are seen as a map, channels beyond the cell's bypass it.

    As in PC-DARTS (1907.05737) the first channels are the sampled ones. PC-DARTS then shuffles channels so that the next edge samples
    others; here the up-projection follows and mixes all channels, and a shuffle would only rename its columns, so there is none. Prefix
    tokens of a timm ViT have no neighbours and see the one operation that needs none, the skip connection.

    Args:
        cell: the mixed edge.
        layout: how tokens form maps at this site.
        scope: ``window`` or ``image``.

    Shape: (…, r) tokens as they come at the site, to the same.
    """

    def __init__(self, cell: Cell, *, layout: TokenLayout, scope: str) -> None:
        super().__init__()
        self.cell = cell
        self.layout = layout
        self.scope = scope

    def forward(self, tokens: Tensor) -> Tensor:
        sampled, bypass = tokens[..., : self.cell.channels], tokens[..., self.cell.channels :]
        prefix: Callable[[Tensor], Tensor] = lambda alone: alone.float() * self.cell.skip_weight()  # noqa: E731
        mixed = self.layout.on_map(sampled, self.cell, scope=self.scope, prefix_function=prefix)
        if not bypass.shape[-1]:
            return mixed
        if self.cell.skip_folded:
            bypass = torch.zeros_like(bypass)
        return torch.cat([mixed, bypass.to(mixed.dtype)], dim=-1)
