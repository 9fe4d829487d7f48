"""The image path of SAM 2.1 (2408.00714): Hiera (2306.00989), a pyramid over its stages, and SAM's mask decoder with two finer maps.

Written from the published structure. Names are segment_anything's for parts that both have; `SAM2Encoder.published` and
`published_name` give those of Meta's checkpoints, whose memory is left out (`is_memory`). As in Meta's image predictor the
embedding that stands for "no memory" is added to the image's, and without a prompt there are no prompt tokens. Deviation: the predictor
falls back to mask tokens 1-3 where it finds token 0's mask unstable; here token 0 gives the mask, as for every other backbone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import isqrt

import torch
from segment_anything.modeling.image_encoder import PatchEmbed
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention

from harness.methods.parts.placement import BackboneShape, BlockShape
from harness.models.attention import full_attention
from harness.models.decoders import DecoderShape
from harness.models.mask_decoder import BatchedMaskDecoder, decoder_parts
from harness.models.sam_encoder import BlockEncoder, TransformerBlock, pooled

_FINER = (2, 4)
"""How many times finer than the embedding, along each side, the other two maps are."""
_MEMORY = (
    *("memory_attention.", "memory_encoder.", "maskmem_tpos_enc", "mask_downsample.", "no_mem_pos_enc", "no_obj_ptr"),
    *("no_obj_embed_spatial", "obj_ptr_proj.", "obj_ptr_tpos_proj."),
)


class PoolingAttention(nn.Module):
    """Multi-head attention inside a window or a whole map; the first block of a stage pools its queries.

    Args:
        shape: the block's numbers.
        fused: scaled_dot_product_attention; False builds the score matrix.
    """

    def __init__(self, shape: BlockShape, *, fused: bool) -> None:
        super().__init__()
        self.num_heads = shape.heads
        self.pool = shape.pool
        self.fused = fused
        self.qkv = nn.Linear(shape.entering, 3 * shape.dim)
        self.proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Attend within each map.

        Args:
            x: (B', h, w, C), one window or one whole image per entry, already normalised.
            prefix: (B' or 1, n, C) further tokens, already normalised, that are attended to and have no output.

        Returns:
            (B', h / pool, w / pool, D).
        """
        queries, keys, values = self.qkv(x).chunk(3, dim=-1)
        queries = pooled(queries, self.pool)
        q, k, v = (self._heads(part.flatten(1, 2)) for part in (queries, keys, values))
        if prefix is not None:
            _, further_k, further_v = (self._heads(part) for part in self.qkv(prefix).chunk(3, dim=-1))
            k = torch.cat([k, further_k.expand(len(x), -1, -1, -1)], dim=2)
            v = torch.cat([v, further_v.expand(len(x), -1, -1, -1)], dim=2)
        scale = q.shape[-1] ** -0.5
        out = scaled_dot_product_attention(q, k, v) if self.fused else full_attention(q, k, v, scale=scale)
        return self.proj(out.transpose(1, 2).reshape(queries.shape))

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B', N, D) to (B', heads, N, D/heads)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Pyramid(nn.Module):
    """Projects the last map of every stage to one width; the coarsest is added to the next one, the two finer ones stay as they are.

    Args:
        widths: widths of the stages, the coarsest first.
        dim: channels of the maps.
    """

    def __init__(self, widths: Sequence[int], *, dim: int) -> None:
        super().__init__()
        levels = (OrderedDict[str, nn.Module](conv=nn.Conv2d(width, dim, kernel_size=1)) for width in widths)
        self.convs = nn.ModuleList(nn.Sequential(level) for level in levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, h, w, C), the coarsest first, to one map fewer, (B, D, h, w), in the same order."""
        coarsest, embedding, *finer = (
            conv(level.permute(0, 3, 1, 2)) for conv, level in zip(self.convs, maps, strict=True)
        )
        return [embedding + interpolate(coarsest, scale_factor=2.0, mode="nearest"), *finer]


class SAM2Encoder(BlockEncoder):
    """Images (B, 3, H, W) to `packed` maps (B, 21 · neck_dim, H/16, W/16); H and W are multiples of 32.

    Args:
        shape: the encoder's numbers.
        fused: see `PoolingAttention`.
        activation_checkpointing: see `BlockEncoder`.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        super().__init__(shape, activation_checkpointing=activation_checkpointing)
        window, first = shape.blocks[0].window, shape.patch // shape.blocks[0].scale
        coarse = isqrt((shape.learnt_positions or 0) - window**2)
        kernel, rim = shape.patch_kernel, shape.patch_kernel // 2
        self.patch_embed = PatchEmbed((kernel, kernel), (first, first), (rim, rim), embed_dim=shape.embedded)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.embedded, coarse, coarse))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, shape.embedded, window, window))
        blocks = (TransformerBlock(block, PoolingAttention(block, fused=fused)) for block in shape.blocks)
        self.blocks = nn.ModuleList(blocks)
        self.neck = Pyramid([block.dim for block in reversed(shape.stage_ends)], dim=shape.neck_dim)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with absolute positions, (B, h, w, C); writes the grid."""
        self._write_grid(images)
        tokens = self.patch_embed(images)
        size, window = tokens.shape[1:3], self.pos_embed_window
        repeats = (1, 1, size[0] // window.shape[2], size[1] // window.shape[3])
        positions = interpolate(self.pos_embed, size=size, mode="bicubic") + window.tile(repeats)
        return tokens + positions.permute(0, 2, 3, 1)

    def run_blocks(self, tokens: Tensor) -> list[Tensor]:  # type: ignore[override]
        """The map at the end of every stage, (B, h, w, C), the coarsest first."""
        ends: list[Tensor] = []
        for first, behind in self.shape.stages:
            tokens = self._run(self.blocks[first:behind], tokens)
            ends.insert(0, tokens)
        return ends

    def finish(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The pyramid: from what `run_blocks` returns to `packed` maps."""
        return packed(self.neck(maps))

    def published(self, name: str) -> str:
        return name if name.startswith("neck.") else "trunk." + _numbered(name)


