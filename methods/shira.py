"""SHiRA (2406.13175): y = (W + S) x + b, with S zero but at few entries of W, which are learnt; W and b are frozen.

The entries are drawn at random once (the paper's SHiRA-Rand, as HF peft), as many as LoRA of the same rank has parameters, and
start at zero, so that the start is the identity. Where they lie is a buffer that the state holds, so that it restores on any
machine. S is part of W, so that all of it folds. Deviations: none of the paper's other masks (structured, by magnitude, gradient
or SNIP); the entries, kept as a vector, have no weight decay, as nothing with one dimension here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.methods.configs.lowrank import SHiRAConfig
from harness.methods.linears import Change, ReweightingMethod


class Sparse(Change):
    """W ↦ W + S.

    Args:
        places: of the entries of S in W (rows, inputs) laid out row by row, (n,), all different.
        rows: see `Change`.
    """

    places: Tensor

    def __init__(self, *, places: Tensor, rows: Tensor | None) -> None:
        super().__init__(rows=rows)
        self.values = nn.Parameter(torch.zeros(len(places)))
        self.register_buffer("places", places)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.flatten().index_add(0, self.places, self.values).view_as(weight)


class SHiRA(ReweightingMethod):
    """SHiRA; see the module."""

    name = "shira"
    config_class = SHiRAConfig
    config: SHiRAConfig

    def _change(self, weight: Tensor, *, rows: Tensor | None) -> Change:
        outputs, inputs = weight.shape
        count = self.config.linear_parameters(inputs, outputs)
        if weight.is_meta:  # is counted, not run
            return Sparse(places=torch.empty(count, dtype=torch.int32, device=weight.device), rows=rows)
        chosen = torch.randperm(weight.numel(), generator=self.generator)[:count]
        return Sparse(places=chosen.sort().values.int(), rows=rows)
