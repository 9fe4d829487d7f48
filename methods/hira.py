"""HiRA (ICLR 2025, openreview TwJrTz9cRS): y = (W + W ⊙ B A) x + b, with W and b frozen.

A (r, inputs) starts Kaiming-uniform (a = √5), B (outputs, r) at zero, so that the start is the identity, as in HF peft. The
product with W, entry by entry, makes an update of full rank of as many parameters as LoRA's; it is part of W, so that all of it
folds. There is no scale: entries of W are small, so that HiRA learns at higher rates than LoRA (peft's comparison: 4.5e-3 where
LoRA has 1e-4), which a comparison at one rate must say. No dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.methods.linears import Change, LowRankConfig, ReweightingMethod
from harness.methods.parts.layers import kaiming_uniform


@dataclass(frozen=True, kw_only=True)
class HiRAConfig(LowRankConfig):
    """HiRA (ICLR 2025): a low-rank matrix times the frozen weights, entry by entry."""

    weight_products: ClassVar[int] = 1


class Hadamard(Change):
    """W ↦ W + W ⊙ B A.

    Args:
        down: A, (r, inputs).
        up: B, (rows, r).
        rows: see `Change`.
    """

    def __init__(self, *, down: Tensor, up: Tensor, rows: Tensor | None) -> None:
        super().__init__(rows=rows)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.addcmul(weight, weight, self.up @ self.down)


class HiRA(ReweightingMethod):
    """HiRA; see the module."""

    name = "hira"
    config_class = HiRAConfig
    config: HiRAConfig

    def _change(self, weight: Tensor, *, rows: Tensor | None) -> Change:
        outputs, inputs = weight.shape
        down = kaiming_uniform((self.config.rank, inputs), fan_in=inputs, generator=self.generator)
        return Hadamard(down=down, up=torch.zeros(outputs, self.config.rank), rows=rows)
