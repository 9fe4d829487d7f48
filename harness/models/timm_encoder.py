"""Backbones ``timm/MODEL``: the numbers of a plain ViT of timm, read from timm's own model, and that ViT as an image encoder. It has
timm's own modules and parameter names; SAM's neck follows it.

This includes DINOv3 (2508.10104), whose blocks rotate queries and keys by position (RoPE, 2104.09864) instead of learning positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import timm
import torch
from timm.layers import AttentionRope
from timm.models import eva, vision_transformer
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from harness.methods.parts.placement import BackboneShape
from harness.models.decoders import DecoderShape
from harness.models.known import IMAGENET, TIMM, TINY_DECODER, TOYS, Backbone, plain_blocks
from harness.models.sam_encoder import BlockEncoder
from harness.system.errors import UsageError, did_you_mean


@lru_cache(maxsize=64)
def timm_backbone(name: str) -> Backbone:
    """The entry of ``timm/MODEL`` or of a toy, from a model of timm built without memory. Raises UsageError: timm has no such model, or it
    is not a plain ViT; the message says what it lacks."""
    model, size, options = TOYS.get(name, (name.removeprefix(TIMM), 0, {}))
    if not timm.is_model(model):
        near = did_you_mean(model, timm.list_models("vit_*"))
        near = near if "did you mean" in near else "; see timm.list_models()"
        raise UsageError(f"unknown backbone 'timm/{model}'{near}")
    with torch.device("meta"):
        vit: Any = timm.create_model(model, num_classes=0, **options)
    if lacking := list(_lacking(vit)):
        raise UsageError(
            f"'timm/{model}' is not a plain ViT: it lacks {', '.join(lacking)}; try one such as "
            "timm/vit_base_patch16_224 or timm/vit_base_patch16_dinov3"
        )
    block, rotary = vit.blocks[0], vit.pos_embed is None
    heads, hidden = block.attn.num_heads, block.mlp.fc1.out_features
    shape = BackboneShape(
        blocks=plain_blocks(dim=vit.embed_dim, depth=len(vit.blocks), heads=heads, mlp_dim=hidden),
        patch=vit.patch_embed.patch_size[0],
        neck_dim=0,
        prefix_tokens=vit.num_prefix_tokens,
        image_size=size or vit.patch_embed.img_size[0],
        final_norm=True,
        relative_positions="",
        layer_scale=block.gamma_1 is not None if rotary else hasattr(block.ls1, "gamma"),
        positioned_prefix=0 if rotary or vit.no_embed_class else vit.num_prefix_tokens,
        learnt_positions=0 if rotary else None,
        qkv_bias=block.attn.qkv.bias is not None,
        patch_bias=vit.patch_embed.proj.bias is not None,
        pre_norm=hasattr(getattr(vit, "norm_pre", None), "weight"),
    )
    unlisted = sum(p.numel() for p in vit.parameters()) - shape.parameters
    return Backbone(
        name=name,
        shape=shape,
        decoder=TINY_DECODER if name in TOYS else DecoderShape(),
        timm_model=model,
        timm_options=options,
        unlisted_parameters=unlisted,
        class_token=vit.cls_token is not None,
        pixels=IMAGENET if name in TOYS else (vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]),
    )


def _lacking(vit: Any) -> Iterator[str]:
    rotary = isinstance(vit, Eva)
    if not rotary and not isinstance(vit, VisionTransformer):
        yield f"the blocks of a VisionTransformer or of DINOv3 (it is a {type(vit).__name__})"
        return
    projection = getattr(vit.patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.in_channels != 3:
        yield "patches by one convolution of the image"
    if rotary:
        if vit.pos_embed is not None or vit.rope is None or vit.rope_mixed:
            yield "rotary positions alone, one rotation for all blocks"
    elif vit.pos_embed is None:
        yield "absolute positions"
    if getattr(vit, "attn_pool", None) is not None:
        yield "features without their own pooling (it pools by attention)"
    for block in vit.blocks:
        if type(block) is not (EvaBlock if rotary else Block):
            yield f"pre-norm blocks (it has {type(block).__name__})"
            return
        attention, mlp = block.attn, block.mlp
        if not isinstance(getattr(attention, "qkv", None), nn.Linear) or getattr(attention, "q_bias", None) is not None:
            yield "one linear layer for q, k and v (its bias included)"
        elif rotary and not all(isinstance(getattr(attention, n), nn.Identity) for n in ("q_norm", "k_norm", "norm")):
            yield "attention without norms of its own"
        elif rotary and attention.gate is not None:
            yield "attention without a gate"
        first, second = getattr(mlp, "fc1", None), getattr(mlp, "fc2", None)
        if not isinstance(first, nn.Linear) or second is None or second.in_features != first.out_features:
            yield f"an MLP of two linear layers (it has {type(mlp).__name__})"
        return


def create_vit(model: str, image_size: int, **options: Any) -> VisionTransformer | Eva:
    """timm's model without a head, its position table made for ``image_size`` pixels a side.

    Args:
        options: numbers in which it differs from timm's own model of that name.
    """
    vit = timm.create_model(
        model, pretrained=False, num_classes=0, global_pool="", img_size=image_size, dynamic_img_size=False, **options
    )
    assert isinstance(vit, VisionTransformer | Eva)
    return vit


def resized_for(state: dict[str, Tensor], vit: VisionTransformer | Eva) -> dict[str, Tensor]:
    """A model's tensors with the table of positions at the size of ``vit``, as timm resizes it."""
    fit = (eva if isinstance(vit, Eva) else vision_transformer).checkpoint_filter_fn
    return fit(state, vit, interpolation="bicubic", antialias=True)


