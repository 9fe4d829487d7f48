"""Backbones ``timm/MODEL``: the numbers of a plain ViT of timm, read from timm's own model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from harness.methods.parts.placement import BackboneShape
from harness.models.decoders import DecoderShape
from harness.models.known import IMAGENET, TIMM, TINY_DECODER, TOYS, Backbone, plain_blocks
from harness.system.errors import UsageError, did_you_mean


@lru_cache(maxsize=64)
def timm_backbone(name: str) -> Backbone:
    """The entry of ``timm/MODEL`` or of a toy, from a model of timm built without memory. Raises UsageError: timm has no such model, or it
    is not a plain ViT; says what it lacks."""
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
        yield "features without a pooling of their own (it pools by attention)"
    for block in vit.blocks:
        if type(block) is not (EvaBlock if rotary else Block):
            yield f"blocks with the norm in front (it has {type(block).__name__})"
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
