"""Backbones by name: their shapes and their closed-form parameter counts. Free of torch, so that planning is cheap.

``vit_b``, ``vit_l`` and ``vit_h`` carry the numbers of segment_anything's own builders (2304.02643). ``vit_t`` is a
SAM small enough for
tests and demos, with everything the large ones have: windows that need padding, global blocks, relative positions.
``timm/<model>`` is any plain ViT of timm under SAM's neck and mask decoder; ``vit_t_timm`` is timm's ``test_vit``
under the tiny decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from harness.errors import UsageError, did_you_mean
from harness.models.decoders import HEAD_DIM, Decoder, dense_parameters
from methods.configs import FullConfig
from methods.parts.placement import BackboneShape

Task = Literal["binary", "multiclass"]
TIMM = "timm/"
SPARE_TOKENS = 3
"""SAM's mask tokens 1-3, for ambiguous prompts: they stay in the decoder as they are, so that token 0 sees what it
saw in pre-training."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Numbers of SAM's mask decoder and prompt encoder.

    Args:
        dim: width of tokens and of the image embedding.
        mlp_dim: hidden width of the two-way transformer's MLP.
        heads: attention heads of the two-way transformer.
        depth: its layers.
        mask_channels: channels of the prompt encoder's mask branch.
    """

    dim: int = 256
    mlp_dim: int = 2048
    heads: int = 8
    depth: int = 2
    mask_channels: int = 16

    @property
    def hypernetwork(self) -> int:
        """Parameters of one hypernetwork MLP, dim -> dim -> dim -> dim / 8."""
        return 2 * _linear(self.dim, self.dim) + _linear(self.dim, self.dim // 8)

    def trained(self, *, task: Task, num_classes: int, mask_tokens: int) -> int:
        """Parameters of decoder and head that every method trains: no IoU head, no spare tokens, one hypernetwork
        MLP."""
        narrow = 3 * _linear(self.dim, self.dim // 2) + _linear(self.dim // 2, self.dim)
        layer = 4 * _linear(self.dim, self.dim) + 2 * narrow + _mlp(self.dim, self.mlp_dim) + 4 * 2 * self.dim
        transformer = self.depth * layer + narrow + 2 * self.dim
        quarter, eighth = self.dim // 4, self.dim // 8
        upscaling = 4 * self.dim * quarter + quarter + 2 * quarter + 4 * quarter * eighth + eighth
        tokens = (1 + (mask_tokens if task == "multiclass" else 1)) * self.dim
        head = _linear(self.dim, num_classes + 1) if task == "multiclass" else 0
        return transformer + upscaling + tokens + self.hypernetwork + head

    @property
    def frozen(self) -> int:
        """The rest of the decoder (spare tokens and MLPs, IoU head) and the prompt encoder."""
        tokens = 1 + SPARE_TOKENS
        iou_head = 2 * _linear(self.dim, self.dim) + _linear(self.dim, tokens)
        quarter = self.mask_channels // 4
        masks = (
            4 * quarter
            + quarter
            + 2 * quarter
            + 4 * quarter * self.mask_channels
            + self.mask_channels
            + 2 * self.mask_channels
        )
        prompts = 6 * self.dim + masks + _linear(self.mask_channels, self.dim)
        return SPARE_TOKENS * (self.hypernetwork + self.dim) + iou_head + prompts


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One entry of the catalogue.

    Args:
        name: as on the command line.
        shape: numbers of the encoder at its own image size.
        decoder: numbers of the mask decoder on top.
        timm_model: timm's name, empty for SAM's own encoders.
        unlisted_parameters: what a timm model has beyond the closed form (such as CLIP's norm before the blocks).
    """

    name: str
    shape: BackboneShape
    decoder: DecoderShape = DecoderShape()
    timm_model: str = ""
    unlisted_parameters: int = 0


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _mlp(dim: int, hidden: int) -> int:
    return _linear(dim, hidden) + _linear(hidden, dim)