class RotatedAttention:
    """Mixed into timm's attention with rotated queries and keys, in blocks that are not given the rotation; tokens in front of
    those with a position, however many, are not rotated."""

    rotations: SimpleNamespace

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B, P + h·w, C) to the same."""
        table = self.rotations.table
        self.num_prefix_tokens = x.shape[1] - len(table)
        return super().forward(x, rope=table)  # type: ignore[misc]


class _Eva(RotatedAttention, EvaAttention):
    pass


class _Rope(RotatedAttention, AttentionRope):
    pass


class TimmEncoder(BlockEncoder):
    """Images (B, 3, H, W) to features (B, C, H/p, W/p); H and W are the shape's unless positions are rotary. Tokens are (B, P + N, C).

    Args:
        vit: the model to take apart; its parameters keep their names here.
        shape: the encoder's numbers.
        fused: scaled_dot_product_attention; False builds the score matrix.
        activation_checkpointing: see `BlockEncoder`.
    """

    of_sam = False
    gives_class_token = False
    """Whether the output is the class token instead of the patches."""

    def __init__(
        self, vit: VisionTransformer | Eva, *, shape: BackboneShape, fused: bool, activation_checkpointing: bool
    ) -> None:
        super().__init__(shape, activation_checkpointing=activation_checkpointing)
        self.patch_embed = vit.patch_embed
        self.patch_embed.strict_img_size = False
        self.cls_token, self.reg_token = vit.cls_token, vit.reg_token
        self.pos_embed: Any = vit.pos_embed
        self.norm_pre, self.norm = getattr(vit, "norm_pre", nn.Identity()), vit.norm
        self.blocks = nn.ModuleList(vit.blocks)
        self.rope: Any = vit.rope if isinstance(vit, Eva) else None
        # Sines and cosines by position, (h·w, 2·head width): the encoder writes them, attention reads them.
        self.rotations = SimpleNamespace(table=torch.empty(0))
        for block in self.blocks:
            attention: Any = block.attn
            attention.fused_attn = fused
            if self.rope is not None:
                attention.__class__ = _Eva if isinstance(attention, EvaAttention) else _Rope
                attention.rotations = self.rotations

    def embed(self, images: Tensor) -> Tensor:
        """Patches after the class and register tokens, (B, N, C), with absolute positions where the model has them; writes the grid."""
        self._write_grid(images)
        patches = self.patch_embed(images)
        leading = (token for token in (self.cls_token, self.reg_token) if token is not None)
        prefix = [token.expand(images.shape[0], -1, -1) for token in leading]
        if self.rope is not None:
            self.rotations.table = self.rope.get_embed(shape=[self.grid.height, self.grid.width]).to(images.device)
        elif self.shape.positioned_prefix:
            return self.norm_pre(torch.cat([*prefix, patches], dim=1) + self.pos_embed)
        else:
            patches = patches + self.pos_embed
        return self.norm_pre(torch.cat([*prefix, patches], dim=1))

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm: (B, N, C) to (B, C, h, w), or to (B, C, 1, 1) with `gives_class_token`."""
        normed = self.norm(tokens)
        if self.gives_class_token:
            return normed[:, 0, :, None, None]
        patches = normed[:, self.shape.prefix_tokens :]
        return patches.transpose(1, 2).reshape(tokens.shape[0], -1, self.grid.height, self.grid.width)
