"""Transformer blocks that know places by rotating queries and keys (RoPE, 2104.09864): DINOv3's, and SAM 3's in windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import TokenGrid
from harness.models.attention import full_attention
from harness.models.sam_encoder import run_blocks


@dataclass
class Rotations:
    """Sines and cosines by place, (h·w, 2·head width) each; the encoder writes them, attention reads them.

    Args:
        image: for attention over the whole grid.
        window: for attention inside a window.
    """

    image: Tensor = field(default_factory=lambda: torch.empty(0))
    window: Tensor = field(default_factory=lambda: torch.empty(0))


class RotaryAttention(nn.Module):
    """Multi-head attention whose queries and keys are rotated by their places; tokens without a place are not.

    Args:
        qkv: linear layer C -> 3C.
        proj: linear layer C -> C.
        heads: attention heads.
        rotations: where the encoder leaves them.
        windowed: attention inside a window, not over the image.
        by_halves: rotate channel i with channel i + width / 2 (DINOv3), else neighbours (SAM 3).
        fused: scaled_dot_product_attention; False builds the score matrix.
    """

    def __init__(
        self,
        *,
        qkv: nn.Linear,
        proj: nn.Linear,
        heads: int,
        rotations: Rotations,
        windowed: bool,
        by_halves: bool,
        fused: bool,
    ) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (proj.in_features // heads) ** -0.5
        self.qkv = qkv
        self.proj = proj
        self.rotations = rotations
        self.windowed = windowed
        self.by_halves = by_halves
        self.fused = fused

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Attend within each map or sequence.

        Args:
            x: (B', h, w, C), or (B, N, C) with tokens without a place in front, already normed.
            prefix: (B' or 1, n, C) further tokens, already normed, that are attended to and give no output.

        Returns:
            As ``x``.
        """
        q, k, v = self.heads(x)
        if prefix is not None:
            _, prefix_k, prefix_v = self._split(self.qkv(prefix.unsqueeze(2)))
            k = torch.cat([k, prefix_k.expand(x.shape[0], -1, -1, -1)], dim=2)
            v = torch.cat([v, prefix_v.expand(x.shape[0], -1, -1, -1)], dim=2)
        attend = scaled_dot_product_attention if self.fused else full_attention
        out = attend(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of the tokens ``x``: three of (B', heads, N, C/heads)."""
        q, k, v = self._split(self.qkv(x))
        return self._rotated(q), self._rotated(k), v

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B', …, 3C) to three of (B', heads, N, C/heads)."""
        q, k, v = qkv.flatten(1, -2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _rotated(self, tokens: Tensor) -> Tensor:
        rotation = self.rotations.window if self.windowed else self.rotations.image
        placeless = tokens.shape[2] - len(rotation)
        rotated = apply_rot_embed_cat(tokens[:, :, placeless:], rotation, half=self.by_halves).to(tokens.dtype)
        return torch.cat([tokens[:, :, :placeless], rotated], dim=2) if placeless else rotated


class RotaryBlock(nn.Module):
    """x + γ₁ attention(norm(x)), then x + γ₂ MLP(norm(x)); without γ where there is no layer scale.

    Args:
        norm1: before attention.
        attn: see `RotaryAttention`.
        norm2: before the MLP.
        mlp: with the linear layers ``fc1`` and ``fc2``.
        gamma_1, gamma_2: layer scales, (C,), or None.
        window: side of the attention window in tokens, 0 for none; None where tokens are a sequence, not a map.
    """

    def __init__(
        self,
        *,
        norm1: nn.Module,
        attn: RotaryAttention,
        norm2: nn.Module,
        mlp: nn.Module,
        gamma_1: nn.Parameter | None = None,
        gamma_2: nn.Parameter | None = None,
        window: int | None,
    ) -> None:
        super().__init__()
        self.gamma_1, self.gamma_2 = gamma_1, gamma_2
        self.norm1 = norm1
        self.attn = attn
        self.norm2 = norm2
        self.mlp = mlp
        self.window_size = window

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) or (B, N, C) to the same."""
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """x + γ₁ attention(norm(x))."""
        normed = self.norm1(x)
        if self.window_size:
            windows, padded = window_partition(normed, self.window_size)
            attended = window_unpartition(self.attn(windows), self.window_size, padded, x.shape[1:3])
        else:
            attended = self.attn(normed)
        return x + (attended if self.gamma_1 is None else self.gamma_1 * attended)

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + γ₂ MLP(norm(x))."""
        changed = self.mlp(self.norm2(x))
        return x + (changed if self.gamma_2 is None else self.gamma_2 * changed)


class RotaryEncoder(nn.Module):
    """What DINOv3's and SAM 3's encoders share; images (B, 3, H, W) to features (B, C, H/p, W/p).

    Args:
        blocks: in order.
        shape: the encoder's numbers.
        rotations: those that the blocks read.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
    """

    def __init__(
        self, blocks: list[RotaryBlock], *, shape: BackboneShape, rotations: Rotations, activation_checkpointing: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.shape = shape
        self.grid = TokenGrid()
        self.rotations = rotations
        self.activation_checkpointing = activation_checkpointing

    def note_grid(self, images: Tensor, rotate: Callable[[int, int], Tensor]) -> None:
        """Write grid and rotations for what is to come.

        Args:
            images: (B, 3, H, W).
            rotate: the table of a whole image, from its height and width in tokens.
        """
        patch = self.shape.patch
        self.grid.height, self.grid.width = images.shape[-2] // patch, images.shape[-1] // patch
        self.rotations.image = rotate(self.grid.height, self.grid.width).to(images.device)

    def embed(self, images: Tensor) -> Tensor:
        """Images to tokens; writes the grid."""
        raise NotImplementedError

    def run_blocks(self, tokens: Tensor) -> Tensor:
        return run_blocks(self.blocks, tokens, recompute=self.activation_checkpointing)

    def finish(self, tokens: Tensor) -> Tensor:
        """Tokens to features (B, C, h, w)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.run_blocks(self.embed(images)))
