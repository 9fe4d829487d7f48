"""Rein (2312.04265): after each block f + s · MLP_f(softmax(f Tᵀ / √d)₂… · MLP_T(T₂…) + f), with learnt tokens T of that block.

T = A B of low rank, as released; both linear maps and the scale s are shared by all blocks. The first token takes part in the
softmax and contributes nothing, so that a feature may attend to nothing. Tokens without a position (a ViT's class token) stay as they are.
The start is the released one (w1oves/Rein 29755d4): A and B uniform within ±√(6 / (3 p² + √(d r))) for patch side p, s = 1e-3. It is near
the identity but not equal to it: a declared deviation. Deviation: the tokens are not linked to the queries of a Mask2Former decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import started
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class ReinConfig(PlacedConfig):
    """Rein (2312.04265): learnt tokens refine the output of each block.

    Args:
        tokens: number of tokens per block, 100 (code).
        rank: rank of their matrix, 16 (code).
        scale: initial value of the learnt factor of the change, 1e-3 (code).
    """

    tokens: Count = 100
    rank: Count = 16
    scale: float = 1e-3

    def encoder_parameters(self, shape: BackboneShape) -> int:
        shape.require_one_width("rein", "refines all blocks by two matrices of one width")
        return len(self.placed(shape)) * self.rank * (self.tokens + shape.dim) + 2 * (shape.dim**2 + shape.dim) + 1


class Shared(nn.Module):
    """What all blocks share: MLP_T and MLP_f, (d, d) each, and s."""

    def __init__(self, dim: int, *, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.of_tokens, self.of_features = (started(nn.Linear, dim, dim, generator=generator) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(scale))


class RefinedBlock(nn.Module):
    """The backbone's block with its outputs refined.

    Args:
        block: the backbone's own, frozen.
        left, right: A (m, r) and B (r, d), whose product are the m tokens.
        shared: the maps and the scale of all blocks.
        prefix_tokens: leading tokens that pass by.
    """

    def __init__(self, block: nn.Module, *, left: Tensor, right: Tensor, shared: Shared, prefix_tokens: int) -> None:
        super().__init__()
        self.block = block
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.prefix_tokens = prefix_tokens
        self._shared = (shared,)  # in a tuple, so that it is not registered in every block

    def forward(self, tokens: Tensor) -> Tensor:
        (shared,), outputs = self._shared, self.block(tokens)
        prefix, features = outputs[:, : self.prefix_tokens], outputs[:, self.prefix_tokens :]
        learnt = self.left @ self.right
        attention = (features @ learnt.T * learnt.shape[1] ** -0.5).softmax(dim=-1)
        change = shared.of_features(attention[..., 1:] @ shared.of_tokens(learnt[1:]) + features)
        refined = features + shared.scale * change
        return torch.cat([prefix.to(refined.dtype), refined], dim=1) if self.prefix_tokens else refined


class Rein(Method):
    """Rein; see the module."""

    name = "rein"
    config_class = ReinConfig
    config: ReinConfig
    identity_at_init = False

    def _insert(self, segmenter: Adaptable) -> None:
        encoder, config, dim = segmenter.encoder, self.config, segmenter.encoder.shape.dim
        config.encoder_parameters(encoder.shape)  # refuses a backbone of several widths
        targets = block_sites(encoder, config.blocks)
        device = next(encoder.parameters()).device
        shared = Shared(dim, scale=config.scale, generator=self.generator).to(device)
        encoder.register_module("rein", shared)
        bound = math.sqrt(6 / (3 * encoder.shape.patch**2 + math.sqrt(dim * config.rank)))
        for target in targets:
            left, right = (
                ((2 * torch.rand(shape, generator=self.generator) - 1) * bound).to(device)
                for shape in ((config.tokens, config.rank), (config.rank, dim))
            )
            encoder.blocks[target.index] = RefinedBlock(
                target.block, left=left, right=right, shared=shared, prefix_tokens=encoder.shape.prefix_tokens
            )
