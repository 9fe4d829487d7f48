"""The backbones that are known by name without building one: those of SAM, and common ones of timm.

``vit_b``, ``vit_l`` and ``vit_h`` carry the numbers of segment_anything's own builders (2304.02643). ``mobile_sam`` is MobileSAM
(2306.14289), TinyViT under SAM's own neck and decoder. ``sam2_hiera_*`` carry the numbers of facebookresearch/sam2's configurations of
SAM 2.1 (2408.00714). ``tiny`` is a SAM small enough for tests and demos, with everything the large ones have: windows that need
padding, global blocks, relative positions; ``tiny_timm``, ``tiny_dinov3``, ``tiny_mobile_sam`` and ``tiny_sam2`` are as small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.methods.parts.placement import BackboneShape, BlockShape, NormedConvolution
from harness.models.decoder_shape import DecoderShape

TIMM = "timm/"
RENAMED = {"vit_t": "tiny", "vit_t_timm": "tiny_timm", "vit_t_dinov3": "tiny_dinov3"}
"""Names in older records and what they are now: MobileSAM calls itself ``vit_t``."""
_SAM_DECODER = DecoderShape()
RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in [0, 1] that SAM, SAM 2, MobileSAM, DINOv2 and DINOv3 were trained with."""
HALF: tuple[RGB, RGB] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The same of timm's ``vit_*_patch16_*`` (augreg)."""


def downsampling(inputs: int, outputs: int, *, stride: int) -> tuple[NormedConvolution, ...]:
    """What TinyViT has between its stages: from one map to the next."""
    return (
        NormedConvolution(inputs=inputs, outputs=outputs),
        NormedConvolution(inputs=outputs, outputs=outputs, side=3, stride=stride, depthwise=True),
        NormedConvolution(inputs=outputs, outputs=outputs),
    )


