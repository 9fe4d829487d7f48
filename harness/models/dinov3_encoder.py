"""DINOv3 (2508.10104) in timm, a plain ViT without absolute positions, as an image encoder: timm's own layers and parameter
names, its attention written out so that the sites are modules; SAM's neck stands behind it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor

from harness.methods.parts.placement import BackboneShape
from harness.models.rotary import RotaryAttention, RotaryBlock, RotaryEncoder, Rotations


class DINOv3Encoder(RotaryEncoder):
    """Tokens are (B, N, C) with class and register tokens in front.

    Args:
        vit: the model to take apart; its parameters keep their names here.
        shape: the encoder's numbers.
        fused: scaled_dot_product_attention; False builds the score matrix.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
    """

    gives_class_token = False
    """Whether what comes out is the class token instead of the patches."""

    def __init__(self, vit: Eva, *, shape: BackboneShape, fused: bool, activation_checkpointing: bool) -> None:
        rotations = Rotations()
        blocks = [_block(block, shape=shape, rotations=rotations, fused=fused) for block in vit.blocks]
        super().__init__(blocks, shape=shape, rotations=rotations, activation_checkpointing=activation_checkpointing)
        self.patch_embed = vit.patch_embed
        self.patch_embed.strict_img_size = False
        self.cls_token, self.reg_token, self.norm = vit.cls_token, vit.reg_token, vit.norm
        self.rope: Any = vit.rope

    def embed(self, images: Tensor) -> Tensor:
        """Patches behind the class and register tokens, (B, N, C); writes the grid."""
        self.note_grid(images, lambda height, width: self.rope.get_embed(shape=[height, width]))
        prefix = [
            token.expand(images.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        return torch.cat([*prefix, self.patch_embed(images)], dim=1)

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm: (B, N, C) to (B, C, h, w), or to (B, C, 1, 1) with `gives_class_token`."""
        normed = self.norm(tokens)
        if self.gives_class_token:
            return normed[:, 0, :, None, None]
        patches = normed[:, self.shape.prefix_tokens :]
        return patches.transpose(1, 2).reshape(tokens.shape[0], -1, self.grid.height, self.grid.width)


def _block(block: Any, *, shape: BackboneShape, rotations: Rotations, fused: bool) -> RotaryBlock:
    attention = RotaryAttention(
        qkv=block.attn.qkv,
        proj=block.attn.proj,
        heads=shape.blocks[0].heads,
        rotations=rotations,
        windowed=False,
        by_halves=block.attn.rotate_half,
        fused=fused,
    )
    return RotaryBlock(
        norm1=block.norm1,
        attn=attention,
        norm2=block.norm2,
        mlp=block.mlp,
        gamma_1=block.gamma_1,
        gamma_2=block.gamma_2,
        window=None,
    )