def packed(maps: Sequence[Tensor]) -> Tensor:
    """The embedding (B, D, h, w) and, as channels, the 4 and 16 positions of the two finer maps inside each of its own: (B, 21 D, h, w)."""
    embedding, *finer = maps
    return torch.cat([embedding, *map(pixel_unshuffle, finer, _FINER)], dim=1)


def unpacked(maps: Tensor) -> list[Tensor]:
    """The three maps that `packed` was given."""
    counts = [1, *(side**2 for side in _FINER)]
    dim = maps.shape[1] // sum(counts)
    embedding, *finer = maps.split([count * dim for count in counts], dim=1)
    return [embedding, *map(pixel_shuffle, finer, _FINER)]


class PlainSAM2Decoder(MaskDecoder):
    """segment_anything's mask decoder with what SAM 2 adds: object score, finer maps, and the embedding of "no memory".

    Args:
        shape: the decoder's numbers.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(**decoder_parts(shape))
        self.obj_score_token = nn.Embedding(1, shape.dim)
        self.pred_obj_score_head = MLP(shape.dim, shape.dim, 1, 3)
        self.conv_s0 = nn.Conv2d(shape.dim, shape.dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(shape.dim, shape.dim // 4, kernel_size=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, shape.dim))
        if not self.no_mem_embed.is_meta:
            nn.init.trunc_normal_(self.no_mem_embed, std=0.02)


class SAM2MaskDecoder(BatchedMaskDecoder):
    """`packed` maps (B, 21 D, h, w) to mask logits (B, K, 4h, 4w) and mask tokens (B, K, D).

    Args:
        plain: see `BatchedMaskDecoder`.
        mask_tokens, spare_tokens: see `BatchedMaskDecoder`.
    """

    frozen_parts = (*BatchedMaskDecoder.frozen_parts, "pred_obj_score_head", "no_mem_embed")
    ends_boxes = True

    def __init__(self, plain: PlainSAM2Decoder, *, mask_tokens: int, spare_tokens: bool = True) -> None:
        super().__init__(plain, mask_tokens=mask_tokens, spare_tokens=spare_tokens)
        self.obj_score_token = plain.obj_score_token
        self.pred_obj_score_head = plain.pred_obj_score_head
        self.conv_s0, self.conv_s1 = plain.conv_s0, plain.conv_s1
        self.no_mem_embed = plain.no_mem_embed

    def leading_tokens(self) -> list[Tensor]:
        return [self.obj_score_token.weight, *super().leading_tokens()]

    def maps(self, embedding: Tensor) -> list[Tensor]:
        embedding, middle, fine = unpacked(embedding)
        return [embedding + self.no_mem_embed.view(1, -1, 1, 1), self.conv_s1(middle), self.conv_s0(fine)]

    def upscaled(self, image: Tensor, finer: Sequence[Tensor]) -> Tensor:
        first, norm, act, second, last = self.output_upscaling
        middle, fine = finer
        return last(second(act(norm(first(image) + middle))) + fine)


def published_name(name: str) -> str:
    """The name that ``prompt_encoder.…`` or ``mask_decoder.…`` has in Meta's checkpoints."""
    if name == "mask_decoder.no_mem_embed":
        return "no_mem_embed"
    return "sam_" + (_numbered(name) if name.startswith("mask_decoder.transformer.") else name)


def is_memory(name: str) -> bool:
    """Whether a tensor of Meta's checkpoints belongs to SAM 2's memory, which single images do not use."""
    return name.startswith(_MEMORY)


def _numbered(name: str) -> str:
    """The name as in Meta's checkpoints, which number the two layers of an MLP."""
    return name.replace(".mlp.lin1.", ".mlp.layers.0.").replace(".mlp.lin2.", ".mlp.layers.1.")
