"""A linear layer with low-rank updates on all or on slices of its outputs: y = W x + b + s · B · core(A x).

``core`` is the identity for LoRA (2106.09685), a searched cell for NAS-LoRA, a mixture of experts for Conv-LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """The parts of s · B · core(A x), an update of the outputs ``rows`` of a linear layer.

    Args:
        down: A, (r, inputs).
        up: B, (rows, r); zero at init makes the update start from nothing.
        scale: s.
        rows: which outputs the update reaches, None for all.
        core: acts on the bottleneck tokens (…, r), None for the identity.
    """

    rows: Tensor | None

    def __init__(
        self,
        *,
        down: Tensor,
        up: Tensor,
        scale: float,
        rows: Tensor | None = None,
        core: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale
        self.register_buffer("rows", rows, persistent=False)
        self.core = core

    @property
    def reached(self) -> Tensor | slice:
        """``rows`` as an index."""
        return slice(None) if self.rows is None else self.rows

    def spread_up(self, outputs: int) -> Tensor:
        """s · B with rows of zeros for the outputs that the update does not reach, (outputs, r)."""
        scaled = self.scale * self.up
        if self.rows is None:
            return scaled
        return scaled.new_zeros(outputs, scaled.shape[1]).index_copy(0, self.rows, scaled)


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus the updates of its adapters, each on its own slice of the outputs or on all.

    Args:
        base: the backbone's own layer; its weights are not touched.
        adapters: by site name.
    """

    def __init__(self, base: nn.Linear, adapters: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict(adapters)

    @property
    def tokens_alone(self) -> bool:
        """Whether each token goes through by itself, whatever map it is part of."""
        return all(adapter.core is None for adapter in self.adapters.values())

    def forward(self, tokens: Tensor) -> Tensor:
        plain = self.base(tokens)
        adapters: list[LowRank] = list(self.adapters.values())  # type: ignore[arg-type]
        # One product down, one multiply-add up: several adapters cost no more tensors of the layer's size than one.
        downs = [adapter.down for adapter in adapters]
        narrow = F.linear(tokens, _joined(downs, dim=0))
        parts = narrow.split([len(down) for down in downs], dim=-1)
        cores = [part if a.core is None else a.core(part) for a, part in zip(adapters, parts, strict=True)]
        up = _joined([adapter.spread_up(plain.shape[-1]) for adapter in adapters], dim=1)
        narrow = _joined(cores, dim=-1).flatten(0, -2).to(plain.dtype)
        return torch.addmm(plain.flatten(0, -2), narrow, up.t().to(plain.dtype)).view(plain.shape)


def _joined(tensors: Sequence[Tensor], *, dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)