def plain_blocks(
    *, dim: int, depth: int, heads: int, mlp_dim: int, window: int = 0, global_blocks: Sequence[int] = ()
) -> tuple[BlockShape, ...]:
    """The blocks of a plain ViT: all alike, but for those with global attention where the others have windows."""
    return tuple(
        BlockShape(dim=dim, heads=heads, mlp_dim=mlp_dim, window=0 if index in global_blocks else window)
        for index in range(depth)
    )


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One entry of the catalogue.

    Args:
        name: as on the command line.
        shape: numbers of the encoder at its own image size.
        decoder: numbers of the mask decoder on top.
        timm_model: timm's name, empty for the encoders of SAM.
        timm_options: numbers of a small one in which it differs from timm's model of that name.
        unlisted_parameters: what a timm model has beyond the closed form (such as CLIP's norm before the blocks).
        class_token: whether a class token comes first among the tokens.
        pixels: mean and standard deviation of RGB in [0, 1] with which its weights were trained.
    """

    name: str
    shape: BackboneShape
    decoder: DecoderShape = _SAM_DECODER
    timm_model: str = ""
    timm_options: Mapping[str, Any] = field(default_factory=dict)
    unlisted_parameters: int = 0
    class_token: bool = False
    pixels: tuple[RGB, RGB] = IMAGENET


_SAM_B = BackboneShape(
    blocks=plain_blocks(dim=768, depth=12, heads=12, mlp_dim=4 * 768, window=14, global_blocks=(2, 5, 8, 11)),
    patch=16,
    neck_dim=256,
    prefix_tokens=0,
    image_size=1024,
)
_TINY_DECODER = DecoderShape(dim=64, mlp_dim=128, heads=4)
_SAM2_DECODER = DecoderShape(finer_maps=True)
_WIDTHS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _sam(name: str, *, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Backbone:
    blocks = plain_blocks(dim=dim, depth=depth, heads=heads, mlp_dim=4 * dim, window=14, global_blocks=global_blocks)
    return Backbone(name=name, shape=replace(_SAM_B, blocks=blocks))


def _tiny_vit(*, stem: int, stages: Sequence[tuple[int, int, int, int, int]], neck_dim: int) -> BackboneShape:
    """TinyViT (2207.10666) as MobileSAM has it: a stem of two convolutions and two inverted residuals, then stages.

    Args:
        stem: its channels.
        stages: width, depth, heads, window and scale of each.
    """
    convolution = NormedConvolution
    hidden = 4 * stem
    residual = (
        convolution(inputs=stem, outputs=hidden),
        convolution(inputs=hidden, outputs=hidden, side=3, depthwise=True),
        convolution(inputs=hidden, outputs=stem),
    )
    first = (
        convolution(inputs=3, outputs=stem // 2, side=3, stride=2),
        convolution(inputs=stem // 2, outputs=stem, side=3, stride=2),
        *residual,
        *residual,
        *downsampling(stem, stages[0][0], stride=2),
    )
    blocks: list[BlockShape] = []
    for dim, depth, heads, window, scale in stages:
        local = convolution(inputs=dim, outputs=dim, side=3, depthwise=True)
        block = BlockShape(dim=dim, heads=heads, mlp_dim=4 * dim, window=window, scale=scale, local=local)
        begins = downsampling(blocks[-1].dim, dim, stride=blocks[-1].scale // scale) if blocks else ()
        blocks += [replace(block, downsampling=begins), *[block] * (depth - 1)]
    return BackboneShape(
        blocks=tuple(blocks),
        stem=first,
        patch=16,
        neck_dim=neck_dim,
        prefix_tokens=0,
        image_size=1024,
        relative_positions="distances",
        learnt_positions=0,
        qkv_by_head=True,
    )


def _hiera(
    *, dim: int, heads: int, depths: Sequence[int], windows: Sequence[int], global_blocks: Sequence[int], coarse: int
) -> BackboneShape:
    """Hiera (2306.00989) as SAM 2 has it: each stage twice as wide as the one before, on a map half as fine.

    Args:
        dim, heads: of the first stage.
        depths, windows: of the stages; the first block of each has the window of the stage before.
        coarse: side of the learnt map of positions.
    """
    blocks: list[BlockShape] = []
    for stage, depth in enumerate(depths):
        width = dim << stage
        block = BlockShape(dim=width, heads=heads << stage, mlp_dim=4 * width, window=windows[stage], scale=8 >> stage)
        begins = replace(block, inputs=width // 2, pool=2, window=windows[stage - 1]) if blocks else block
        blocks += [begins, *[block] * (depth - 1)]
    return BackboneShape(
        blocks=tuple(replace(b, window=0) if index in global_blocks else b for index, b in enumerate(blocks)),
        patch=32,
        patch_kernel=7,
        neck_dim=256,
        prefix_tokens=0,
        image_size=1024,
        relative_positions="",
        learnt_positions=coarse**2 + windows[0] ** 2,
        pyramid=True,
    )


def _sam2(
    size: str,
    *,
    depths: Sequence[int],
    global_blocks: Sequence[int],
    dim: int = 96,
    heads: int = 1,
    windows: Sequence[int] = (8, 4, 14, 7),
    coarse: int = 7,
) -> Backbone:
    shape = _hiera(dim=dim, heads=heads, depths=depths, windows=windows, global_blocks=global_blocks, coarse=coarse)
    return Backbone(name=f"sam2_hiera_{size}", shape=shape, decoder=_SAM2_DECODER)


def _timm(
    model: str,
    *,
    dim: int,
    depth: int,
    heads: int,
    patch: int,
    image_size: int,
    mlp_dim: int = 0,
    prefix_tokens: int = 1,
    positioned_prefix: int = 1,
    layer_scale: bool = False,
    rotary: bool = False,
    decoder: DecoderShape = _SAM_DECODER,
    name: str = "",
    options: Mapping[str, Any] | None = None,
    pixels: tuple[RGB, RGB] = IMAGENET,
) -> Backbone:
    shape = BackboneShape(
        blocks=plain_blocks(dim=dim, depth=depth, heads=heads, mlp_dim=mlp_dim or 4 * dim),
        patch=patch,
        neck_dim=0,
        prefix_tokens=prefix_tokens,
        image_size=image_size,
        final_norm=True,
        relative_positions="",
        layer_scale=layer_scale,
        positioned_prefix=0 if rotary else positioned_prefix,
        learnt_positions=0 if rotary else None,
        qkv_bias=not rotary,
    )
    return Backbone(
        name=name or TIMM + model,
        shape=shape,
        decoder=decoder,
        timm_model=model,
        timm_options=options or {},
        class_token=prefix_tokens > 0,
        pixels=pixels,
    )


def known_backbones() -> dict[str, Backbone]:
    """Every entry by name."""
    # As small as tests need: windows of 3 that the grid does not divide, two global blocks.
    tiny: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 2, "window": 3, "global_blocks": (1, 3)}
    tiny_sam = replace(_SAM_B, blocks=plain_blocks(**tiny, mlp_dim=256), image_size=128, neck_dim=64)
    mobile = _tiny_vit(stem=64, stages=((128, 2, 4, 7, 2), (160, 6, 5, 14, 1), (320, 2, 10, 7, 1)), neck_dim=256)
    tiny_mobile = _tiny_vit(stem=16, stages=((32, 1, 1, 3, 2), (48, 2, 3, 3, 1), (64, 1, 2, 5, 1)), neck_dim=64)
    # Windows that their maps do not divide, a global block, and a block with windows that does not pool.
    tiny_hiera = _hiera(dim=16, heads=1, depths=(1, 2, 2, 1), windows=(8, 6, 6, 3), global_blocks=(4,), coarse=3)
    test_vit = _timm("test_vit", dim=64, depth=6, heads=2, mlp_dim=192, patch=16, image_size=160, pixels=HALF)
    entries = [
        Backbone(name="tiny", shape=tiny_sam, decoder=_TINY_DECODER),
        Backbone(name="vit_b", shape=_SAM_B),
        _sam("vit_l", dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        _sam("vit_h", dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        test_vit,
        replace(test_vit, name="tiny_timm", decoder=_TINY_DECODER, pixels=IMAGENET),  # as its first records
        _timm(
            "vit_small_patch16_dinov3",
            dim=64,
            depth=4,
            heads=2,
            patch=16,
            image_size=128,
            prefix_tokens=5,
            layer_scale=True,
            rotary=True,
            decoder=_TINY_DECODER,
            name="tiny_dinov3",
            # timm's layer scales of 1e-5 would hide every block of a random model.
            options={"embed_dim": 64, "depth": 4, "num_heads": 2, "init_values": 0.5},
        ),
        Backbone(name="mobile_sam", shape=mobile),
        Backbone(name="tiny_mobile_sam", shape=replace(tiny_mobile, image_size=128), decoder=_TINY_DECODER),
        _sam2("tiny", depths=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
        _sam2("small", depths=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
        _sam2("base_plus", dim=112, heads=2, depths=(2, 3, 16, 3), global_blocks=(12, 16, 20), coarse=14),
        _sam2("large", dim=144, heads=2, depths=(2, 6, 36, 4), windows=(8, 4, 16, 8), global_blocks=(23, 33, 43)),
        Backbone(
            name="tiny_sam2",
            shape=replace(tiny_hiera, image_size=128, neck_dim=64),
            decoder=replace(_TINY_DECODER, finer_maps=True),
        ),
    ]
    for width, (dim, depth, heads) in _WIDTHS.items():
        for size in (224, 384):
            name = f"vit_{width}_patch16_{size}"
            augreg = _timm(name, dim=dim, depth=depth, heads=heads, patch=16, image_size=size, pixels=HALF)
            entries.append(augreg)
        if width == "tiny":
            continue
        dino = _timm(
            f"vit_{width}_patch14_dinov2", dim=dim, depth=depth, heads=heads, patch=14, image_size=518, layer_scale=True
        )
        registers = replace(
            dino,
            name=f"timm/vit_{width}_patch14_reg4_dinov2",
            timm_model=f"vit_{width}_patch14_reg4_dinov2",
            shape=replace(dino.shape, prefix_tokens=5, positioned_prefix=0),
        )
        third = _timm(
            f"vit_{width}_patch16_dinov3",
            dim=dim,
            depth=depth,
            heads=heads,
            patch=16,
            image_size=256,
            prefix_tokens=5,
            layer_scale=True,
            rotary=True,
        )
        entries += [dino, registers, third]
    return {entry.name: entry for entry in entries}
