"""Backbones by name: their shapes and their closed-form parameter counts. Imports no torch.

Names are those of `harness.models.known`, and ``timm/MODEL`` for any plain ViT of timm under SAM's neck and mask decoder, with
absolute positions or, like DINOv3, with rotary ones only. Its numbers come from timm's own model.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from harness.methods.parts.placement import BackboneShape
from harness.models.decoders import HEAD_DIM, Decoder, Task
from harness.models.known import KNOWN, TIMM, TOYS, Backbone
from harness.system.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.methods.base import MethodConfig


def backbone(name: str) -> Backbone:
    """The entry of ``name`` (in any case, with hyphens or underscores). Raises UsageError: the name is unknown (the message
    names the nearest), or a timm model that is not a plain ViT."""
    plain = name.strip().lower().replace("-", "_")
    if plain in KNOWN:
        return KNOWN[plain]
    if plain.startswith(TIMM) or plain in TOYS:
        from harness.models.timm_encoder import timm_backbone  # needs torch

        return timm_backbone(plain)
    near = did_you_mean(name, [*KNOWN, *TOYS, "timm/MODEL"])
    raise UsageError(f"unknown backbone {name!r}{near}; MobileSAM is mobile_sam, a plain ViT of timm is timm/MODEL")


def resolve_backbone(name: str) -> str:
    """The name of the entry that ``name`` means; raises as `backbone` does."""
    return backbone(name).name


SAM3_NEEDS = "SAM 3 is built from modules of transformers 5.0 or later: pip install 'sam-peft-harness[sam3]'"


def require_stands(decoder: Decoder, name: str) -> None:
    """Raises UsageError: the decoder does not work on the backbone ``name``, or the backbone needs a library that is not installed."""
    entry = backbone(name)
    if entry.shape.upscaled and find_spec("transformers") is None:
        raise UsageError(SAM3_NEEDS)
    if decoder != "sam" and entry.shape.neck_dim:
        raise UsageError(
            f"decoder={decoder} needs a plain ViT of timm, not {entry.name}; "
            f"use one such as --backbone {TIMM}vit_base_patch16_224, or decoder=sam"
        )
    if decoder == "class-token" and not entry.class_token:
        raise UsageError(f"decoder=class-token: {entry.name} has no class token; use decoder=mean-pool")
    if decoder == "mask-transformer" and entry.shape.dim % HEAD_DIM:
        raise UsageError(
            f"decoder=mask-transformer has heads of {HEAD_DIM} channels, and the width of {entry.name}, {entry.shape.dim}, "
            "is not a multiple of that; use decoder=linear"
        )
    if decoder == "mask2former" and find_spec("transformers") is None:
        raise UsageError(
            "decoder=mask2former needs transformers: pip install 'sam-peft-harness[mask2former]', or use "
            "decoder=mask-transformer"
        )


def backbone_shape(name: str, image_size: int | None = None) -> BackboneShape:
    """The encoder's numbers at ``image_size`` pixels per side (its own size for None). Raises UsageError: unknown name, or a size
    that is not a multiple of the patch."""
    shape = backbone(name).shape
    if image_size is None:
        return shape
    if image_size <= 0 or image_size % shape.patch:
        below = max(image_size // shape.patch, 1) * shape.patch
        raise UsageError(
            f"image size {image_size} is not a multiple of the {shape.patch} px patch of {name}; "
            f"use its own {shape.image_size}, or {below} or {below + shape.patch}"
        )
    return replace(shape, image_size=image_size)


def decoder_parameters(
    name: str, *, task: Task, num_classes: int = 2, mask_tokens: int = 1, decoder: Decoder = "sam"
) -> int:
    """Trained parameters of mask decoder and head (3,505,536 at 256-d, binary), and of the neck where the encoder has none; or those
    of another decoder, which uses neither.

    Args:
        task: ``binary`` has one mask token and no class head.
        num_classes: classes of a multi-class benchmark, background included; the head adds one for "nothing". For
            ``classification``, the number of labels.
        mask_tokens: K mask tokens of a multi-class head.
        decoder: see `harness.models.decoders`.
    """
    entry = backbone(name)
    if decoder != "sam":
        from harness.models.dense_decoders import dense_parameters  # needs torch

        classes = 2 if task == "binary" else num_classes
        return dense_parameters(decoder, entry.shape.dim, shape=entry.decoder, classes=classes)
    dim = entry.decoder.dim
    neck = entry.shape.dim * dim + 9 * dim**2 + 4 * dim if not entry.shape.neck_dim else 0
    return neck + entry.decoder.trained(task=task, num_classes=num_classes, mask_tokens=mask_tokens)


def trained_in_decoder(config: MethodConfig, name: str, *, task: Task, mask_tokens: int = 1, **head: Any) -> int:
    """Parameters that a method with ``config`` trains outside of the encoder; ``head``: see `decoder_parameters`."""
    if not config.trains:
        return 0
    whole = decoder_parameters(name, task=task, mask_tokens=mask_tokens, **head)
    if not config.freezes_decoder:
        return whole
    shape = backbone(name).decoder
    new = whole - shape.trained(task="binary", num_classes=2, mask_tokens=1)
    first_token = shape.dim if task == "multiclass" and mask_tokens > 1 else 0  # several tokens all train
    return new + first_token + config.decoder_parameters(shape.linears)


def added_parameters(config: MethodConfig, name: str, *, image_size: int | None = None) -> int:
    """Parameters that a method with ``config`` adds to the plain segmenter."""
    in_encoder = config.added_parameters(backbone_shape(name, image_size))
    return in_encoder + config.decoder_parameters(backbone(name).decoder.linears)


def encoder_parameters(name: str, *, image_size: int | None = None) -> int:
    """All parameters of the image encoder, SAM's neck included."""
    return backbone_shape(name, image_size).parameters + backbone(name).unlisted_parameters


def total_parameters(name: str, *, image_size: int | None = None, decoder: Decoder = "sam", **head: Any) -> int:
    """All parameters of the plain segmenter, before a method adds its own; ``head``: see `decoder_parameters`."""
    trained = decoder_parameters(name, decoder=decoder, **head)
    frozen = backbone(name).decoder.frozen if decoder == "sam" else 0
    return encoder_parameters(name, image_size=image_size) + trained + frozen
