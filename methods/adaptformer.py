"""AdaptFormer (2205.13535): x + MLP(norm(x)) + s · up(ReLU(down(x))), a bottleneck parallel to the MLP that reads the
tokens before the norm.

Down starts Kaiming-uniform (a = √5), up at zero, biases at zero, s = 0.1 (the paper's), so the start is the identity.
Deviations: no dropout in the bottleneck; in a timm ViT with layer scale the bottleneck comes before the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import Bottleneck, kaiming_uniform
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(PlacedConfig):
    """AdaptFormer (2205.13535): a bottleneck parallel to the MLP.

    Args:
        hidden: width of the bottleneck, 64 (paper).
        scale: factor of the bottleneck's output, 0.1 (paper).
    """

    hidden: Count = 64
    scale: float = 0.1

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return sum(2 * block.dim * self.hidden + self.hidden + block.dim for block in self.placed(shape))


class ParallelMLP(nn.Module):
    """mlp(norm(x)) + scale · adapter(x): takes the place of the block's MLP, while an identity takes that of its norm.

    Args:
        norm: the block's second norm, frozen.
        mlp: the block's MLP, frozen.
        adapter: the bottleneck.
        scale: factor of the bottleneck's output.
    """

    def __init__(self, norm: nn.Module, mlp: nn.Module, adapter: Bottleneck, *, scale: float) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = mlp
        self.adapter = adapter
        self.scale = scale

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.norm(tokens)) + self.scale * self.adapter(tokens)


class AdaptFormer(Method):
    """AdaptFormer; see the module."""

    name = "adaptformer"
    config_class = AdaptFormerConfig
    config: AdaptFormerConfig

    def _insert(self, segmenter: Adaptable) -> None:
        for target in block_sites(segmenter.encoder, self.config.blocks):
            dim, hidden = target.dim, self.config.hidden
            down = kaiming_uniform((hidden, dim), fan_in=dim, generator=self.generator)
            adapter = Bottleneck(down=down, up=torch.zeros(dim, hidden), activation=F.relu)
            norm = target.get("norm2")
            mlp = target.block.get_submodule("mlp")
            parallel = ParallelMLP(norm, mlp, adapter.to(next(norm.parameters()).device), scale=self.config.scale)
            target.replace("norm2", nn.Identity())
            target.block.register_module("mlp", parallel)
