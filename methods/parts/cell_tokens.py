"""A cell where it stands: between down- and up-projection, on tokens that form maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.parts.cell import Cell
from harness.methods.parts.sites import TokenLayout


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
        """What the skip connection and the bypass pass, (r, r); see `harness.methods.parts.merging.Splittable`."""
        skip = self.cell.skip_weight().detach().cpu()
        diagonal = torch.ones(self.width)
        diagonal[: self.cell.channels] = skip
        return diagonal.diag()

    def drop_linear_part(self) -> bool:
        """Stop passing what `linear_part` passes; whether the cell has other operations."""
        assert isinstance(self.cell, Cell)
        self.cell.skip_folded = True
        return any(name not in ("none", "skip_connect") for name in self.cell.operations)
