"""The mixed edge of NAS-LoRA (2512.03499): y = Σ_i softmax(α)_i · O_i(x) on a bottleneck map.

`methods.operations` says what the operations are (those of DARTS, 1806.09055). Deviations: the depthwise and pointwise
weights start as PyTorch starts a convolution (Kaiming-uniform, a = √5), drawn from the method's own generator; the cell
computes in float32 under autocast, because its few channels cost nothing and batch statistics in half precision do.

Two ways to compute the same: operation by operation, or ``fused``. The depthwise and the pointwise part of a stage have
nothing between them and make one dense kernel; kernels of all operations are widened to one size and run as one
convolution; batch norms of one stage run as one. In the linear style the whole cell collapses into one kernel first.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.kernels import chain, spread, widen
from methods.operations import CONVOLUTIONS, POOLS
from methods.placement import MethodError
from methods.recompute import recomputing
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
        self.depthwise = nn.Parameter(
            kaiming_uniform((channels, 1, kernel, kernel), fan_in=kernel**2, generator=generator)
        )
        self.pointwise = nn.Parameter(kaiming_uniform((channels, channels, 1, 1), fan_in=channels, generator=generator))

    def forward(self, maps: Tensor, *, padding: int) -> Tensor:
        depth = F.conv2d(maps, self.depthwise, padding=padding, dilation=self.dilation, groups=maps.shape[1])
        return F.conv2d(depth, self.pointwise)

    def taps(self) -> Tensor:
        """Both parts as one kernel (C, C, k, k), to be applied with the stage's dilation."""
        return self.pointwise * self.depthwise.transpose(0, 1)

    def dense(self) -> Tensor:
        """Both parts as one kernel (C, C, span, span), its taps spread by the dilation."""
        return spread(self.taps(), self.dilation)


