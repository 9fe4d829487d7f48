"""A linear layer with low-rank updates on all or on slices of its outputs: y = W x + b + s · B · core(A x).

``core`` is the identity for LoRA (2106.09685), a searched cell for NAS-LoRA, a mixture of experts for Conv-LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """s · B · core(A x) for the outputs ``start:stop`` of a linear layer.

    Args:
        down: A, (r, inputs).
        up: B, (stop − start, r); zero at init makes the update start from nothing.
        scale: s.
        start: first output that the update reaches.
        core: acts on the bottleneck tokens (…, r), None for the identity.
    """

    def __init__(
        self, *, down: Tensor, up: Tensor, scale: float, start: int = 0, core: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale
        self.start = start
        self.core = core

    @property
    def stop(self) -> int:
        return self.start + len(self.up)

    def bottleneck(self, tokens: Tensor) -> Tensor:
        """core(A x), (…, r)."""
        compressed = F.linear(tokens, self.down)
        return compressed if self.core is None else self.core(compressed)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scale * F.linear(self.bottleneck(tokens), self.up)


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus the updates of its adapters, each on its own slice of the outputs.

    Args:
        base: the backbone's own layer; its weights are not touched.
        adapters: by site name, in the order of their slices, which do not overlap.
    """

    def __init__(self, base: nn.Linear, adapters: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        plain = self.base(tokens)
        adapters: list[LowRank] = list(self.adapters.values())  # type: ignore[arg-type]
        if len(adapters) == 1 and len(adapters[0].up) == plain.shape[-1]:
            # One fused multiply-add instead of a product, a scaling and a sum, each of the size of the output.
            (adapter,) = adapters
            narrow = adapter.bottleneck(tokens)
            product = torch.addmm(
                plain.flatten(0, -2),
                narrow.flatten(0, -2).to(plain.dtype),
                adapter.up.t().to(plain.dtype),
                alpha=adapter.scale,
            )
            return product.view(plain.shape)
        pieces, reached = [], 0
        for adapter in adapters:
            if adapter.start > reached:
                pieces.append(plain.new_zeros(()).expand(*plain.shape[:-1], adapter.start - reached))
            pieces.append(adapter(tokens))
            reached = adapter.stop
        if reached < plain.shape[-1]:
            pieces.append(plain.new_zeros(()).expand(*plain.shape[:-1], plain.shape[-1] - reached))
        return plain + torch.cat(pieces, dim=-1)
