"""SAM's image encoder (a ViTDet ViT, 2304.02643) with segment_anything's parameter names, fused attention and a grid
that methods can read; and what all image encoders here have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.image_encoder import PatchEmbed, window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d
from torch.utils.checkpoint import checkpoint

from harness.methods.parts.placement import BackboneShape, BlockShape
from harness.methods.parts.sites import TokenGrid
from harness.models.attention import RelativeAttention


class BlockEncoder(nn.Module):
    """Images (B, 3, H, W) to features (B, C, h, w): `embed`, the blocks, `finish`. See `harness.methods.parts.sites.Encoder`.

    Args:
        shape: the encoder's numbers.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    blocks: nn.ModuleList
    neck: nn.Module
    of_sam: ClassVar[bool] = True
    """Whether published checkpoints hold it together with its prompt encoder and mask decoder."""

    def __init__(self, shape: BackboneShape, *, activation_checkpointing: bool) -> None:
        super().__init__()
        self.shape = shape
        self.grid = TokenGrid()
        self.activation_checkpointing = activation_checkpointing

    def embed(self, images: Tensor) -> Tensor:
        """Images to the tokens of the first block; writes the grid."""
        raise NotImplementedError

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Pass tokens through all blocks; with activation checkpointing only each block's input is kept for the backward pass."""
        return self._run(self.blocks, tokens)

    def finish(self, tokens: Tensor) -> Tensor:
        """From the tokens of `run_blocks` to the encoder's output; here SAM's neck: (B, h, w, C) to (B, neck_dim, h, w)."""
        # In the layout of images: cached embeddings have it, and the rounding of the decoder's kernels depends on it.
        return self.neck(tokens.permute(0, 3, 1, 2).contiguous())

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.run_blocks(self.embed(images)))

    def published(self, name: str) -> str:
        """The name of a tensor in the checkpoints of the encoder's family."""
        return name

    def from_published(self, state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """A checkpoint's tensors, divided as the ``names`` here need where its family divides them differently (SAM 3)."""
        return state

    def to_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A whole segmenter's tensors as the checkpoints of the encoder's family divide them; undone by `from_published`."""
        return state

    def unused(self) -> dict[str, Tensor]:
        """Tensors of published checkpoints that nothing here uses, by their names."""
        return {}

    def _write_grid(self, images: Tensor) -> None:
        patch = self.shape.patch
        self.grid.height, self.grid.width = images.shape[-2] // patch, images.shape[-1] // patch

    def _run(self, blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        return tokens


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with the names of segment_anything's ``TransformerBlock``. Where the width changes
    (SAM 2), pool(P norm(x)) takes the place of the first x.

    Args:
        shape: the block's numbers.
        attn: its attention inside a map (B', h, w, C).
    """

    def __init__(self, shape: BlockShape, attn: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.entering, eps=1e-6)
        self.attn = attn
        self.proj = nn.Linear(shape.entering, shape.dim) if shape.inputs else None
        self.norm2 = nn.LayerNorm(shape.dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=shape.dim, mlp_dim=shape.mlp_dim)
        self.window_size = shape.window
        self.pool = shape.pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to (B, h / pool, w / pool, D)."""
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """Attention with its residual connection, in windows where the block has them."""
        normed = self.norm1(x)
        residual = x if self.proj is None else pooled(self.proj(normed), self.pool)
        if not self.window_size:
            return residual + self.attn(normed)
        windows, (height, width) = window_partition(normed, self.window_size)
        side, padded = self.window_size // self.pool, (height // self.pool, width // self.pool)
        return residual + window_unpartition(self.attn(windows), side, padded, residual.shape[1:3])

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + MLP(norm(x))."""
        return x + self.mlp(self.norm2(x))


def pooled(tokens: Tensor, side: int) -> Tensor:
    """Max-pool tokens (B, h, w, C) over squares of ``side``, to (B, h / side, w / side, C)."""
    return tokens if side == 1 else max_pool2d(tokens.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


class SAMEncoder(BlockEncoder):
    """Images (B, 3, H, W) to an embedding (B, neck_dim, H/16, W/16); H and W are multiples of the patch.

    Args:
        shape: the encoder's numbers; ``image_size`` fixes the size of the position tables.
        fused: see `RelativeAttention`.
        activation_checkpointing: see `BlockEncoder`.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        super().__init__(shape, activation_checkpointing=activation_checkpointing)
        side, patch = shape.image_size // shape.patch, (shape.patch, shape.patch)
        self.patch_embed = PatchEmbed(kernel_size=patch, stride=patch, embed_dim=shape.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, shape.dim))
        self.blocks = nn.ModuleList()
        self.neck = sam_neck(shape.dim, shape.neck_dim)
        for block in shape.blocks:
            span = block.window or side
            attention = RelativeAttention(dim=block.dim, heads=block.heads, side=span, fused=fused)
            self.blocks.append(TransformerBlock(block, attention))

    def embed(self, images: Tensor) -> Tensor:
        """Patches with absolute positions, (B, h, w, C); writes the grid. The positions are
        interpolated for a size other than the one built for."""
        self._write_grid(images)
        tokens = self.patch_embed(images) + resize_positions(self.pos_embed, self.grid.height, self.grid.width)
        # The convolution's layout, channels first, would pass through every sum below, and each norm would make a contiguous copy.
        return tokens.contiguous()


def resize_positions(table: Tensor, height: int, width: int) -> Tensor:
    """Absolute positions (1, H, W, C) on another grid, bicubic with antialiasing; the same tensor where the grid
    fits."""
    if table.shape[1:3] == (height, width):
        return table
    resized = interpolate(
        table.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


def resize_state(state: dict[str, Tensor], shape: BackboneShape) -> dict[str, Tensor]:
    """A SAM encoder's tensors with position tables fitted to ``shape.image_size``; everything else unchanged.

    Absolute positions are resized bicubically; relative positions of global blocks linearly, as segment_anything's
    ``get_rel_pos`` would do on each call. Windows keep their size, so their tables stay.

    Args:
        state: tensors by segment_anything's names without ``image_encoder.``.
    """
    side = shape.image_size // shape.patch
    fitted = dict(state)
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 4:
        fitted["pos_embed"] = resize_positions(positions, side, side)
    for index in shape.global_blocks:
        for axis in "hw":
            name = f"blocks.{index}.attn.rel_pos_{axis}"
            table = state.get(name)
            if table is not None and table.ndim == 2 and len(table) != 2 * side - 1:
                fitted[name] = interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T.contiguous()
    return fitted


def sam_neck(dim: int, neck_dim: int) -> nn.Sequential:
    """The neck of SAM's image encoder: 1x1 convolution, norm, 3x3 convolution, norm."""
    return nn.Sequential(
        nn.Conv2d(dim, neck_dim, kernel_size=1, bias=False),
        LayerNorm2d(neck_dim),
        nn.Conv2d(neck_dim, neck_dim, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(neck_dim),
    )
