"""Mona (2408.08345): a bottleneck that looks at neighbours, after attention and after the MLP, each after its residual.

x ← x + up(GELU(f(down(LN(x) ⊙ s₁ + x ⊙ s₂)))) with f(z) = m + P m and m = z + (C₃ z + C₅ z + C₇ z) / 3: depthwise
convolutions of the bottleneck's map with kernels of 3, 5 and 7, and a pointwise P. s₁ starts at 1e-6, s₂ at one, every
layer as PyTorch starts it (released code), so that the start is not the pretrained model: a declared deviation.
Deviations: no dropout. Prefix tokens of a timm ViT have no neighbours: each is a map of one token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import started
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, TokenLayout, block_sites, halves

_KERNELS = (3, 5, 7)
_NORM_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True)
class MonaConfig(PlacedConfig):
    """Mona (2408.08345): a multi-scale convolutional adapter after attention and another after the MLP.

    Args:
        hidden: channels of the bottleneck, 64 (paper).
    """

    hidden: Count = 64

    def encoder_parameters(self, shape: BackboneShape) -> int:
        hidden = self.hidden
        filters = hidden * (3**2 + 5**2 + 7**2) + 3 * hidden + hidden**2 + hidden
        dims = [block.dim for block in self.placed(shape)]
        return sum(2 * (4 * dim + 2 * dim * hidden + hidden + dim + filters) for dim in dims)


class MultiScale(nn.Module):
    """m + P m with m = z + (C₃ z + C₅ z + C₇ z) / 3.

    Args:
        channels: of the map.
        generator: source of the initial weights.

    Shape: (B, channels, h, w) to the same.
    """

    def __init__(self, channels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            started(nn.Conv2d, channels, channels, kernel_size=k, padding=k // 2, groups=channels, generator=generator)
            for k in _KERNELS
        )
        self.projector = started(nn.Conv2d, channels, channels, kernel_size=1, generator=generator)

    def forward(self, maps: Tensor) -> Tensor:
        mixed = maps + sum(convolution(maps) for convolution in self.convolutions) / len(_KERNELS)
        return mixed + self.projector(mixed)


class MonaAdapter(nn.Module):
    """x + up(GELU(f(down(LN(x) ⊙ s₁ + x ⊙ s₂)))).

    Args:
        dim: width of a token.
        hidden: channels of the bottleneck.
        layout: how tokens form a map, windows put together.
        generator: source of the initial weights.

    Shape: (…, dim) tokens as a block hands them on, to the same.
    """

    def __init__(self, dim: int, *, hidden: int, layout: TokenLayout, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_share = nn.Parameter(torch.full((dim,), _NORM_SHARE))
        self.own_share = nn.Parameter(torch.ones(dim))
        self.down = started(nn.Linear, dim, hidden, generator=generator)
        self.filter = MultiScale(hidden, generator=generator)
        self.up = started(nn.Linear, hidden, dim, generator=generator)
        self.layout = layout

    def forward(self, tokens: Tensor) -> Tensor:
        scaled = self.norm(tokens) * self.norm_share + tokens * self.own_share
        return tokens + self.up(F.gelu(self.layout.on_map(self.down(scaled), self.filter)))


class MonaBlock(nn.Module):
    """The backbone's block with an adapter after each half.

    Args:
        block: the backbone's own, frozen.
        after_attention: adapter after attention and its residual.
        after_mlp: adapter after the MLP and its residual.
    """

    def __init__(self, block: nn.Module, *, after_attention: MonaAdapter, after_mlp: MonaAdapter) -> None:
        super().__init__()
        self.block = block
        self.after_attention = after_attention
        self.after_mlp = after_mlp

    def forward(self, tokens: Tensor) -> Tensor:
        attention_half, mlp_half = halves(self.block)
        return self.after_mlp(mlp_half(self.after_attention(attention_half(tokens))))


class Mona(Method):
    """Mona; see the module."""

    name = "mona"
    config_class = MonaConfig
    config: MonaConfig
    identity_at_init = False

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        for target in block_sites(encoder, self.config.blocks):
            device = next(target.block.parameters()).device
            encoder.blocks[target.index] = MonaBlock(
                target.block,
                after_attention=self._adapter(target.dim, target.layout_at("mlp_in")).to(device),
                after_mlp=self._adapter(target.dim, target.layout_at("mlp_in")).to(device),
            )

    def _adapter(self, dim: int, layout: TokenLayout) -> MonaAdapter:
        return MonaAdapter(dim, hidden=self.config.hidden, layout=layout, generator=self.generator)
