"""Ladder side tuning, LST (2206.06522): a narrow transformer parallel to the frozen backbone; no gradient passes the
backbone.

Rung i takes the frozen block's output h_i: s_i = block_i(μ_i · down_i(h_i) + (1 − μ_i) · s_{i−1}) with μ_i = σ(a_i /
0.1), a_i = 0 at init, s_0 = down_0 of the embedding. down_i is a linear layer without bias; a side block is a
transformer block of width d / r and MLP width 4 d / r. It attends where its backbone block does (window or image), and its
only positions are those in h_i. The frozen blocks run without gradient: of each, backward keeps the output
alone, which the weight gradient of down_i needs. Where the backbone recomputes activations in backward, rungs are
recomputed. Deviations (ours): the final up-projection starts at zero and its output is added to the backbone's last
tokens. So the start is the identity, and SAM's neck gets tokens that it was trained on. Side blocks start Kaiming-uniform,
not from pruned backbone weights. No rung is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import linear, started_linear
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import Adaptable, Encoder, TokenLayout, block_sites

TEMPERATURE = 0.1


@dataclass(frozen=True, kw_only=True)
class LSTConfig(PlacedConfig):
    """Ladder side tuning (2206.06522): a narrow network parallel to the frozen backbone, fed by its blocks' outputs.

    Args:
        blocks: which blocks have a rung, that is a side block fed by them.
        reduction: the side network is this many times narrower, 8 (paper).
    """

    reduction: Count = 8

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return None

    def width(self, shape: BackboneShape) -> int:
        shape.require_one_width("lst", "has one ladder of one width over one map")
        return max(1, shape.dim // self.reduction)

    def hidden(self, shape: BackboneShape) -> int:
        return max(1, shape.blocks[0].mlp_dim // self.reduction)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width, hidden = self.width(shape), self.hidden(shape)
        side_block = 4 * width + 4 * (width * width + width) + 2 * width * hidden + hidden + width
        rungs = len(self.placed(shape))
        down = (rungs + 1) * shape.dim * width  # one for the embedding that the ladder starts from
        return down + rungs * (side_block + 1) + 2 * width + width * shape.dim


class SideBlock(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + MLP(norm(x)).

    Args:
        width: of a token.
        hidden: of the MLP.
        heads: attention heads.
        layout: of the backbone block that it follows; attention stays inside that block's windows.
        generator: source of the initial weights.

    Shape: (B, h, w, width) or (B, N, width) to the same.
    """

    def __init__(self, width: int, *, hidden: int, heads: int, layout: TokenLayout, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.layout = layout
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = started_linear(width, 3 * width, generator), started_linear(width, width, generator)
        self.mlp_in, self.mlp_out = started_linear(width, hidden, generator), started_linear(hidden, width, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.norm2(tokens))))

    def _attend(self, tokens: Tensor) -> Tensor:
        if not self.layout.window:
            return self._attention(tokens.flatten(1, -2)).reshape(tokens.shape)
        windows = self.layout.to_windows(tokens.permute(0, 3, 1, 2))
        attended = self._attention(windows.flatten(1, 2)).reshape(windows.shape)
        return self.layout.to_image(attended).permute(0, 2, 3, 1)

    def _attention(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        heads = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Rung(nn.Module):
    """s ← block(μ · down(h) + (1 − μ) · s).

    Args:
        down: linear layer D -> width, no bias.
        block: the side block.
    """

    def __init__(self, *, down: nn.Linear, block: SideBlock) -> None:
        super().__init__()
        self.down = down
        self.block = block
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, side: Tensor, frozen: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate / TEMPERATURE)
        return self.block(share * self.down(frozen) + (1 - share) * side)


class Ladder(nn.Module):
    """The side network.

    Args:
        config: see `LSTConfig`.
        encoder: the backbone that it is parallel to.
        generator: source of the initial weights.
    """

    def __init__(self, config: LSTConfig, *, encoder: Encoder, generator: torch.Generator) -> None:
        super().__init__()
        shape = encoder.shape
        width, hidden = config.width(shape), config.hidden(shape)
        heads = max(heads for heads in range(1, shape.blocks[0].heads + 1) if width % heads == 0)
        self.down = started_linear(shape.dim, width, generator, bias=False)
        self.rungs = nn.ModuleDict()
        for target in block_sites(encoder, config.blocks):
            block = SideBlock(width, hidden=hidden, heads=heads, layout=target.layout, generator=generator)
            self.rungs[str(target.index)] = Rung(
                down=started_linear(shape.dim, width, generator, bias=False), block=block
            )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = linear(torch.zeros(shape.dim, width), bias=False)


class LadderEncoder(nn.Module):
    """An encoder with a parallel ladder; itself an `Encoder`.

    Args:
        base: the backbone, frozen.
        ladder: the side network.
    """

    def __init__(self, base: Encoder, ladder: Ladder) -> None:
        super().__init__()
        self.base = base
        self.ladder = ladder

    def __getattr__(self, name: str) -> Any:
        """Attributes that it does not have itself are the backbone's: blocks, grid, shape, `finish`, …"""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        side = self.ladder.down(tokens)
        recompute = self.base.activation_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(self.base.blocks):
            with torch.no_grad():
                tokens = block(tokens)
            if str(index) in self.ladder.rungs:
                rung = self.ladder.rungs[str(index)]
                side = checkpoint(rung, side, tokens, use_reentrant=False) if recompute else rung(side, tokens)
        return tokens + self.ladder.up(self.ladder.norm(side))

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.run_blocks(self.embed(images)))


class LST(Method):
    """LST; see the module."""

    name = "lst"
    config_class = LSTConfig
    config: LSTConfig

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        ladder = Ladder(self.config, encoder=encoder, generator=self.generator)
        device = next(encoder.parameters()).device
        segmenter.encoder = LadderEncoder(encoder, ladder.to(device))
