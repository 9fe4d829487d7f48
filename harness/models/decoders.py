"""Decoders by name: which there are, what they stand on, their closed forms. Free of torch, so that planning is cheap.

``sam`` is SAM's mask decoder (`harness.models.mask_decoder`). ``linear`` and ``mask-transformer`` are Segmenter's
(2105.05633; `harness.models.dense_decoders`), each on a plain ViT of timm as published there. ``mask2former`` is that of
transformers (2112.01527; `harness.models.mask2former`) on the same ViTs. ``class-token`` and ``mean-pool`` give an image one
label: a linear layer on its class token, or on the mean of its patches.
"""

from __future__ import annotations

from typing import Literal, get_args

from harness.models import mask2former_forms

Decoder = Literal["sam", "linear", "mask-transformer", "mask2former", "class-token", "mean-pool"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
LABELLING: tuple[Decoder, ...] = ("class-token", "mean-pool")
"""Those whose task is ``classification``; that of the others is to draw masks."""
_ONE_LAYER = ("linear", *LABELLING)
MASK_LAYERS = 2
HEAD_DIM = 64
"""Channels of a head of the mask transformer: d / 64 heads, as published."""


def dense_parameters(decoder: Decoder, *, dim: int, classes: int) -> int:
    """Parameters of one of Segmenter's decoders, or of a classifier, for ``classes`` classes on tokens of width ``dim``, all of
    them trained.

    Mask transformer: projection d² + d; class embeddings C·d; a block 12 d² + 13 d; two projections d² and two norms
    over d and C. 15,949,060 at d = 768 and C = 2.
    """
    if decoder in _ONE_LAYER:
        return dim * classes + classes
    block = 12 * dim**2 + 13 * dim
    return (dim**2 + dim) + classes * dim + MASK_LAYERS * block + 2 * dim**2 + 2 * dim + 2 * classes


def dense_flops(decoder: Decoder, *, dim: int, tokens: int) -> float:
    """Operations for one image with ``tokens`` patches; the few classes cost nothing. A multiply-add counts as two operations."""
    if decoder in _ONE_LAYER:
        return 0.0
    if decoder == "mask2former":
        return mask2former_forms.flops(dim=dim, tokens=tokens)
    block = 2.0 * tokens * 12 * dim**2 + 4.0 * tokens**2 * dim
    return 2.0 * tokens * 2 * dim**2 + MASK_LAYERS * block


def dense_activations(decoder: Decoder, *, dim: int, tokens: int) -> float:
    """Bytes at 16 bit that one image's decoder keeps for backward: a block as Korthikanti et al. (2205.05198, 34 bytes a
    token and channel) with the attention map that its dropout needs (5 bytes an entry and head)."""
    if decoder in _ONE_LAYER:
        return 2.0 * tokens * dim
    if decoder == "mask2former":
        return mask2former_forms.activations(dim=dim, tokens=tokens)
    block = 34.0 * tokens * dim + 5.0 * (dim // HEAD_DIM) * tokens**2
    return MASK_LAYERS * block + 6 * 2.0 * tokens * dim
