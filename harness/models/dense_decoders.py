"""Decoders on a plain ViT's patch tokens: Segmenter's (Strudel et al. 2105.05633), one logit map per class; a classifier; and Mask2Former
(Cheng et al. 2112.01527).

Segmenter's blocks are timm's, as in its own code; the names are Segmenter's, so that its checkpoints' ``decoder.*`` load strictly.
Mask2Former's pixel decoder, masked-attention decoder and heads are transformers' modules with their names and initialisation. Deviations:
a pyramid of the ViT's last map (ViTDet, Li et al. 2203.16527) replaces its Swin backbone; it computes in fp32 under autocast, since
sampling mixes precisions.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import normalize

from harness.models.decoders import (
    DECODER_LAYERS,
    ENCODER_LAYERS,
    HEAD_DIM,
    LABELLING,
    MASK_LAYERS,
    QUERIES,
    Decoder,
    DecoderShape,
)
from harness.models.segmenter import full_precision, widened

DROPOUT = 0.1
_STD = 0.02


class LinearDecoder(nn.Module):
    """``logits = W·token + b`` for every patch: features (B, d, h, w) to (B, C, h, w).

    Args:
        dim: d.
        classes: C, background included.
    """

    def __init__(self, dim: int, *, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, classes)
        _initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Classifier(LinearDecoder):
    """``logits = W·(mean of the tokens) + b``: features (B, d, h, w), or (B, d, 1, 1) of a class token, to (B, C, 1, 1).

    timm's head after ``global_pool="token"``, or after ``"avg"`` with the ViT's own final norm before the mean.
    """

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.mean(dim=(2, 3), keepdim=True))


class MaskTransformer(nn.Module):
    """Two blocks on patches and C class embeddings, then the cosines of the two: features (B, d, h, w) to (B, C, h, w).

    ``x = norm(blocks([proj_dec(patches), cls_emb]))`` and ``logits = LayerNorm_C(P̂ · Ĉᵀ)``, where P̂ and Ĉ are the patches
    and classes of x, each after a d x d projection and scaled to length 1.

    Deviations: weight decay includes the class embeddings, which Segmenter's code exempts. From the first norm on it
    computes in fp32 under autocast: with two classes the last norm divides by their difference, which bf16 does not
    resolve. A vector of length 0 gives 0 instead of NaN.

    Args:
        dim: d, a multiple of 64: heads have 64 channels, the MLP 4 d.
        classes: C, background included.
        dropout: rate of dropout in attention, its projection and the MLP.
        fused: scaled_dot_product_attention; False builds the score matrix.
    """

    def __init__(self, dim: int, *, classes: int, dropout: float = DROPOUT, fused: bool = True) -> None:
        super().__init__()
        self.classes = classes
        self.proj_dec = nn.Linear(dim, dim)
        self.cls_emb = nn.Parameter(torch.empty(1, classes, dim))
        self.blocks = nn.ModuleList(
            Block(dim, dim // HEAD_DIM, qkv_bias=True, proj_drop=dropout, attn_drop=dropout, norm_layer=nn.LayerNorm)
            for _ in range(MASK_LAYERS)
        )
        for block in self.blocks:
            block.attn.fused_attn = fused  # type: ignore[union-attr]
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.decoder_norm = nn.LayerNorm(dim)
        self.mask_norm = nn.LayerNorm(classes)
        _initialise(self)
        nn.init.trunc_normal_(self.cls_emb, std=_STD)

    def forward(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        tokens = self.proj_dec(features.flatten(2).transpose(1, 2))
        tokens = torch.cat([tokens, self.cls_emb.expand(batch, -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        with full_precision(features.device):
            tokens = self.decoder_norm(widened(tokens))
            patches = normalize(tokens[:, : -self.classes] @ self.proj_patch, dim=-1)
            classes = normalize(tokens[:, -self.classes :] @ self.proj_classes, dim=-1)
            logits = self.mask_norm(patches @ classes.transpose(1, 2))
        return logits.transpose(1, 2).reshape(batch, self.classes, height, width)


def dense_decoder(name: Decoder, dim: int, *, shape: DecoderShape, classes: int, fused: bool = True) -> nn.Module:
    """The decoder that a protocol names, with weights from torch's generator; ``shape`` matters only for Mask2Former."""
    if name == "mask2former":
        return Mask2FormerDecoder(dim, shape=shape, classes=classes)
    if name == "mask-transformer":
        return MaskTransformer(dim, classes=classes, fused=fused)
    return (Classifier if name in LABELLING else LinearDecoder)(dim, classes=classes)


@lru_cache(maxsize=64)
def dense_parameters(name: Decoder, dim: int, *, shape: DecoderShape, classes: int) -> int:
    """Parameters of `dense_decoder`, all of which train; counted without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in dense_decoder(name, dim, shape=shape, classes=classes).parameters())


def _initialise(module: nn.Module) -> None:
    """Initialise as published: linear layers truncated normal (0.02) with zero biases; norms start as the identity already."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=_STD)
            nn.init.zeros_(part.bias)


class TokenPyramid(nn.Module):
    """(B, d, h, w) to maps with positions a quarter, half, one and two patches apart: d/4, d/2, d and d channels.

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
    """Takes the place of the backbone that transformers' pixel-level module calls; its input is features already."""

    def __init__(self, pyramid: TokenPyramid) -> None:
        super().__init__()
        self.pyramid = pyramid

    def forward(self, features: Tensor) -> SimpleNamespace:
        return SimpleNamespace(feature_maps=self.pyramid(features))


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
        pyramid = TokenPyramid(dim)
        pixels = Mask2FormerPixelDecoder(config, feature_channels=pyramid.channels)
        with torch.no_grad():
            pixels.apply(self.model._init_weights)
        self.model.model.pixel_level_module.encoder = _Maps(pyramid)
        self.model.model.pixel_level_module.decoder = pixels

    def forward(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of masks (B, 100, 4h, 4w) and classes (B, 100, C + 1); in evaluation only the last layer's."""
        with full_precision(features.device):
            output = self.model(pixel_values=widened(features), output_auxiliary_logits=self.training)
        pairs = [(output.masks_queries_logits, output.class_queries_logits)]
        for layer in output.auxiliary_logits or ():
            pairs.append((layer["masks_queries_logits"], layer["class_queries_logits"]))
        return pairs
