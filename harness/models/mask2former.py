"""Mask2Former (Cheng et al. 2112.01527) on a plain ViT: transformers' own ``Mask2FormerForUniversalSegmentation``, with
the ViT's last map as a pyramid (ViTDet, Li et al. 2203.16527) in place of its Swin backbone.

Pixel decoder, masked-attention decoder and heads are transformers' modules with their names and their initialisation.
Deviations: the backbone, as said; it computes in fp32 under autocast, since sampling mixes precisions.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from harness.models.decoder_shape import DecoderShape
from harness.models.decoders import DECODER_LAYERS, ENCODER_LAYERS, QUERIES
from harness.models.segmenter import full_precision, widened


class Pyramid(nn.Module):
    """(B, d, h, w) to maps at a quarter, half, one and two patches a side: d/4, d/2, d and d channels.

    Args:
        dim: d, a multiple of 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channels = [dim // 4, dim // 2, dim, dim]
        self.to_quarter = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2),
            LayerNorm2d(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, kernel_size=2, stride=2),
        )
        self.to_half = nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2)

    def forward(self, features: Tensor) -> list[Tensor]:
        coarse = nn.functional.max_pool2d(features, kernel_size=2)
        return [self.to_quarter(features), self.to_half(features), features, coarse]


class _Maps(nn.Module):
    """A backbone as transformers' pixel-level module calls one; what it is given are features already."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, features: Tensor) -> _Maps.Output:
        return self.Output(self.pyramid(features))

    class Output:
        def __init__(self, feature_maps: list[Tensor]) -> None:
            self.feature_maps = feature_maps


class Mask2FormerDecoder(nn.Module):
    """Features (B, d, h, w) to the predictions after every decoder layer, the last one first.

    Args:
        dim: d.
        shape: width, MLP and heads; 256, 2048 and 8 are the published ones.
        classes: C, background included; the head adds "no object".
    """

    def __init__(self, dim: int, *, shape: DecoderShape, classes: int) -> None:
        super().__init__()
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

        stages = [f"stage{number}" for number in range(1, 5)]
        stand_in: dict[str, Any] = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "out_features": stages}
        numbers: dict[str, Any] = {
            "feature_size": shape.dim,
            "mask_feature_size": shape.dim,
            "hidden_dim": shape.dim,
            "num_attention_heads": shape.heads,
            "dim_feedforward": shape.mlp_dim,
            "encoder_feedforward_dim": shape.mlp_dim // 2,
            "encoder_layers": ENCODER_LAYERS,
            "decoder_layers": DECODER_LAYERS + 1,
            "num_queries": QUERIES,
            "num_labels": classes,
        }
        config = Mask2FormerConfig(backbone_config=SwinConfig(**stand_in), **numbers)
        self.model = Mask2FormerForUniversalSegmentation(config)
        pyramid = Pyramid(dim)
        pixels = Mask2FormerPixelDecoder(config, feature_channels=pyramid.channels)
        with torch.no_grad():
            pixels.apply(self.model._init_weights)
        self.model.model.pixel_level_module.encoder = _Maps(pyramid)
        self.model.model.pixel_level_module.decoder = pixels

    def forward(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of masks (B, 100, 4h, 4w) and classes (B, 100, C + 1); without gradient the last layer's alone."""
        with full_precision(features.device):
            output = self.model(pixel_values=widened(features), output_auxiliary_logits=self.training)
        pairs = [(output.masks_queries_logits, output.class_queries_logits)]
        for layer in output.auxiliary_logits or ():
            pairs.append((layer["masks_queries_logits"], layer["class_queries_logits"]))
        return pairs
