"""VPT-deep (2203.12119): before each block's attention, learnt tokens join the sequence. Their outputs are dropped, and the
next block has its own.

A prompt therefore acts only as a key and a value that the image's tokens attend to. That is how it is computed:
the block's first norm and its qkv see the prompts, and no query is made of them. SAM's windows each get a copy;
prompts have no position on the map, so their relative position bias is zero. Prompts start from U(−v, v), v² = 6 / (3 p² +
d) for patch side p and width d (released code). Every image attends to the same prompts and to no other image. Not
the identity at init, a declared deviation: no prompt is neutral in a softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class VPTConfig(PlacedConfig):
    """VPT-deep (2203.12119): learnt tokens that join the attention of a block.

    Args:
        tokens: prompts per block; 12 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
    """

    tokens: Count = 12

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return sum(self.tokens * block.entering for block in self.placed(shape))


class PromptedAttention(nn.Module):
    """Attention whose keys and values include prompts.

    Args:
        attn: the block's attention, frozen. Over maps it takes ``prefix``; over sequences it gets the prompts in front.
        norm: the block's first norm, which stays the block's own module.
        prompts: initial value, (n, D).
        over_maps: whether tokens come as (B', h, w, D) rather than (B, N, D).
    """

    def __init__(self, attn: nn.Module, *, norm: nn.Module, prompts: Tensor, over_maps: bool) -> None:
        super().__init__()
        self.attn = attn
        self.prompts = nn.Parameter(prompts)
        self.over_maps = over_maps
        self._norm = [norm]  # in a list, so that it is not registered a second time under another name

    def forward(self, tokens: Tensor, *positions: object, **options: object) -> Tensor:
        prefix = self._norm[0](self.prompts)[None]
        if self.over_maps:
            return self.attn(tokens, *positions, prefix=prefix)
        joined = torch.cat([prefix.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        return self.attn(joined, *positions, **options)[:, prefix.shape[1] :]


class VPT(Method):
    """VPT-deep; see the module."""

    name = "vpt"
    config_class = VPTConfig
    config: VPTConfig
    identity_at_init = False

    def _insert(self, segmenter: Adaptable) -> None:
        patch = segmenter.encoder.shape.patch
        for target in block_sites(segmenter.encoder, self.config.blocks):
            norm = target.get("norm1")
            bound = math.sqrt(6 / (3 * patch**2 + target.entering))
            prompts = (2 * torch.rand(self.config.tokens, target.entering, generator=self.generator) - 1) * bound
            prompts = prompts.to(next(norm.parameters()).device)
            name = target.path("qkv").partition(".")[0]
            attn = target.block.get_submodule(name)
            prompted = PromptedAttention(attn, norm=norm, prompts=prompts, over_maps=target.layout.kind == "map")
            target.block.register_module(name, prompted)
