"""A plain ViT of timm as an image encoder: timm's own modules and parameter names; SAM's neck stands behind it.

So is DINOv3 (2508.10104), a plain ViT without absolute positions, whose attention is written out so that the sites are modules.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import TokenGrid
from harness.models.rotary import RotaryAttention, RotaryBlock, RotaryEncoder, Rotations
from harness.models.sam_encoder import run_blocks


def create_vit(model: str, image_size: int, **options: Any) -> VisionTransformer | Eva:
    """timm's model without a head, its position table made for ``image_size`` pixels a side.

    Args:
        options: numbers in which it differs from timm's own of that name.
    """
    vit = timm.create_model(
        model, pretrained=False, num_classes=0, global_pool="", img_size=image_size, dynamic_img_size=False, **options
    )
    assert isinstance(vit, VisionTransformer | Eva)
    return vit


class TimmEncoder(nn.Module):
    """Images (B, 3, H, W) to features (B, C, H/p, W/p); H and W are multiples of the patch.

    Args:
        vit: the model to take apart; its parameters keep their names here.
        shape: the encoder's numbers.
        fused: scaled_dot_product_attention; False builds the score matrix.
        activation_checkpointing: recompute each block in backward instead of keeping its activations.
    """

    gives_class_token = False
    """Whether what comes out is the class token instead of the patches."""

    blocks_in_a_row = True
    """Tokens pass what lies in front of `blocks` and then these, one after the other (`harness.training.prefix`)."""

    def __init__(
        self, vit: VisionTransformer, *, shape: BackboneShape, fused: bool, activation_checkpointing: bool
    ) -> None:
        super().__init__()
        self.patch_embed = vit.patch_embed
        self.patch_embed.strict_img_size = False
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.norm_pre, self.norm = vit.norm_pre, vit.norm
        self.blocks = nn.ModuleList(vit.blocks)
        for block in self.blocks:
            block.attn.fused_attn = fused  # type: ignore[union-attr]
        self.shape = shape
        self.grid = TokenGrid()
        self.activation_checkpointing = activation_checkpointing
        self._prefix_has_positions = not vit.no_embed_class

    def embed(self, images: Tensor) -> Tensor:
        """Patches with absolute positions behind the class and register tokens, (B, N, C); writes the grid."""
        patches = self.patch_embed(images)
        patch = self.shape.patch
        self.grid.height, self.grid.width = images.shape[-2] // patch, images.shape[-1] // patch
        prefix = _prefix(self, images)
        if not self._prefix_has_positions:
            return self.norm_pre(torch.cat([*prefix, patches + self._positions(0)], dim=1))
        return self.norm_pre(torch.cat([*prefix, patches], dim=1) + self._positions(self.shape.prefix_tokens))

    def _positions(self, prefix_tokens: int) -> Tensor:
        side = self.shape.image_size // self.shape.patch
        size = [self.grid.height, self.grid.width]
        assert self.pos_embed is not None
        if size == [side, side]:
            return self.pos_embed
        return resample_abs_pos_embed(
            self.pos_embed, new_size=size, old_size=[side, side], num_prefix_tokens=prefix_tokens
        )

    def run_blocks(self, tokens: Tensor) -> Tensor:
        return run_blocks(self.blocks, tokens, recompute=self.activation_checkpointing)

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm: (B, N, C) to (B, C, h, w), or to (B, C, 1, 1) with `gives_class_token`."""
        return _finished(self, tokens)

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(self.run_blocks(self.embed(images)))


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
        prefix = _prefix(self, images)
        return torch.cat([*prefix, self.patch_embed(images)], dim=1)

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm: (B, N, C) to (B, C, h, w), or to (B, C, 1, 1) with `gives_class_token`."""
        return _finished(self, tokens)


def _prefix(encoder: TimmEncoder | DINOv3Encoder, images: Tensor) -> list[Tensor]:
    """Class and register tokens, as far as there are any, for each image."""
    tokens = (token for token in (encoder.cls_token, encoder.reg_token) if token is not None)
    return [token.expand(images.shape[0], -1, -1) for token in tokens]


def _finished(encoder: TimmEncoder | DINOv3Encoder, tokens: Tensor) -> Tensor:
    normed = encoder.norm(tokens)
    if encoder.gives_class_token:
        return normed[:, 0, :, None, None]
    patches = normed[:, encoder.shape.prefix_tokens :]
    return patches.transpose(1, 2).reshape(tokens.shape[0], -1, encoder.grid.height, encoder.grid.width)


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
