"""Closed forms of Mask2Former's decoder (2112.01527) behind a plain ViT's feature pyramid. Free of torch."""

from __future__ import annotations

ENCODER_LAYERS, DECODER_LAYERS, QUERIES = 6, 9, 100
LEVELS, POINTS = 3, 4
"""Scales that the pixel decoder attends over, and places on each that a token looks at."""


def parameters(*, dim: int, width: int, mlp: int, heads: int, classes: int) -> int:
    """Parameters of pyramid, pixel decoder, transformer decoder and class head; all of them train.

    Args:
        dim: of the ViT's tokens.
        width: of decoder tokens and masks.
        mlp: hidden width in the transformer decoder; half of it in the pixel decoder.
        heads: attention heads of both.
        classes: C; the head adds one for "no object".
    """
    half, quarter = dim // 2, dim // 4
    pyramid = 2 * (4 * dim * half + half) + 2 * half + 4 * half * quarter + quarter
    projections = sum(channels * width + 3 * width for channels in (half, dim, dim))
    looks = 3 * heads * LEVELS * POINTS
    square = width**2 + width
    layer = looks * (width + 1) + 2 * square + 4 * width + width * mlp + mlp // 2 + width
    pixels = LEVELS * width + projections + ENCODER_LAYERS * layer + square
    pixels += quarter * width + 2 * width + 9 * width**2 + 2 * width
    block = 8 * square + 6 * width + 2 * width * mlp + mlp + width
    transformer = 2 * QUERIES * width + LEVELS * width + DECODER_LAYERS * block + 2 * width + 3 * square
    return pyramid + pixels + transformer + (width + 1) * (classes + 1)


def flops(*, dim: int, tokens: int, width: int = 256, mlp: int = 2048, heads: int = 8) -> float:
    """Operations for one image with ``tokens`` patches. A multiply-add counts as two operations."""
    fine, scales = 16 * tokens, 5.25 * tokens  # places at a quarter of a patch, and on the three scales together
    pyramid = 2.0 * tokens * 4 * dim**2 + 2.0 * fine * dim**2 / 2
    pixels = 2.0 * ENCODER_LAYERS * scales * (2 * width**2 + 3 * heads * LEVELS * POINTS * width + width * mlp)
    pixels += 2.0 * fine * (10 * width**2 + dim // 4 * width) + 2.0 * tokens * 3.25 * dim * width
    keys = 2.0 * DECODER_LAYERS * scales / LEVELS * (2 * width**2 + 2 * QUERIES * width)
    queries = 2.0 * DECODER_LAYERS * QUERIES * (6 * width**2 + 2 * width * mlp + 2 * QUERIES * width)
    masks = 2.0 * (DECODER_LAYERS + 1) * QUERIES * (width * fine + 3 * width**2)
    return pyramid + pixels + keys + queries + masks


def activations(*, dim: int, tokens: int, width: int = 256, mlp: int = 2048, heads: int = 8) -> float:
    """Bytes that one image's decoder keeps for backward, rough: it computes in fp32 whatever the precision around it."""
    fine, scales = 16 * tokens, 5.25 * tokens
    layer = scales * (10 * width + mlp + 3 * heads * LEVELS * POINTS + 4 * LEVELS * POINTS * width)
    attended = DECODER_LAYERS * (2 * scales / LEVELS * width + 4 * heads * QUERIES * scales / LEVELS)
    masks = (DECODER_LAYERS + 1) * 4 * QUERIES * fine
    return 4.0 * (ENCODER_LAYERS * layer + attended + masks + fine * (4 * width + dim))
