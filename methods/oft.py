"""OFT (2306.07280): y = W R x + b, with R orthogonal, block-diagonal and learnt, and W and b frozen.

Each block of R is R_i = (I − Q_i)(I + Q_i)⁻¹ (Cayley) of a learnt skew-symmetric Q_i, which starts at zero, so that the start
is the identity. ``cayley=neumann`` takes OFTv2's series of five terms for (I + Q_i)(I − Q_i)⁻¹ (2506.19847), orthogonal to
first orders alone, as HF peft does by default. R changes W and nothing else, so that all of it folds into W. Deviations: no
dropout of blocks, none shared, no bound on R (COFT); on slices of a fused qkv (``sites=q,v``) each slice turns its own input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.methods.configs.lowrank import OFTConfig
from harness.methods.linears import Change, ReweightingMethod


class Rotation(Change):
    """W ↦ W R, the inputs turned block by block.

    Args:
        inputs: of the layer, a multiple of ``block_size``.
        block_size: side of a block.
        exact: Cayley's transform itself, not five terms of its series.
        rows: see `Change`.
    """

    upper: Tensor

    def __init__(self, *, inputs: int, block_size: int, exact: bool, rows: Tensor | None) -> None:
        super().__init__(rows=rows)
        self.skew = nn.Parameter(torch.zeros(inputs // block_size, block_size * (block_size - 1) // 2))
        self.register_buffer("upper", torch.triu_indices(block_size, block_size, 1), persistent=False)
        self.block_size, self.exact = block_size, exact

    def blocks(self) -> Tensor:
        """R_i, (blocks, side, side), as they turn a row of inputs: x_i R_i."""
        side = self.block_size
        upper = self.skew.new_zeros(len(self.skew), side, side)
        upper = upper.index_put((torch.arange(len(self.skew), device=upper.device)[:, None], *self.upper), self.skew)
        skew = upper - upper.mT
        identity = torch.eye(side, dtype=skew.dtype, device=skew.device)
        if self.exact:
            # I + skew has an inverse always; to check it, a GPU would wait for all that was asked of it before.
            return torch.linalg.solve_ex(identity + skew, identity - skew, left=False)[0]
        square = skew @ skew
        cube = square @ skew
        return identity + 2 * (skew + square + cube) + cube @ skew

    def forward(self, weight: Tensor) -> Tensor:
        parts = weight.unflatten(1, (len(self.skew), self.block_size))
        return torch.einsum("onc,nkc->onk", parts, self.blocks()).flatten(1)


class OFT(ReweightingMethod):
    """OFT; see the module."""

    name = "oft"
    config_class = OFTConfig
    config: OFTConfig

    def _change(self, weight: Tensor, *, rows: Tensor | None) -> Change:
        inputs, config = weight.shape[1], self.config
        config.blocks_of(inputs)
        return Rotation(inputs=inputs, block_size=config.block_size, exact=config.cayley == "exact", rows=rows)
