"""The mixed edge of NAS-LoRA (2512.03499): y = Σ_i softmax(α)_i · O_i(x) on a bottleneck map.

`harness.methods.parts.operations` says what the operations are (those of DARTS, 1806.09055). Deviations from DARTS's code: initial
weights come from the method's own generator, distributed as PyTorch starts a convolution (Kaiming-uniform, a = √5). The cell computes in
float32 under autocast: for its few channels that costs nothing, and batch statistics lose accuracy in half precision.

The operations are computed together. The depthwise and the pointwise part of a stage have nothing between them and make one
dense kernel. Kernels of all operations are widened to one size and run as one convolution, and batch norms of one stage run as
one. In the linear style the whole cell collapses into one kernel first. The weights of separable convolutions are one tensor, so
that one product makes all kernels. All of it is differentiable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.parts.layers import kaiming_uniform, recomputing
from harness.methods.parts.operations import CONVOLUTIONS, POOLS, normed
from harness.methods.parts.placement import MethodError


def spread(kernels: Tensor, dilation: int) -> Tensor:
    """Taps (…, k, k) set apart by ``dilation``, zeros between: (…, span, span) with span = dilation · (k − 1) + 1."""
    span = dilation * (kernels.shape[-1] - 1) + 1
    apart = kernels.new_zeros(*kernels.shape[:-2], span, span)
    apart[..., ::dilation, ::dilation] = kernels
    return apart


def chain(first: Tensor, second: Tensor) -> Tensor:
    """n kernels of ``second`` after ``first`` where nothing pads in between: K[o, i] = Σ_m second[o, m] * first[m, i].

    Args:
        first: (n, M, I, k, k).
        second: (n, O, M, l, l).

    Returns:
        (n, O, I, k + l − 1, k + l − 1).
    """
    count = len(first)
    # Correlations in a row compose by the full convolution of their kernels, which a transposed convolution computes.
    maps = first.permute(2, 0, 1, 3, 4).flatten(1, 2)
    weights = second.transpose(1, 2).flatten(0, 1)
    full = F.conv_transpose2d(maps, weights, groups=count)
    return full.unflatten(1, (count, -1)).permute(1, 2, 0, 3, 4)


def widen(kernel: Tensor, side: int) -> Tensor:
    """A kernel (…, k, k) padded with zeros to (…, side, side); with "same" padding it convolves alike."""
    return F.pad(kernel, [(side - kernel.shape[-1]) // 2] * 4)


SIDE = max(form.kernel for form in CONVOLUTIONS.values())
"""Taps along each side that a kernel is widened to; with padding to match, the zeros around a smaller one change nothing."""


class SeparableStages(nn.Module):
    """Every stage of the separable convolutions among ``operations``.

    The depthwise and the pointwise part of a stage have nothing between them, so they make one dense kernel, whose taps
    are products. Order of the stages: the first ones of operations with two, then those of the dilated operations,
    then the second ones.

    Args:
        operations: names in DARTS's order; operations other than convolutions are skipped.
        channels: C.
        generator: source of the initial weights.
    """

    _columns: Tensor

    def __init__(self, operations: Sequence[str], *, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.twice = [name for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 2]
        self.once = [name for name in operations if name in CONVOLUTIONS and CONVOLUTIONS[name].stages == 1]
        sides = [CONVOLUTIONS[name].kernel for name in (*self.twice, *self.once, *self.twice)]
        taps = [kaiming_uniform((channels, side**2), fan_in=side**2, generator=generator) for side in sides]
        mixers = [kaiming_uniform((channels, channels), fan_in=channels, generator=generator) for _ in sides]
        self.depthwise = nn.Parameter(torch.cat(taps, dim=1))
        """(C, Σ k²): the taps of all stages, one row per channel."""
        self.pointwise = nn.Parameter(torch.stack(mixers))
        """(stages, C, C)."""
        self.register_buffer("_columns", _tap_positions(sides), persistent=False)

    def kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Dense kernels (n, C out, C in, 5, 5), taps not yet spread: first stages of operations with two, those of the
        dilated operations, second stages."""
        channels, count = len(self.depthwise), len(self.pointwise)
        wide = self.depthwise.new_zeros(channels, count * SIDE**2).index_copy(1, self._columns, self.depthwise)
        dense = self.pointwise[..., None, None] * wide.view(channels, count, SIDE, SIDE).transpose(0, 1).unsqueeze(1)
        first, dilated, second = dense.split([len(self.twice), len(self.once), len(self.twice)])
        return first, dilated, second


