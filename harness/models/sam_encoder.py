"""SAM's image encoder (a ViTDet ViT, 2304.02643) with segment_anything's parameter names, fused attention and a grid
that methods can read."""

from __future__ import annotations

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from harness.methods.parts.placement import BackboneShape, BlockShape
from harness.methods.parts.sites import TokenGrid
from harness.models.attention import RelativeAttention


class TransformerBlock(nn.Module):
    """A transformer block with the names of segment_anything's ``TransformerBlock``: norm1, attn, norm2, mlp.lin1, mlp.lin2,
    window_size.

    Args:
        shape: the block's numbers.
        grid: side of the whole map in tokens.
        fused: see `RelativeAttention`.
    """

    def __init__(self, shape: BlockShape, *, grid: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.dim, eps=1e-6)
        side = shape.window or grid
        self.attn = RelativeAttention(dim=shape.dim, heads=shape.heads, side=side, fused=fused)
        self.norm2 = nn.LayerNorm(shape.dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=shape.dim, mlp_dim=shape.mlp_dim)
        self.window_size = shape.window

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to the same."""
        return self.mlp_half(self.attention_half(x))

    def attention_half(self, x: Tensor) -> Tensor:
        """x + attention(norm(x)), in windows where the block has them."""
        normed = self.norm1(x)
        if not self.window_size:
            return x + self.attn(normed)
        windows, padded = window_partition(normed, self.window_size)
        return x + window_unpartition(self.attn(windows), self.window_size, padded, x.shape[1:3])

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + MLP(norm(x))."""
        return x + self.mlp(self.norm2(x))


class SAMEncoder(ImageEncoderViT):
    """Images (B, 3, H, W) to an embedding (B, neck_dim, H/16, W/16); H and W are multiples of the patch.

    Args:
        shape: the encoder's numbers; ``image_size`` fixes the size of the position tables.
        fused: see `RelativeAttention`.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        super().__init__(
            img_size=shape.image_size,
            patch_size=shape.patch,
            embed_dim=shape.dim,
            depth=0,
            num_heads=shape.blocks[0].heads,
            out_chans=shape.neck_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
        )
        grid = shape.image_size // shape.patch
        self.blocks = nn.ModuleList(TransformerBlock(block, grid=grid, fused=fused) for block in shape.blocks)
        self.shape = shape
        self.grid = TokenGrid()
        self.activation_checkpointing = activation_checkpointing

    def embed(self, images: Tensor) -> Tensor:
        """Patches with absolute positions, (B, h, w, C); writes the grid. Another size than the built one
        interpolates the positions."""
        tokens = self.patch_embed(images)
        self.grid.height, self.grid.width = tokens.shape[1:3]
        assert self.pos_embed is not None
        tokens = tokens + resize_positions(self.pos_embed, self.grid.height, self.grid.width)
        # The convolution's layout, channels apart, would pass through every sum below, and each norm copy it together again.
        return tokens.contiguous()

    def run_blocks(self, tokens: Tensor) -> Tensor:
        return run_blocks(self.blocks, tokens, recompute=self.activation_checkpointing)

    def finish(self, tokens: Tensor) -> Tensor:
        """The neck: (B, h, w, C) to (B, neck_dim, h, w)."""
        # In the layout of images again: kept embeddings have it, and the decoder's kernels round by layout.
        return self.neck(tokens.permute(0, 3, 1, 2).contiguous())

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.run_blocks(self.embed(images)))

    def published(self, name: str) -> str:
        """The name of a tensor in SAM's checkpoints."""
        return name

    def unused(self) -> dict[str, Tensor]:
        """Names of a checkpoint's tensors that this encoder does not have: none."""
        return {}


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, *, recompute: bool) -> Tensor:
    """Run blocks one after the other; ``recompute`` keeps only each block's input for backward."""
    recompute = recompute and torch.is_grad_enabled()
    for block in blocks:
        tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
    return tokens


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
    """A SAM encoder's tensors with position tables fitted to ``shape.image_size``; everything else as it came.

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
