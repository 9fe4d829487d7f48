"""segment_anything's own model, for verification and for saving a merged segmenter."""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from torch import Tensor, nn

from harness.methods.parts.placement import BackboneShape
from harness.models.catalog import backbone, backbone_shape
from harness.models.known import Backbone
from harness.models.mask_decoder import plain_mask_decoder
from harness.models.sam2 import SAM2Encoder, published_name
from harness.models.sam_encoder import BlockEncoder
from harness.models.segmenter import SAMSegmenter, Segmenter

ENCODER, PROMPTS, DECODER = "image_encoder.", "prompt_encoder.", "mask_decoder."
"""Prefixes of the names in a checkpoint of SAM."""


def published(encoder: BlockEncoder, part: str, name: str) -> str:
    """The full name that tensor ``name`` of ``part`` (one of the prefixes above) has in checkpoints of the encoder's family."""
    if part == ENCODER:
        return part + encoder.published(name)
    return published_name(part + name) if isinstance(encoder, SAM2Encoder) else part + name


def plain_sam(name: str, *, image_size: int | None = None) -> Sam:
    """segment_anything's own ``Sam`` with the numbers of a catalogue entry, for verification and for loading an export.

    At 1024 pixels ``vit_b``, ``vit_l`` and ``vit_h`` are what ``sam_model_registry`` builds.
    """
    entry, shape = backbone(name), backbone_shape(name, image_size)
    first = shape.blocks[0]
    encoder = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=shape.patch,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=first.heads,
        mlp_ratio=first.mlp_dim / first.dim,
        out_chans=shape.neck_dim,
        qkv_bias=True,
        use_rel_pos=True,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        window_size=first.window,
        global_attn_indexes=shape.global_blocks,
    )
    return Sam(
        image_encoder=encoder,
        prompt_encoder=prompt_encoder_of(entry, shape),
        mask_decoder=plain_mask_decoder(entry.decoder),
    ).eval()


def unfit_for_sam(segmenter: Segmenter) -> str:
    """Why a checkpoint of SAM cannot hold the segmenter, whatever its method; empty where it can."""
    if not (isinstance(segmenter.encoder, BlockEncoder) and segmenter.encoder.of_sam):
        return "only SAM's own backbones save as a SAM checkpoint"
    assert isinstance(segmenter, SAMSegmenter)  # SAM's encoder has no other decoder
    if segmenter.head is not None or len(segmenter.mask_decoder.mask_tokens) > 1:
        return "a multi-class segmenter has a class head and mask tokens that a SAM checkpoint cannot hold"
    if not segmenter.mask_decoder.attends_to_spare_tokens:
        return (
            "its decoder left out SAM's mask tokens 1-3 (quirk 14), and a plain SAM, which attends to them, would give "
            "different masks; train with --set quirks.spare_tokens=intended to export one"
        )
    return ""


def sam_state_dict(segmenter: Segmenter) -> dict[str, Tensor]:
    """The complete segmenter under segment_anything's names: it loads strictly into `plain_sam` at the segmenter's image size.

    MobileSAM and SAM 2 keep the names of their own code and load into its modules (SAM 2 without its memory); SAM 3 has those of the Hub's
    ``facebook/sam3``, which `Sam3TrackerModel` of transformers loads.

    Raises:
        ValueError: `unfit_for_sam`, or the encoder holds parts of a method that is not merged.
    """
    if reason := unfit_for_sam(segmenter):
        raise ValueError(reason)
    assert isinstance(segmenter, SAMSegmenter)
    with torch.device("meta"):
        kind = type(segmenter.encoder)
        plain = kind(segmenter.encoder.shape, fused=True, activation_checkpointing=False)
    encoder = segmenter.encoder.state_dict()
    if foreign := sorted(encoder.keys() ^ plain.state_dict().keys()):
        raise ValueError(f"the encoder still holds parts of a method, such as {foreign[0]}; merge it first")
    parts = (
        (ENCODER, encoder),
        (PROMPTS, segmenter.prompt_encoder.state_dict()),
        (DECODER, segmenter.mask_decoder.plain_state()),
    )
    named = {published(plain, part, key): tensor for part, state in parts for key, tensor in state.items()}
    named |= {ENCODER + key: tensor for key, tensor in segmenter.encoder.unused().items()}
    return {key: tensor.detach().clone() for key, tensor in plain.to_published(named).items()}


def prompt_encoder_of(entry: Backbone, shape: BackboneShape) -> PromptEncoder:
    """segment_anything's prompt encoder, for the image size of ``shape``."""
    side = shape.image_size // shape.embedding_patch
    return PromptEncoder(
        embed_dim=entry.decoder.dim,
        image_embedding_size=(side, side),
        input_image_size=(shape.image_size, shape.image_size),
        mask_in_chans=entry.decoder.mask_channels,
    )
