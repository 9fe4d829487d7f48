"""GraLoRA (2505.20355): W seen as k×k squares, each with a LoRA of rank r / k of its own.

Square (j, n), from the n-th part of the inputs to the j-th part of the outputs, gets s · B_jn A_jn with s = α / r: as many
parameters as LoRA of rank r, an update of up to k times its rank. As one product it is s · B A with A (k r, inputs) block-diagonal
and B (outputs, k r) zero where a square has no part, which is how it is computed, folded into W and saved in peft's format. A
starts Kaiming-uniform (a = √5), B at zero. Deviations: α = 32, as for `lora` (peft: 2 r); none of its rank is kept for plain LoRA
(``hybrid_r`` there, 0 by default). No dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.methods.configs.lowrank import GraLoRAConfig
from harness.methods.lora import LoRA
from harness.methods.parts.initialisation import kaiming_uniform
from harness.methods.parts.lowrank import LowRank
from harness.methods.parts.sites import TokenLayout


class Granular(LowRank):
    """The squares' updates as one of rank k · r.

    Args:
        down: the A of all squares by part of the inputs, (k, r, inputs / k); its rows by part of the outputs.
        up: their B by part of the outputs, (k, outputs / k, r); its columns by part of the inputs.
        scale: s.
        rows: which outputs the update reaches, None for all.
    """

    def factors(self) -> tuple[Tensor, Tensor]:
        parts, outputs, rank = self.up.shape
        identity = torch.eye(parts, dtype=self.up.dtype, device=self.up.device)
        up = torch.einsum("jons,jm->jonms", self.up.unflatten(2, (parts, rank // parts)), identity)
        return torch.block_diag(*self.down), up.reshape(parts * outputs, parts * rank)


class GraLoRA(LoRA):
    """GraLoRA; see the module."""

    name = "gralora"
    config_class = GraLoRAConfig
    config: GraLoRAConfig

    def _low_rank(self, base: nn.Linear, rows: Tensor | None, layout: TokenLayout) -> LowRank:
        config, inputs = self.config, base.in_features
        outputs = base.out_features if rows is None else len(rows)
        config.linear_parameters(inputs, outputs)  # refuses what does not divide
        shape = (config.k, config.rank, inputs // config.k)
        down = kaiming_uniform(shape, fan_in=inputs // config.k, generator=self.generator)
        up = torch.zeros(config.k, outputs // config.k, config.rank)
        return Granular(down=down, up=up, scale=self._scale(), rows=rows).to(base.weight.device)
