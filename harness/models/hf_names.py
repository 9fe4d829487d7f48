"""Names on the Hugging Face Hub: of published SAMs, and of their tensors in transformers' ``SamModel`` and PEFT's adapters of one."""

from __future__ import annotations

from pathlib import Path

MODELS = {
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
    "sam2_hiera_tiny": "facebook/sam2.1-hiera-tiny",
    "sam2_hiera_small": "facebook/sam2.1-hiera-small",
    "sam2_hiera_base_plus": "facebook/sam2.1-hiera-base-plus",
    "sam2_hiera_large": "facebook/sam2.1-hiera-large",
}
"""Backbone -> its repository there. MobileSAM has none of its authors', and a timm model has one a set of weights."""
LICENCES = dict.fromkeys((*MODELS, "mobile_sam"), "apache-2.0")
"""Backbone -> licence of its published weights, by the Hub's name; those of timm differ by weights."""
CARD = "README.md"


def card_of(out: Path) -> Path:
    """Where the model card of a file lies: ``sam.README.md`` beside ``sam.pth``, as folders have README files of their own."""
    return out.with_suffix(f".{CARD}")


_PARTS = (
    ("image_encoder.", "vision_encoder."),
    (".patch_embed.proj.", ".patch_embed.projection."),
    (".blocks.", ".layers."),
    (".neck.0.", ".neck.conv1."),
    (".neck.1.", ".neck.layer_norm1."),
    (".neck.2.", ".neck.conv2."),
    (".neck.3.", ".neck.layer_norm2."),
    (".output_upscaling.0.", ".upscale_conv1."),
    (".output_upscaling.1.", ".upscale_layer_norm."),
    (".output_upscaling.3.", ".upscale_conv2."),
    (".mask_downscaling.0.", ".mask_embed.conv1."),
    (".mask_downscaling.1.", ".mask_embed.layer_norm1."),
    (".mask_downscaling.3.", ".mask_embed.conv2."),
    (".mask_downscaling.4.", ".mask_embed.layer_norm2."),
    (".mask_downscaling.6.", ".mask_embed.conv3."),
    (".point_embeddings.", ".point_embed."),
    (".pe_layer.positional_encoding_gaussian_matrix", ".shared_embedding.positional_embedding"),
    (".norm", ".layer_norm"),
)
_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
"""The layers of segment_anything's MLPs of depth 3: hypernetworks and IoU head."""


def hf_name(name: str) -> str:
    """``image_encoder.blocks.0.norm1.weight`` as ``vision_encoder.layers.0.layer_norm1.weight``.

    Args:
        name: of a tensor or a module in segment_anything's ``Sam``.
    """
    head, separator, rest = name.partition(".layers.")
    if separator and ("output_hypernetworks_mlps." in head or head.endswith("iou_prediction_head")):
        index, _, leaf = rest.partition(".")
        return f"{head}.{_MLP[index]}.{leaf}"
    for old, new in _PARTS:
        name = name.replace(old, new)
    return name