class Cell(nn.Module):
    """One softmax-mixed edge.

    Args:
        operations: names in DARTS's order, as `methods.operations.parse_operations` returns them.
        channels: channels of the map.
        style: ``darts`` or ``linear``.
        alpha_std: standard deviation of α at init. A single operation has no α.
        generator: source of the initial weights.
        fused: batch the operations into few convolutions; the same result as one by one.

    Shape: (B, channels, h, w) to the same.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        operations: tuple[str, ...],
        *,
        channels: int,
        style: str,
        alpha_std: float,
        generator: torch.Generator,
        fused: bool,
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
            stages = [
                Stage(channels, kernel=form.kernel, dilation=form.dilation, generator=generator)
                for _ in range(form.stages)
            ]
            self.convolutions[name] = nn.ModuleList(stages)
        # One row of running statistics a batch norm, ordered so that those of a first stage and of a second lie side
        # by side.
        first = [(name, 0) for name in operations if name in POOLS or name in CONVOLUTIONS]
        second = [(name, 1) for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 2]
        self.first_norms = len(first)
        self._row = {key: row for row, key in enumerate(first + second)}
        rows = len(self._row) if style == "darts" else 0
        self.register_buffer("running_mean", torch.zeros(rows, channels))
        self.register_buffer("running_var", torch.ones(rows, channels))

    def mixture(self) -> Tensor:
        """softmax(α), one entry an operation."""
        if self.alpha is None:
            return self.running_mean.new_ones(1)
        return self.alpha.softmax(dim=0)

    def skip_weight(self) -> Tensor:
        """What the skip connection lets pass: its share of the mixture, 0 where there is none or a merge has folded
        it."""
        mixture = self.mixture()
        if "skip_connect" not in self.operations or self.skip_folded:
            return mixture.new_zeros(())
        return mixture[self.operations.index("skip_connect")]

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(self.running_mean.dtype)  # that of the cell itself, whatever autocast made of its input
            if not self.fused:
                return self._one_by_one(maps)
            if self.style == "linear":
                kernel = self.kernel()
                return F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2)
            return self._batched(maps)

    def kernel(self) -> Tensor:
        """The one kernel (C, C, k, k) that a linear cell equals, with zero padding of k // 2."""
        if self.style != "linear":
            raise MethodError("only a cell of style=linear equals one convolution; this one has ReLU and batch norm")
        identity = torch.eye(self.channels).to(self.running_mean)[:, :, None, None]
        parts = []
        for weight, name in zip(self.mixture(), self.operations, strict=True):
            if name == "skip_connect" and not self.skip_folded:
                parts.append(weight * identity)
            elif name == "avg_pool_3x3":
                parts.append(weight * (identity / 9).expand(-1, -1, 3, 3))
            elif name in CONVOLUTIONS:
                stages = [stage.dense() for stage in self._stages(name)]
                parts.append(weight * reduce(chain, stages))
        side = max((part.shape[-1] for part in parts), default=1)
        return sum((widen(part, side) for part in parts), start=torch.zeros_like(identity))

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
            pooled = self._pool(name, maps)
            return self._normalise(pooled, self._row[name, 0], self._row[name, 0] + 1) if darts else pooled
        half = CONVOLUTIONS[name].span // 2
        if not darts:
            maps = F.pad(maps, [half * CONVOLUTIONS[name].stages] * 4)
        for index, stage in enumerate(self._stages(name)):
            maps = stage(maps.relu() if darts else maps, padding=half if darts else 0)
            if darts:
                maps = self._normalise(maps, self._row[name, index], self._row[name, index] + 1)
        return maps

    def _batched(self, maps: Tensor) -> Tensor:
        """The DARTS style with one convolution a dilation and one batch norm a stage."""
        mixture = dict(zip(self.operations, self.mixture().unbind(), strict=True))
        skips = "skip_connect" in mixture and not self.skip_folded
        mixed = maps * mixture["skip_connect"] if skips else torch.zeros_like(maps)
        first = [name for name, index in self._row if index == 0]
        second = [name for name, index in self._row if index == 1]
        if not first:
            return mixed
        outputs = {name: self._pool(name, maps) for name in first if name in POOLS}
        rectified = maps.relu()
        for dilation in (1, 2):
            alike = [name for name in first if name in CONVOLUTIONS and CONVOLUTIONS[name].dilation == dilation]
            outputs.update(self._convolve(alike, 0, rectified))
        normed = self._normalise(torch.cat([outputs[name] for name in first], dim=1), 0, len(first))
        normed = normed.unflatten(1, (len(first), self.channels))
        shares = [mixture[name] if name not in second else maps.new_zeros(()) for name in first]
        mixed = mixed + torch.einsum("n,bnchw->bchw", torch.stack(shares), normed)
        if not second:
            return mixed
        start = first.index(second[0])  # DARTS's order keeps the operations with two stages side by side
        between = normed[:, start : start + len(second)].flatten(1, 2).relu()
        outputs = self._convolve(second, 1, between)
        normed = self._normalise(torch.cat(list(outputs.values()), dim=1), len(first), len(first) + len(second))
        normed = normed.unflatten(1, (len(second), self.channels))
        return mixed + torch.einsum("n,bnchw->bchw", torch.stack([mixture[name] for name in second]), normed)

    def _convolve(self, names: list[str], index: int, maps: Tensor) -> dict[str, Tensor]:
        """Stage ``index`` of operations of one dilation, as one convolution.

        Args:
            maps: (B, C, h, w) that all read (first stage), or (B, n · C, h, w), an own map for each (second stage).
        """
        if not names:
            return {}
        stages = [self._stages(name)[index] for name in names]
        side = max(stage.depthwise.shape[-1] for stage in stages)
        kernel = torch.cat([widen(stage.taps(), side) for stage in stages])
        dilation, groups = stages[0].dilation, maps.shape[1] // self.channels
        out = F.conv2d(maps, kernel, padding=dilation * (side // 2), dilation=dilation, groups=groups)
        return dict(zip(names, out.split(self.channels, dim=1), strict=True))

    def _stages(self, name: str) -> list[Stage]:
        return list(cast(nn.ModuleList, self.convolutions[name]))  # type: ignore[arg-type]

    def _pool(self, name: str, maps: Tensor) -> Tensor:
        if name == "max_pool_3x3":
            return F.max_pool2d(maps, 3, stride=1, padding=1)
        # Padding that counts makes the average one fixed kernel at the borders too, as the linear style needs it.
        return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=self.style == "linear")

    def _normalise(self, maps: Tensor, start: int, stop: int) -> Tensor:
        """Batch norm without affine parameters; rows ``start:stop`` of the running statistics belong to ``maps``."""
        mean, variance = self.running_mean[start:stop].view(-1), self.running_var[start:stop].view(-1)
        if not self.training:
            return F.batch_norm(maps, mean, variance, training=False, eps=EPSILON)
        if recomputing():  # copies take the update; without any statistics, fewer tensors than before would be saved
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(maps, mean, variance, training=True, momentum=MOMENTUM, eps=EPSILON)


class OneConvolution(nn.Module):
    """What a linear cell is once its search is over: one convolution with zero padding.

    Args:
        cell: a cell of ``style=linear``.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.channels = cell.channels
        self.skip_folded = False
        self.weight = nn.Parameter(cell.kernel().detach().clone(), requires_grad=False)
        self._skip = float(cell.skip_weight().detach())

    def skip_weight(self) -> Tensor:
        """The skip connection's share of the kernel."""
        return self.weight.new_tensor(self._skip)

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return F.conv2d(maps.to(self.weight.dtype), self.weight, padding=self.weight.shape[-1] // 2)


class CellOnTokens(nn.Module):
    """A cell between down- and up-projection: tokens of the bottleneck are seen as a map.

    Channels beyond the cell's bypass it (partial channels). As in PC-DARTS (1907.05737) the first channels are the
    sampled ones. PC-DARTS then shuffles channels so that the next edge samples others; here the up-projection follows
    and mixes all channels, and a shuffle would only rename its columns, so there is none. Prefix tokens of a timm ViT
    have no neighbours and see the one operation that needs none, the skip connection.

    Args:
        cell: the mixed edge.
        width: r, channels of the bottleneck.
        layout: how tokens form maps at this site.
        scope: ``window`` or ``image``.

    Shape: (…, r) tokens as they come at the site, to the same.
    """

    def __init__(self, cell: Cell | OneConvolution, *, width: int, layout: TokenLayout, scope: str) -> None:
        super().__init__()
        self.cell = cell
        self.width = width
        self.layout = layout
        self.scope = scope

    def forward(self, tokens: Tensor) -> Tensor:
        sampled, bypass = tokens[..., : self.cell.channels], tokens[..., self.cell.channels :]
        mixed = self.layout.on_map(sampled, self.cell, scope=self.scope, prefix_function=self._alone)
        if not bypass.shape[-1]:
            return mixed
        if self.cell.skip_folded:
            bypass = torch.zeros_like(bypass)
        return torch.cat([mixed, bypass.to(mixed.dtype)], dim=-1)

    def _alone(self, prefix: Tensor) -> Tensor:
        skip = self.cell.skip_weight()
        return prefix.to(skip.dtype) * skip

    def linear_part(self) -> Tensor:
        """What the skip connection and the bypass pass, (r, r); see `methods.merging.Splittable`."""
        skip = self.cell.skip_weight().detach().cpu()
        diagonal = torch.ones(self.width)
        diagonal[: self.cell.channels] = skip
        return diagonal.diag()

    def drop_linear_part(self) -> bool:
        """Stop passing what `linear_part` passes; whether the cell has other operations."""
        assert isinstance(self.cell, Cell)
        self.cell.skip_folded = True
        return any(name not in ("none", "skip_connect") for name in self.cell.operations)
