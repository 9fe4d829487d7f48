"""Decoders by name: which ones exist, which backbones they fit, and their closed forms. Imports no torch.

``sam`` is SAM's mask decoder (`harness.models.mask_decoder`). ``linear`` and ``mask-transformer`` are Segmenter's
(2105.05633; `harness.models.dense_decoders`), each on a plain ViT of timm, as published. ``mask2former`` is that of
transformers (2112.01527; `harness.models.dense_decoders`) on the same ViTs. ``class-token`` and ``mean-pool`` give an image one
label: a linear layer on its class token, or on the mean of its patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Task = Literal["binary", "multiclass", "classification"]
"""Masks of one foreground, masks of several classes, or one label per image."""
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
        depth: number of its layers.
        mask_channels: channels of the prompt encoder's mask branch.
        finer_maps: whether it is SAM 2's, which reads two finer maps, scores whether there is an object, and embeds "no memory".
    """

    dim: int = 256
    mlp_dim: int = 2048
    heads: int = 8
    depth: int = 2
    mask_channels: int = 16
    finer_maps: bool = False

    @property
    def hypernetwork(self) -> int:
        """Parameters of one hypernetwork MLP, dim -> dim -> dim -> dim / 8."""
        return 2 * _linear(self.dim, self.dim) + _linear(self.dim, self.dim // 8)

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers before the masks: two-way transformer and one hypernetwork MLP."""
        dim, hidden = self.dim, self.mlp_dim
        narrow = [(dim, dim // 2)] * 3 + [(dim // 2, dim)]
        layer = [(dim, dim)] * 4 + 2 * narrow + [(dim, hidden), (hidden, dim)]
        return self.depth * layer + narrow + [(dim, dim), (dim, dim), (dim, dim // 8)]

    def trained(self, *, task: Task, num_classes: int, mask_tokens: int) -> int:
        """Parameters of decoder and head that every method trains: no IoU head, no spare tokens, one hypernetwork
        MLP."""
        narrow = 3 * _linear(self.dim, self.dim // 2) + _linear(self.dim // 2, self.dim)
        mlp = _linear(self.dim, self.mlp_dim) + _linear(self.mlp_dim, self.dim)
        layer = 4 * _linear(self.dim, self.dim) + 2 * narrow + mlp + 4 * 2 * self.dim
        transformer = self.depth * layer + narrow + 2 * self.dim
        quarter, eighth = self.dim // 4, self.dim // 8
        upscaling = 4 * self.dim * quarter + quarter + 2 * quarter + 4 * quarter * eighth + eighth
        tokens = (1 + (mask_tokens if task == "multiclass" else 1)) * self.dim
        head = _linear(self.dim, num_classes + 1) if task == "multiclass" else 0
        finer = _linear(self.dim, quarter) + _linear(self.dim, eighth) + self.dim if self.finer_maps else 0
        return transformer + upscaling + tokens + self.hypernetwork + head + finer

    @property
    def frozen(self) -> int:
        """The rest of the decoder (spare tokens and MLPs, IoU head) and the prompt encoder."""
        tokens = 1 + SPARE_TOKENS
        iou_head = 2 * _linear(self.dim, self.dim) + _linear(self.dim, tokens)
        quarter = self.mask_channels // 4
        two_convolutions = 7 * quarter + 4 * quarter * self.mask_channels + 3 * self.mask_channels  # and their norms
        prompts = 6 * self.dim + two_convolutions + _linear(self.mask_channels, self.dim)
        score = 2 * _linear(self.dim, self.dim) + _linear(self.dim, 1) + self.dim if self.finer_maps else 0
        return SPARE_TOKENS * (self.hypernetwork + self.dim) + iou_head + prompts + score


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


Decoder = Literal["sam", "linear", "mask-transformer", "mask2former", "class-token", "mean-pool"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
LABELLING: tuple[Decoder, ...] = ("class-token", "mean-pool")
"""Those whose task is ``classification``; the others predict masks."""
_ONE_LAYER = ("linear", *LABELLING)
MASK_LAYERS = 2
HEAD_DIM = 64
"""Channels of a head of the mask transformer: d / 64 heads, as published."""


def dense_flops(decoder: Decoder, *, dim: int, tokens: int) -> float:
    """Operations for one image with ``tokens`` patches; the few classes are not counted. A multiply-add counts as two operations."""
    if decoder in _ONE_LAYER:
        return 0.0
    if decoder == "mask2former":
        return mask2former_flops(dim=dim, tokens=tokens)
    block = 2.0 * tokens * 12 * dim**2 + 4.0 * tokens**2 * dim
    return 2.0 * tokens * 2 * dim**2 + MASK_LAYERS * block


def dense_activations(decoder: Decoder, *, dim: int, tokens: int) -> float:
    """Bytes, at 16 bits per number, that the decoder keeps per image for the backward pass: a block as in Korthikanti et al.
    (2205.05198, 34 bytes per token and channel) with the attention map that its dropout needs (5 bytes per entry and head)."""
    if decoder in _ONE_LAYER:
        return 2.0 * tokens * dim
    if decoder == "mask2former":
        return _mask2former_activations(dim=dim, tokens=tokens)
    block = 34.0 * tokens * dim + 5.0 * (dim // HEAD_DIM) * tokens**2
    return MASK_LAYERS * block + 6 * 2.0 * tokens * dim


ENCODER_LAYERS, DECODER_LAYERS, QUERIES = 6, 9, 100
"""Numbers of Mask2Former: layers of its pixel decoder, layers and queries of its transformer decoder."""
LEVELS, POINTS = 3, 4
"""Scales that the pixel decoder attends over, and points that a token samples on each."""


def mask2former_flops(*, dim: int, tokens: int, width: int = 256, mlp: int = 2048, heads: int = 8) -> float:
    """Operations for one image with ``tokens`` patches. A multiply-add counts as two operations."""
    fine, scales = 16 * tokens, 5.25 * tokens  # positions at a quarter of a patch, and on the three scales together
    pyramid = 2.0 * tokens * 4 * dim**2 + 2.0 * fine * dim**2 / 2
    pixels = 2.0 * ENCODER_LAYERS * scales * (2 * width**2 + 3 * heads * LEVELS * POINTS * width + width * mlp)
    pixels += 2.0 * fine * (10 * width**2 + dim // 4 * width) + 2.0 * tokens * 3.25 * dim * width
    keys = 2.0 * DECODER_LAYERS * scales / LEVELS * (2 * width**2 + 2 * QUERIES * width)
    queries = 2.0 * DECODER_LAYERS * QUERIES * (6 * width**2 + 2 * width * mlp + 2 * QUERIES * width)
    masks = 2.0 * (DECODER_LAYERS + 1) * QUERIES * (width * fine + 3 * width**2)
    return pyramid + pixels + keys + queries + masks


def _mask2former_activations(*, dim: int, tokens: int, width: int = 256, mlp: int = 2048, heads: int = 8) -> float:
    """Roughly the bytes that the decoder keeps per image for the backward pass; it computes in fp32 whatever the precision around it."""
    fine, scales = 16 * tokens, 5.25 * tokens
    layer = scales * (10 * width + mlp + 3 * heads * LEVELS * POINTS + 4 * LEVELS * POINTS * width)
    attended = DECODER_LAYERS * (2 * scales / LEVELS * width + 4 * heads * QUERIES * scales / LEVELS)
    masks = (DECODER_LAYERS + 1) * 4 * QUERIES * fine
    return 4.0 * (ENCODER_LAYERS * layer + attended + masks + fine * (4 * width + dim))
