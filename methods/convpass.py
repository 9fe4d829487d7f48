"""Convpass (2207.07039): a convolutional bypass parallel to attention and another parallel to the MLP, each fed by the norm before it.

x ← x + attention(n) + s · c(n) with n = norm1(x), and the same with norm2 and the MLP; c(n) = up(φ(conv(φ(down(n))))). The
convolution is 3 × 3 on the bottleneck's map, φ(z) = z · sigmoid(1.702 z). Down starts Xavier-uniform, the convolution as the identity,
up and all biases at zero (released code), so that the start is the pretrained model. A prefix token of a timm ViT has no neighbours
and is a map of one token, as the class token in the released code.
Deviations: no dropout; s is 1, while the paper chooses it for each data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import linear
from harness.methods.parts.placement import BackboneShape, MethodError, parse_sites
from harness.methods.parts.sites import Adaptable, BlockSite, TokenLayout, block_sites, halves_on_own_map

KERNEL = 3
NORMS = {"proj": "norm1", "mlp": "norm2"}
"""By the site that stands for a half of the block: the norm whose output its bypass reads."""


@dataclass(frozen=True, kw_only=True)
class ConvpassConfig(PlacedConfig):
    """Convpass (2207.07039): a convolutional bypass parallel to attention and another parallel to the MLP.

    Args:
        sites: what a bypass is parallel to: ``proj`` (attention; the paper's Convpass-attn), ``mlp``, or both.
        hidden: channels of the bottleneck, 8 (paper).
        scale: factor s of a bypass's output, 1 (code; the paper chooses it for each data set).
    """

    sites: str = "proj,mlp"
    hidden: Count = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if unfit := set(self.halves) - {"proj", "mlp"}:
            raise MethodError(
                f"sites={self.sites!r}: a bypass runs in parallel to proj (attention) or mlp, not {sorted(unfit)[0]}"
            )

    @property
    def halves(self) -> tuple[str, ...]:
        """Those of ``proj`` and ``mlp`` that have a bypass."""
        return parse_sites(self.sites)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        blocks, hidden = self.placed(shape), self.hidden
        if any(block.inputs or block.pool > 1 for block in blocks) and "proj" in self.halves:
            raise MethodError(
                "convpass runs in parallel to attention on the tokens that enter it, and this backbone's attention changes their width "
                "or map; take convpass[sites=mlp] or another method"
            )
        bypasses = (2 * block.dim * hidden + hidden + block.dim + 9 * hidden**2 + hidden for block in blocks)
        return len(self.halves) * sum(bypasses)


class Bypass(nn.Module):
    """up(φ(conv(φ(down(n))))).

    Args:
        dim: width of a token.
        hidden: channels of the bottleneck.
        layout: how tokens form a map, windows put together.
        generator: source of the initial weights.

    Shape: (…, dim) normed tokens to the same.
    """

    def __init__(self, dim: int, *, hidden: int, layout: TokenLayout, generator: torch.Generator) -> None:
        super().__init__()
        bound = (6 / (dim + hidden)) ** 0.5  # Xavier's
        self.down = linear((torch.rand(hidden, dim, generator=generator) * 2 - 1) * bound)
        self.convolution = nn.utils.skip_init(nn.Conv2d, hidden, hidden, KERNEL, padding=KERNEL // 2)
        nn.init.dirac_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)
        self.up = linear(torch.zeros(dim, hidden))
        self.layout = layout

    def forward(self, normed: Tensor) -> Tensor:
        return self.up(_gelu(self.layout.on_map(_gelu(self.down(normed)), self.convolution)))


def _gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


class BypassedBlock(nn.Module):
    """The backbone's block with a bypass parallel to its halves.

    Args:
        target: the backbone's block, frozen.
        bypasses: by ``proj`` (attention) and ``mlp``; a half without one is as it was.
        scale: s.
    """

    def __init__(self, target: BlockSite, bypasses: Mapping[str, Bypass], *, scale: float) -> None:
        super().__init__()
        self.block = target.block
        self.bypasses = nn.ModuleDict(bypasses)
        self.scale = scale
        self._norms = {half: target.path(NORMS[half]) for half in bypasses}

    def forward(self, tokens: Tensor) -> Tensor:
        for half, (own_map, changed) in zip(NORMS, halves_on_own_map(self.block), strict=True):
            before = own_map(tokens)
            tokens = changed(before)
            if half in self.bypasses:
                norm = self.block.get_submodule(self._norms[half])
                tokens = tokens + self.scale * self.bypasses[half](norm(before))
        return tokens


class Convpass(Method):
    """Convpass; see the module."""

    name = "convpass"
    config_class = ConvpassConfig
    config: ConvpassConfig

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        self.config.encoder_parameters(encoder.shape)  # refuses a backbone that it does not fit
        for target in block_sites(encoder, self.config.blocks):
            layout, device = target.layout_at("mlp_in"), next(target.block.parameters()).device
            bypasses = {
                half: Bypass(target.dim, hidden=self.config.hidden, layout=layout, generator=self.generator).to(device)
                for half in NORMS
                if half in self.config.halves
            }
            encoder.blocks[target.index] = BypassedBlock(target, bypasses, scale=self.config.scale)