def _sam(name: str, *, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Backbone:
    shape = BackboneShape(
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=4 * dim,
        patch=16,
        window=14,
        global_blocks=global_blocks,
        neck_dim=256,
        prefix_tokens=0,
        image_size=1024,
    )
    return Backbone(name=name, shape=shape)


def _timm(
    model: str,
    *,
    dim: int,
    depth: int,
    heads: int,
    patch: int,
    image_size: int,
    mlp_dim: int = 0,
    prefix_tokens: int = 1,
    positioned_prefix: int = 1,
    layer_scale: bool = False,
    decoder: DecoderShape = DecoderShape(),
    name: str = "",
) -> Backbone:
    shape = BackboneShape(
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim or 4 * dim,
        patch=patch,
        window=0,
        global_blocks=tuple(range(depth)),
        neck_dim=0,
        prefix_tokens=prefix_tokens,
        image_size=image_size,
        final_norm=True,
        relative_positions=False,
        layer_scale=layer_scale,
        positioned_prefix=positioned_prefix,
    )
    return Backbone(name=name or TIMM + model, shape=shape, decoder=decoder, timm_model=model)


_TINY_DECODER = DecoderShape(dim=64, mlp_dim=128, heads=4)
_WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _catalogue() -> dict[str, Backbone]:
    tiny = BackboneShape(
        dim=64,
        depth=4,
        heads=2,
        mlp_dim=256,
        patch=16,
        window=3,
        global_blocks=(1, 3),
        neck_dim=64,
        prefix_tokens=0,
        image_size=128,
    )
    entries = [
        Backbone(name="vit_t", shape=tiny, decoder=_TINY_DECODER),
        _sam("vit_b", dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
        _sam("vit_l", dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        _sam("vit_h", dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        _timm("test_vit", dim=64, depth=6, heads=2, mlp_dim=192, patch=16, image_size=160),
        _timm(
            "test_vit",
            dim=64,
            depth=6,
            heads=2,
            mlp_dim=192,
            patch=16,
            image_size=160,
            decoder=_TINY_DECODER,
            name="vit_t_timm",
        ),
    ]
    for width, (dim, depth, heads) in _WIDTHS.items():
        for size in (224, 384):
            entries.append(
                _timm(f"vit_{width}_patch16_{size}", dim=dim, depth=depth, heads=heads, patch=16, image_size=size)
            )
        if width == "tiny":
            continue
        dino = _timm(
            f"vit_{width}_patch14_dinov2", dim=dim, depth=depth, heads=heads, patch=14, image_size=518, layer_scale=True
        )
        registers = replace(
            dino,
            name=f"timm/vit_{width}_patch14_reg4_dinov2",
            timm_model=f"vit_{width}_patch14_reg4_dinov2",
            shape=replace(dino.shape, prefix_tokens=5, positioned_prefix=0),
        )
        entries += [dino, registers]
    return {entry.name: entry for entry in entries}


_KNOWN = _catalogue()


def backbone_names() -> list[str]:
    """Names of the catalogue; beyond them every plain ViT of timm is reachable as ``timm/<model>``."""
    return list(_KNOWN)


def backbone(name: str) -> Backbone:
    """The entry behind ``name`` (hyphens and underscores, any case, are alike).

    Raises:
        UsageError: unknown, with the nearest name; or a timm model that is no plain ViT.
    """
    wanted = name.strip().lower().replace("-", "_")
    if wanted in _KNOWN:
        return _KNOWN[wanted]
    if wanted.startswith(TIMM):
        return _ask_timm(wanted.removeprefix(TIMM))
    raise UsageError(f"unknown backbone {name!r}{did_you_mean(name, [*_KNOWN, 'timm/MODEL'])}")


def resolve_backbone(name: str) -> str:
    """The catalogue's spelling of ``name``; raises as `backbone` does."""
    return backbone(name).name


def require_stands(decoder: Decoder, name: str) -> None:
    """Raises UsageError where the decoder cannot stand on the backbone ``name``."""
    entry = backbone(name)
    if decoder != "sam" and not entry.timm_model:
        raise UsageError(
            f"decoder={decoder} is Segmenter's and stands on a plain ViT of timm, not on {entry.name}; "
            f"take one such as --backbone {TIMM}vit_base_patch16_224, or decoder=sam"
        )
    if decoder == "mask-transformer" and entry.shape.dim % HEAD_DIM:
        raise UsageError(
            f"decoder=mask-transformer has heads of {HEAD_DIM} channels, and {entry.name} is {entry.shape.dim} wide; "
            "take decoder=linear"
        )


def backbone_shape(name: str, image_size: int | None = None) -> BackboneShape:
    """The encoder's numbers at ``image_size`` pixels a side (its own size where None).

    Raises:
        UsageError: unknown name, or a size that is no multiple of the patch.
    """
    shape = backbone(name).shape
    if image_size is None:
        return shape
    if image_size <= 0 or image_size % shape.patch:
        below = max(image_size // shape.patch, 1) * shape.patch
        raise UsageError(
            f"image size {image_size} is no multiple of the {shape.patch} px patch of {name}; "
            f"take {below} or {below + shape.patch}"
        )
    return replace(shape, image_size=image_size)


def decoder_parameters(
    name: str, *, task: Task, num_classes: int = 2, mask_tokens: int = 1, decoder: Decoder = "sam"
) -> int:
    """Trained parameters of mask decoder and head (3,505,536 at 256-d, binary), and of the neck behind a timm ViT; or of
    Segmenter's decoder, which has neither.

    Args:
        task: ``binary`` has one mask token and no class head.
        num_classes: classes of a multi-class benchmark, background included; the head adds one for "nothing".
        mask_tokens: K mask tokens of a multi-class head.
        decoder: see `harness.models.decoders`.
    """
    entry = backbone(name)
    if decoder != "sam":
        classes = num_classes if task == "multiclass" else 2
        return dense_parameters(decoder, dim=entry.shape.dim, classes=classes)
    dim = entry.decoder.dim
    neck = entry.shape.dim * dim + 9 * dim**2 + 4 * dim if entry.timm_model else 0
    return neck + entry.decoder.trained(task=task, num_classes=num_classes, mask_tokens=mask_tokens)


def encoder_parameters(name: str, *, image_size: int | None = None) -> int:
    """All parameters of the image encoder, SAM's neck included."""
    return FullConfig().encoder_parameters(backbone_shape(name, image_size)) + backbone(name).unlisted_parameters


def total_parameters(
    name: str,
    *,
    task: Task,
    num_classes: int = 2,
    mask_tokens: int = 1,
    image_size: int | None = None,
    decoder: Decoder = "sam",
) -> int:
    """All parameters of the plain segmenter, before a method adds its own."""
    trained = decoder_parameters(name, task=task, num_classes=num_classes, mask_tokens=mask_tokens, decoder=decoder)
    frozen = backbone(name).decoder.frozen if decoder == "sam" else 0
    return encoder_parameters(name, image_size=image_size) + trained + frozen


@lru_cache(maxsize=64)
def _ask_timm(model: str) -> Backbone:
    """Read a plain ViT's numbers off timm's own model, built without memory."""
    import timm
    import torch
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(model):
        near = did_you_mean(model, timm.list_models("vit_*"))
        raise UsageError(
            f"unknown backbone 'timm/{model}'{near if 'did you mean' in near else '; see timm.list_models()'}"
        )
    with torch.device("meta"):
        vit: Any = timm.create_model(model, num_classes=0)
    plain = isinstance(vit, VisionTransformer) and getattr(vit, "pos_embed", None) is not None and vit.attn_pool is None
    if not plain or not hasattr(vit.blocks[0].attn, "qkv"):
        raise UsageError(
            f"'timm/{model}' is no plain ViT with absolute positions; try one such as {TIMM}vit_base_patch16_224"
        )
    block = vit.blocks[0]
    entry = _timm(
        model,
        dim=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        patch=vit.patch_embed.patch_size[0],
        image_size=vit.patch_embed.img_size[0],
        prefix_tokens=vit.num_prefix_tokens,
        positioned_prefix=0 if vit.no_embed_class else vit.num_prefix_tokens,
        layer_scale=hasattr(block.ls1, "gamma"),
    )
    listed = FullConfig().encoder_parameters(entry.shape)
    return replace(entry, unlisted_parameters=sum(p.numel() for p in vit.parameters()) - listed)
