"""SAM 3's image trunk (facebookresearch/sam3): a windowed ViT with rotated queries and keys, under its own parameter names.

What SAM 3 puts behind it (a feature pyramid, a detector with text) is no part of it: SAM's neck and mask decoder stand here,
and the neck trains with the decoder as behind a timm ViT. Absolute positions are those of its pre-training at 24×24, tiled
over the grid; in global blocks the places are squeezed so that the grid spans one window.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling.image_encoder import PatchEmbed
from timm.layers import Mlp
from torch import Tensor, nn

from harness.methods.parts.placement import BackboneShape, BlockShape
from harness.models.rotary import RotaryAttention, RotaryBlock, RotaryEncoder, Rotations

_TRUNK = "detector.backbone.vision_backbone.trunk."
_HF_TRUNK = "vision_encoder.backbone."
_HF_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("layers.", "blocks."),
    (".layer_norm", ".norm"),
    (".attention.o_proj.", ".attn.proj."),
    (".attention.", ".attn."),
)
_BASE = 10_000.0


def axial_rotations(height: int, width: int, *, head_dim: int, squeeze: float) -> Tensor:
    """Sines and cosines, (height·width, 2·head_dim): half of a head's pairs turn with the column, half with the row.

    Args:
        head_dim: channels of a head, a multiple of 4.
        squeeze: factor of the places.
    """
    speeds = _BASE ** -(torch.arange(0, head_dim, 4) / head_dim)
    rows = torch.arange(height).repeat_interleave(width) * squeeze
    columns = torch.arange(width).repeat(height) * squeeze
    angles = torch.cat([columns[:, None] * speeds, rows[:, None] * speeds], dim=1).repeat_interleave(2, dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SAM3Encoder(RotaryEncoder):
    """Tokens are (B, h, w, C).

    Args:
        shape: the encoder's numbers; ``learnt_positions`` is a square.
        fused: scaled_dot_product_attention; False builds the score matrix.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        rotations = Rotations()
        super().__init__(
            [_block(block, rotations=rotations, fused=fused) for block in shape.blocks],
            shape=shape,
            rotations=rotations,
            activation_checkpointing=activation_checkpointing,
        )
        size = (shape.patch, shape.patch)
        self.patch_embed = PatchEmbed(kernel_size=size, stride=size, embed_dim=shape.dim)
        self.patch_embed.proj = nn.Conv2d(3, shape.dim, kernel_size=size, stride=size, bias=False)
        assert shape.learnt_positions is not None
        self.pos_embed = nn.Parameter(torch.empty(1, shape.learnt_positions, shape.dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.ln_pre = nn.LayerNorm(shape.dim)

    def embed(self, images: Tensor) -> Tensor:
        """Normed patches with tiled positions, (B, h, w, C); writes the grid."""
        first = self.shape.blocks[0]
        head_dim, window = first.dim // first.heads, first.window
        self.note_grid(
            images, lambda height, width: axial_rotations(height, width, head_dim=head_dim, squeeze=window / width)
        )
        self.rotations.window = axial_rotations(window, window, head_dim=head_dim, squeeze=1.0).to(images.device)
        return self.ln_pre(self.patch_embed(images) + self._positions())

    def _positions(self) -> Tensor:
        side = int(self.pos_embed.shape[1] ** 0.5)
        rows, columns = -(-self.grid.height // side), -(-self.grid.width // side)
        tiled = self.pos_embed.reshape(1, side, side, -1).tile(1, rows, columns, 1)
        return tiled[:, : self.grid.height, : self.grid.width]

    def finish(self, tokens: Tensor) -> Tensor:
        """(B, h, w, C) to (B, C, h, w); the trunk has no norm at its end."""
        return tokens.permute(0, 3, 1, 2)


def _block(shape: BlockShape, *, rotations: Rotations, fused: bool) -> RotaryBlock:
    attention = RotaryAttention(
        qkv=nn.Linear(shape.dim, 3 * shape.dim),
        proj=nn.Linear(shape.dim, shape.dim),
        heads=shape.heads,
        rotations=rotations,
        windowed=bool(shape.window),
        by_halves=False,
        fused=fused,
    )
    return RotaryBlock(
        norm1=nn.LayerNorm(shape.dim),
        attn=attention,
        norm2=nn.LayerNorm(shape.dim),
        mlp=Mlp(shape.dim, shape.mlp_dim),
        window=shape.window,
    )


def trunk_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's tensors under the names of `SAM3Encoder`, from SAM 3's own checkpoint, from one of transformers'
    ``Sam3Model``, or from a trunk alone; empty where there is none.

    Rotations are derived and not read. The class token's row of the position embedding, which SAM 3 never uses, is left out.
    """
    trunk = {name.removeprefix(_TRUNK): tensor for name, tensor in tensors.items() if name.startswith(_TRUNK)}
    if not trunk:
        trunk = _from_transformers(tensors) or dict(tensors)
    trunk = {name: tensor for name, tensor in trunk.items() if ".freqs_cis" not in name}
    positions = trunk.get("pos_embed")
    if positions is not None and positions.ndim == 3 and int(positions.shape[1] ** 0.5) ** 2 == positions.shape[1] - 1:
        trunk["pos_embed"] = positions[:, 1:]
    return trunk


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    trunk: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        _, inside, name = full.partition(_HF_TRUNK)
        if not inside:
            continue
        name = name.replace("layer_norm.", "ln_pre.") if name.startswith("layer_norm.") else name
        for theirs, ours in _HF_NAMES:
            name = name.replace(theirs, ours)
        layer, projection, leaf = name.rpartition("_proj.")
        if projection:
            apart.setdefault(f"{layer[:-1]}qkv.{leaf}", {})[layer[-1]] = tensor
        else:
            trunk[name] = tensor
    return trunk | {name: torch.cat([parts[part] for part in "qkv" if part in parts]) for name, parts in apart.items()}
