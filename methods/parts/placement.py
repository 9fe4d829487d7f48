"""Where in a ViT a method acts: the placement grammar and the shape of a backbone. Free of torch: planning is cheap.

Grammar: ``blocks=all|first-half|last-half|global|windowed|0,3,7-11`` and ``sites=qkv|q,v|q,k,v|proj|mlp``
(comma-separated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MethodError(ValueError):
    """A method cannot be configured or attached as asked; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """The numbers of a plain ViT encoder that placement and closed-form parameter counts depend on.

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads a block.
        mlp_dim: hidden width of the block's MLP.
        patch: side of a patch in pixels.
        window: side of an attention window in tokens, 0 if every block is global.
        global_blocks: indices of blocks with global attention.
        neck_dim: channels of the neck at the encoder's end (SAM), 0 for an encoder without one (timm).
        prefix_tokens: class and register tokens in front of the patch tokens (timm), 0 for SAM.
        image_size: default side of the square input in pixels, which sets how many positions are learnt.
        final_norm: whether a norm follows the last block (timm).
        relative_positions: blocks learn decomposed relative positions (SAM; a timm ViT does not).
        layer_scale: blocks scale both residual branches by a learnt vector (timm's DINOv2).
        positioned_prefix: prefix tokens that have a row in the position embedding.
        learnt_positions: rows of the position embedding besides, None for one a patch, 0 for a ViT that learns none and
            rotates queries and keys instead (RoPE).
        qkv_bias: whether the fused q, k, v have a bias (DINOv3 in timm: none).
        patch_bias: whether the patch projection has one (SAM 3: none).
        pre_norm: whether a norm precedes the first block (SAM 3).
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch: int
    window: int
    global_blocks: tuple[int, ...]
    neck_dim: int
    prefix_tokens: int
    image_size: int
    final_norm: bool = False
    relative_positions: bool = True
    layer_scale: bool = False
    positioned_prefix: int = 0
    learnt_positions: int | None = None
    qkv_bias: bool = True
    patch_bias: bool = True
    pre_norm: bool = False


SITES = ("qkv", "q", "k", "v", "proj", "mlp")
DECODER = "decoder"
"""A site beside those of the encoder, of methods that update linear layers: all that SAM's mask decoder uses."""
_NAMED_BLOCKS = ("all", "first-half", "last-half", "global", "windowed")


def parse_blocks(spec: str, *, depth: int, global_blocks: Sequence[int]) -> tuple[int, ...]:
    """Block indices, ascending, that ``spec`` names in a ViT of ``depth`` blocks.

    Raises:
        MethodError: unknown word, index outside the backbone, or nothing selected.
    """
    named = {
        "all": range(depth),
        "first-half": range(depth // 2),
        "last-half": range(depth // 2, depth),
        "global": sorted(global_blocks),
        "windowed": [index for index in range(depth) if index not in set(global_blocks)],
    }
    chosen: set[int] = set()
    for part in str(spec).replace(" ", "").split(","):
        if part in named:
            chosen.update(named[part])
            continue
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise MethodError(
                f"blocks={spec!r}: {part!r} is neither one of {', '.join(_NAMED_BLOCKS)} nor a range such as 0,3,7-11"
            )
        start, stop = int(first), int(last or first)
        if start > stop or stop >= depth:
            raise MethodError(f"blocks={spec!r}: {part!r} is outside this backbone, whose blocks are 0-{depth - 1}")
        chosen.update(range(start, stop + 1))
    if not chosen:
        raise MethodError(f"blocks={spec!r} selects no block of this backbone")
    return tuple(sorted(chosen))


def apart(spec: str) -> tuple[str, bool]:
    """``spec`` without `DECODER`, and whether that was in it."""
    parts = str(spec).replace(" ", "").split(",")
    return ",".join(part for part in parts if part != DECODER), DECODER in parts


def parse_sites(spec: str) -> tuple[str, ...]:
    """Site names in the order of `SITES`.

    Raises:
        MethodError: unknown site, or ``qkv`` together with one of its own slices.
    """
    parts = str(spec).replace(" ", "").split(",")
    unknown = [part for part in parts if part not in SITES]
    if unknown:
        raise MethodError(
            f"sites={spec!r}: {unknown[0]!r} is unknown; choose from {', '.join(SITES)}, separated by commas"
        )
    if "qkv" in parts and {"q", "k", "v"} & set(parts):
        raise MethodError(f"sites={spec!r}: qkv already holds q, k and v; name one or the other")
    return tuple(site for site in SITES if site in parts)
