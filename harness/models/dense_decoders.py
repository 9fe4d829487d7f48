"""Segmenter's decoders (Strudel et al. 2105.05633): a ViT's patch tokens to one logit map a class; and a classifier.

Blocks are timm's, which are the ones that Segmenter took over; names are Segmenter's own, so that its checkpoints'
``decoder.*`` load strictly.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import normalize

from harness.models.decoders import HEAD_DIM, LABELLING, MASK_LAYERS, Decoder
from harness.models.segmenter import full_precision, widened

DROPOUT = 0.1
_STD = 0.02


class LinearDecoder(nn.Module):
    """``logits = W·token + b`` of every patch: features (B, d, h, w) to (B, C, h, w).

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
    """``logits = W·(mean of the tokens) + b``: features (B, d, h, w), of one token where that is the class token, to (B, C, 1, 1).

    timm's head behind ``global_pool="token"``, or ``"avg"`` with the ViT's own final norm in front of the mean.
    """

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.mean(dim=(2, 3), keepdim=True))


class MaskTransformer(nn.Module):
    """Patches and C class embeddings through two blocks, then their cosine: features (B, d, h, w) to (B, C, h, w).

    ``x = blocks([proj_dec(patches), cls_emb])``, normed; ``logits = LayerNorm_C(P̂ · Ĉᵀ)`` with P̂ and Ĉ the patches
    and classes of x behind a d x d projection each, scaled to length 1.

    Deviations: the class embeddings decay with the weights, which Segmenter's code exempts; from the projections on it
    computes in fp32 under autocast (with two classes the last norm divides by their difference, which bf16 does not
    resolve), and a vector of length 0 gives 0 instead of NaN.

    Args:
        dim: d, a multiple of 64: heads have 64 channels, the MLP 4 d.
        classes: C, background included.
        dropout: of attention, its projection and the MLP.
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


def dense_decoder(name: Decoder, *, dim: int, classes: int, fused: bool = True) -> nn.Module:
    """The decoder that a protocol names; draws its weights from torch's generator."""
    if name == "mask-transformer":
        return MaskTransformer(dim, classes=classes, fused=fused)
    return (Classifier if name in LABELLING else LinearDecoder)(dim, classes=classes)


def _initialise(module: nn.Module) -> None:
    """As published: linear layers truncated normal (0.02) without bias; norms start as the identity already."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=_STD)
            nn.init.zeros_(part.bias)
