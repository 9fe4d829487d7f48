"""The backbones of SAM, known by name without building one, and the names of toy models of timm.

``vit_b``, ``vit_l`` and ``vit_h`` carry the numbers of segment_anything's own builders (2304.02643). ``mobile_sam`` is MobileSAM
(2306.14289), TinyViT under SAM's own neck and decoder. ``sam2_hiera_*`` carry the numbers of facebookresearch/sam2's configurations of
SAM 2.1 (2408.00714). ``sam3`` is the image path of SAM 3's tracker (2511.16719). ``tiny`` is a SAM small enough for tests and demos,
with everything that the large ones have: windows that need padding, global blocks, relative positions; ``tiny_timm``, ``tiny_dinov3``,
``tiny_mobile_sam``, ``tiny_sam2`` and ``tiny_sam3`` are as small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.methods.parts.placement import BackboneShape, BlockShape, NormedConvolution
from harness.models.decoders import DecoderShape

TIMM = "timm/"
RENAMED = {"vit_t": "tiny", "vit_t_timm": "tiny_timm", "vit_t_dinov3": "tiny_dinov3"}
"""Names in older records -> their present names; they changed because MobileSAM calls itself ``vit_t``."""
SAME_WEIGHTS: Mapping[str, str] = {}
"""Fingerprint of a checkpoint -> that of another file of the same weights, under which tables put its runs. An entry requires comparing the
two files tensor by tensor (results/analysis/leaderboard/weights.py compare)."""
_SAM_DECODER = DecoderShape()
RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in [0, 1] that SAM, SAM 2, MobileSAM, DINOv2 and DINOv3 were trained with."""
HALF: tuple[RGB, RGB] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The same for timm's ``vit_*_patch16_*`` (augreg), and for SAM 3."""


def downsampling(inputs: int, outputs: int, *, stride: int) -> tuple[NormedConvolution, ...]:
    """The convolutions between TinyViT's stages: from one map to the next."""
    return (
        NormedConvolution(inputs=inputs, outputs=outputs),
        NormedConvolution(inputs=outputs, outputs=outputs, side=3, stride=stride, depthwise=True),
        NormedConvolution(inputs=outputs, outputs=outputs),
    )