def _tap_positions(sides: Sequence[int]) -> Tensor:
    """Positions of the taps of kernels k×k, each in the middle of a square of `SIDE`², with the squares in a row."""
    positions = []
    for number, side in enumerate(sides):
        offsets = torch.arange(side) + (SIDE - side) // 2
        positions.append(number * SIDE**2 + (offsets[:, None] * SIDE + offsets).flatten())
    return torch.cat(positions)


_GROUPS = (
    ("none",),
    POOLS,
    ("skip_connect",),
    tuple(name for name, form in CONVOLUTIONS.items() if form.stages == 2),
    tuple(name for name, form in CONVOLUTIONS.items() if form.stages == 1),
)
"""Operations that are neighbours in their order and are computed together."""
_POOLED: dict[str, Callable[..., Tensor]] = {
    "max_pool_3x3": F.max_pool2d,
    "avg_pool_3x3": functools.partial(F.avg_pool2d, count_include_pad=False),
}
MOMENTUM = 0.1
EPSILON = 1e-5


class Cell(nn.Module):
    """One softmax-mixed edge.

    Args:
        operations: names in order, as `harness.methods.parts.operations.parse_operations` returns them.
        channels: channels of the map.
        style: ``darts`` or ``linear``.
        alpha_std: standard deviation of α at init. A single operation has no α.
        generator: source of the initial weights.
        norm: ``batch`` or ``none``; see `harness.methods.naslora.NASLoRAConfig`.
        residual: add the map itself.

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
        norm: str = "batch",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.operations = operations
        self.channels = channels
        self.style = style
        self.norm = norm
        self.residual = residual
        self.momentum = MOMENTUM
        """Momentum of the running statistics."""
        self.skip_folded = False
        """Whether a merge has taken the skip connection out of the cell and into the backbone."""
        several = len(operations) > 1
        self.alpha = nn.Parameter(alpha_std * torch.randn(len(operations), generator=generator)) if several else None
        convolutions = [name for name in operations if name in CONVOLUTIONS]
        self.stages = SeparableStages(operations, channels=channels, generator=generator) if convolutions else None
        # One row of running statistics per batch norm: pools, dilated and first stages, second stages.
        self._counts = [sum(name in group for name in operations) for group in _GROUPS]
        self._first = self._counts[1] + len(convolutions)
        rows = normed(operations) if style == "darts" and norm != "none" else 0
        self.register_buffer("running_mean", torch.zeros(rows, channels))
        self.register_buffer("running_var", torch.ones(rows, channels))

    def mixture(self) -> Tensor:
        """softmax(α), one entry per operation."""
        if self.alpha is None:
            return self.running_mean.new_ones(1)
        return self.alpha.softmax(dim=0)

    @torch.no_grad()
    def decode(self) -> bool:
        """Give the strongest operation all of the mixture. Returns whether there was a choice.

        As in DARTS, ``none`` is never chosen. Running statistics stay those of the search.
        """
        if self.alpha is None:
            return False
        shares = self.alpha.tolist()
        passing = [index for index, name in enumerate(self.operations) if name != "none"]
        strongest = max(passing, key=shares.__getitem__)
        self.alpha.fill_(-torch.inf)
        self.alpha[strongest] = 0
        return True

    def skip_weight(self) -> Tensor:
        """What passes as it is: the skip connection's share of the mixture, and 1 in addition with ``residual``; 0 where
        there is neither or a merge has folded them."""
        mixture = self.mixture()
        if self.skip_folded:
            return mixture.new_zeros(())
        bypass = mixture.new_ones(()) if self.residual else mixture.new_zeros(())
        if "skip_connect" not in self.operations:
            return bypass
        return bypass + mixture[self.operations.index("skip_connect")]

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.to(self.running_mean.dtype)  # the cell's own precision, whatever autocast made of its input
            if self.style == "linear":
                kernel = self.kernel()
                return F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2)
            return self._batched(maps)

    def kernel(self) -> Tensor:
        """The one kernel (C, C, k, k) that a linear cell equals, with zero padding of k // 2."""
        if self.style != "linear":
            raise MethodError("only a cell of style=linear equals one convolution; this one has ReLU and batch norm")
        own = self.running_mean
        identity = torch.eye(self.channels, dtype=own.dtype, device=own.device)[:, :, None, None]
        _, average, _, twice, once = self.mixture().split(self._counts)
        parts = [self.skip_weight() * identity]
        # Unlike DARTS's, the average counts the padding, so that it is one fixed kernel at the borders too.
        parts += [share * (identity / 9).expand(-1, -1, 3, 3) for share in average]
        if self.stages is not None:
            first, dilated, second = self.stages.kernels()
            whole = [chain(first, second)] if len(first) else []
            whole += [spread(dilated, 2)] if len(dilated) else []
            parts.append((torch.cat([twice, once]).view(-1, 1, 1, 1, 1) * torch.cat(whole)).sum(dim=0))
        side = max([part.shape[-1] for part in parts])
        kernel = sum((widen(part, side) for part in parts), start=torch.zeros_like(identity))
        reaches = [CONVOLUTIONS[name].reach for name in self.operations if name in CONVOLUTIONS]
        rim = (side - max(reaches)) // 2 if self.stages is not None else 0
        return kernel[..., rim : side - rim, rim : side - rim]

    def _batched(self, maps: Tensor) -> Tensor:
        """The DARTS style with one convolution per dilation and one batch norm per stage.

        A share of the mixture is the scale of its operation's last batch norm.
        """
        _, pools, _, twice, once = self.mixture().split(self._counts)
        mixed = maps * self.skip_weight()
        parts = [_POOLED[name](maps, 3, stride=1, padding=1) for name in self.operations if name in POOLS]
        if self.stages is not None:
            first, dilated, second = self.stages.kernels()
            rectified = maps.relu()
            parts += [_convolve(rectified, dilated, 2)] if len(dilated) else []
            parts += [_convolve(rectified, first, 1)] if len(first) else []
        if not parts:
            return mixed
        between = torch.ones_like(twice)  # a first stage has no share of the mixture; its second stage reads it
        normalised = self._normalise(torch.cat(parts, dim=1), 0, self._first, scales=torch.cat([pools, once, between]))
        ended = (self._first - len(twice)) * self.channels
        finished, unfinished = normalised[:, :ended], normalised[:, ended:]
        mixed = mixed + finished.unflatten(1, (-1, self.channels)).sum(dim=1)
        if not len(twice):
            return mixed
        second_maps = _convolve(unfinished.relu(), second, 1, groups=len(twice))
        normalised = self._normalise(second_maps, self._first, self._first + len(twice), scales=twice)
        return mixed + normalised.unflatten(1, (-1, self.channels)).sum(dim=1)

    def _normalise(self, maps: Tensor, start: int, stop: int, *, scales: Tensor | None = None) -> Tensor:
        """The norm; rows ``start:stop`` of its statistics belong to ``maps``, and any ``scales``
        multiply its output."""
        weight = None if scales is None else scales.repeat_interleave(self.channels)
        if self.norm == "none":
            return maps if weight is None else maps * weight[:, None, None]
        mean, variance = self.running_mean[start:stop].view(-1), self.running_var[start:stop].view(-1)
        if not self.training:
            return F.batch_norm(maps, mean, variance, weight, training=False, eps=EPSILON)
        # Copies take the update; without any statistics, fewer tensors than in the first pass would be saved.
        if recomputing():
            mean, variance = mean.clone(), variance.clone()
        if maps.numel() == maps.shape[1]:
            raise MethodError(
                "a cell with batch norm cannot train on one image whose map is 1x1, since one value has no variance; use a "
                "larger image_size, a training split that batch_size divides without a remainder of one, or norm=none"
            )
        return F.batch_norm(maps, mean, variance, weight, training=True, momentum=self.momentum, eps=EPSILON)


def _convolve(maps: Tensor, kernels: Tensor, dilation: int, *, groups: int = 1) -> Tensor:
    """Kernels (n, C, C, k, k) that all read the same maps (B, C, h, w), or with ``groups=n`` each its own part."""
    padding = dilation * (kernels.shape[-1] // 2)
    return F.conv2d(maps, kernels.flatten(0, 1), padding=padding, dilation=dilation, groups=groups)
