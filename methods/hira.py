"""HiRA (ICLR 2025, openreview TwJrTz9cRS): y = (W + W ⊙ B A) x + b, with W and b frozen.

A (r, inputs) starts Kaiming-uniform (a = √5), B (outputs, r) at zero, so that the start is the identity, as in HF peft. The
product with W, entry by entry, gives an update of full rank with as many parameters as LoRA's, and all of it folds into
W. There is no scale: entries of W are small, so HiRA needs higher learning rates than LoRA (peft's comparison: 4.5e-3 where
LoRA has 1e-4), which a comparison at one rate must state. No dropout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.linears import LinearMethod, LowRankConfig, outputs_of
from harness.methods.parts.layers import kaiming_uniform
from harness.methods.parts.sites import BlockSite, DecoderSite


@dataclass(frozen=True, kw_only=True)
class HiRAConfig(LowRankConfig):
    """HiRA (ICLR 2025): a low-rank matrix times the frozen weights, entry by entry."""

    weight_products: ClassVar[int] = 1


class Hadamard(nn.Module):
    """W ↦ W + W ⊙ B A.

    Args:
        down: A, (r, inputs).
        up: B, (rows, r).
        rows: which outputs of the layer it reaches, None for all.
    """

    rows: Tensor | None

    def __init__(self, *, down: Tensor, up: Tensor, rows: Tensor | None) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addcmul(weight, weight, self.up @ self.down)


class Reweighted(nn.Module):
    """A frozen linear layer that works with changed weights W′.

    It computes W′ once per pass, for the one product that the frozen layer needs anyway: tokens cost nothing extra, backward needs W′
    alone, and a merge keeps W′.

    Args:
        base: the backbone's own layer; its weights are not touched.
        adapters: by site name; outputs that none of them reaches stay as they are.
    """

    tokens_alone = True

    def __init__(self, base: nn.Linear, adapters: Mapping[str, Hadamard]) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):  # W′ is as exact as W, and so is a merge
            weight = self.weight()
        return F.linear(tokens, weight, self.base.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The base with W′ for its weights."""
        self.base.weight.copy_(self.weight())
        return self.base

    def weight(self) -> Tensor:
        """W′, (outputs, inputs)."""
        weight = whole = self.base.weight
        for adapter in self.adapters.values():
            rows: Tensor | None = adapter.rows  # type: ignore[assignment]
            weight = adapter(weight) if rows is None else weight.index_copy(0, rows, adapter(whole[rows]))
        return weight


class HiRA(LinearMethod):
    """HiRA; see the module."""

    name = "hira"
    config_class = HiRAConfig
    config: HiRAConfig
    merge_modes = ("exact",)

    def _adapt(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> Reweighted:
        base, rows = self._linear(target, module), {name: outputs_of(target, name) for name in names}
        adapters = {name: self._adapter(base, rows[name]) for name in names}
        return Reweighted(base, adapters).to(base.weight.device)

    def _adapter(self, base: nn.Linear, rows: Tensor | None) -> Hadamard:
        outputs, rank = base.out_features if rows is None else len(rows), self.config.rank
        down = kaiming_uniform((rank, base.in_features), fan_in=base.in_features, generator=self.generator)
        return Hadamard(down=down, up=torch.zeros(outputs, rank), rows=rows)