def plain_blocks(
    *, dim: int, depth: int, heads: int, mlp_dim: int, window: int = 0, global_blocks: Sequence[int] = ()
) -> tuple[BlockShape, ...]:
    """The blocks of a plain ViT: all alike, except for those with global attention where the others have windows."""
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
        timm_options: the numbers in which a toy differs from timm's model of that name.
        unlisted_parameters: how many a timm model has beyond the closed form (such as CLIP's norm before the blocks).
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


TINY_DECODER = DecoderShape(dim=64, mlp_dim=128, heads=4)


def _sam(
    name: str, *, neck_dim: int = 256, image_size: int = 1024, decoder: DecoderShape = _SAM_DECODER, **blocks: Any
) -> Backbone:
    """A ViT of SAM; ``blocks``: see `plain_blocks`."""
    numbers = {"window": 14, "mlp_dim": 4 * blocks["dim"], **blocks}
    shape = BackboneShape(
        blocks=plain_blocks(**numbers), patch=16, neck_dim=neck_dim, prefix_tokens=0, image_size=image_size
    )
    return Backbone(name=name, shape=shape, decoder=decoder)


def _tiny_vit(*, stem: int, stages: Sequence[tuple[int, int, int, int, int]], neck_dim: int) -> BackboneShape:
    """TinyViT (2207.10666) as MobileSAM has it: a stem of two convolutions and two inverted residuals, then stages.

    Args:
        stem: channels of the stem.
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


def _sam2(size: str, *, dim: int = 96, heads: int = 1, coarse: int = 7, **stages: Any) -> Backbone:
    """SAM 2 with a Hiera; ``stages``: see `_hiera`."""
    shape = _hiera(**{"dim": dim, "heads": heads, "windows": (8, 4, 14, 7), "coarse": coarse, **stages})
    return Backbone(name=f"sam2_hiera_{size}", shape=shape, decoder=DecoderShape(finer_maps=True))


def _sam3(
    name: str, *, patch: int, image_size: int, neck_dim: int, coarse: int, decoder: DecoderShape, **blocks: Any
) -> Backbone:
    """SAM 3's trunk and its tracker's neck.

    Args:
        coarse: side of the learnt map of positions, which is repeated over the image.
        blocks: see `plain_blocks`.
    """
    shape = BackboneShape(
        blocks=plain_blocks(**blocks),
        patch=patch,
        neck_dim=neck_dim,
        prefix_tokens=0,
        image_size=image_size,
        relative_positions="",
        learnt_positions=coarse**2,
        patch_bias=False,
        pre_norm=True,
        upscaled=True,
    )
    return Backbone(name=name, shape=shape, decoder=replace(decoder, finer_maps=True), pixels=HALF)


# As small as tests need: windows of 3, which do not divide the grid, and two global blocks.
_SMALL: dict[str, Any] = {"image_size": 128, "neck_dim": 64}
_TINY: dict[str, Any] = {**_SMALL, "dim": 64, "depth": 4, "heads": 2, "window": 3, "global_blocks": (1, 3)}
_LARGE: dict[str, Any] = {"image_size": 1008, "neck_dim": 256, "dim": 1024, "depth": 32, "heads": 16, "window": 24}
_MOBILE = _tiny_vit(stem=64, stages=((128, 2, 4, 7, 2), (160, 6, 5, 14, 1), (320, 2, 10, 7, 1)), neck_dim=256)
_TINY_MOBILE = _tiny_vit(stem=16, stages=((32, 1, 1, 3, 2), (48, 2, 3, 3, 1), (64, 1, 2, 5, 1)), neck_dim=64)
# Windows that do not divide their maps, a global block, and a block with windows that does not pool.
_TINY_HIERA = _hiera(dim=16, heads=1, depths=(1, 2, 2, 1), windows=(8, 6, 6, 3), global_blocks=(4,), coarse=3)

_ENTRIES = (
    _sam("tiny", **_TINY, decoder=TINY_DECODER),
    _sam("vit_b", dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    _sam("vit_l", dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    _sam("vit_h", dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    Backbone(name="mobile_sam", shape=_MOBILE),
    Backbone(name="tiny_mobile_sam", shape=replace(_TINY_MOBILE, image_size=128), decoder=TINY_DECODER),
    _sam2("tiny", depths=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    _sam2("small", depths=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    _sam2("base_plus", dim=112, heads=2, depths=(2, 3, 16, 3), global_blocks=(12, 16, 20), coarse=14),
    _sam2("large", dim=144, heads=2, depths=(2, 6, 36, 4), windows=(8, 4, 16, 8), global_blocks=(23, 33, 43)),
    _sam3("sam3", **_LARGE, mlp_dim=4736, global_blocks=(7, 15, 23, 31), patch=14, coarse=24, decoder=_SAM_DECODER),
    _sam3("tiny_sam3", **_TINY, mlp_dim=192, patch=16, coarse=3, decoder=TINY_DECODER),
    Backbone(name="tiny_sam2", shape=replace(_TINY_HIERA, **_SMALL), decoder=replace(TINY_DECODER, finer_maps=True)),
)
KNOWN = {entry.name: entry for entry in _ENTRIES}
"""Every entry by name."""
TOYS: Mapping[str, tuple[str, int, Mapping[str, Any]]] = {
    "tiny_timm": ("test_vit", 160, {}),
    # timm's layer scales of 1e-5 would hide every block of a random model.
    "tiny_dinov3": (
        "vit_small_patch16_dinov3",
        128,
        {"embed_dim": 64, "depth": 4, "num_heads": 2, "init_values": 0.5},
    ),
}
"""Models of timm under a small decoder, for tests: timm's name, the image size, and the numbers in which they differ from timm's own."""
