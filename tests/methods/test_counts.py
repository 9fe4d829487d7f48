"""Published parameter counts, met exactly by attached models on the meta device (no memory used).

Sources: the counts follow from the shapes of segment_anything's ViT-H and ViT-B (dim 1280 and 768, 32 and 12 blocks);
LoRA on ViT-H with the trained part of the mask decoder gives the 4.00 M that Conv-LoRA (2401.17868) reports.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict
from typing import Any

import pytest
import torch

from harness.methods.adapter import AdapterConfig
from harness.methods.adaptformer import AdaptFormerConfig
from harness.methods.convlora import ConvLoRAConfig
from harness.methods.lora import LoRAConfig, SAMedConfig
from harness.methods.lst import LSTConfig
from harness.methods.naslora import NASLoRAConfig, NASPCLoRAConfig
from harness.methods.parts.placement import MethodError
from harness.methods.samadapter import SAMAdapterConfig
from harness.methods.vpt import VPTConfig
from harness.models.build import build_segmenter
from harness.models.catalog import KNOWN, backbone_shape, encoder_parameters
from harness.registry import METHODS, method_config_class

CELL = 360 + 8
PARTIAL_CELL = 228 + 8
DECODER = 3_505_536
COUNTS: list[tuple[str, dict[str, Any], int | None, int | None]] = [
    ("lora", {}, 491_520, 110_592),
    ("samed", {}, 655_360, 147_456),
    ("naslora", {}, 491_520 + 32 * CELL, 110_592 + 12 * CELL),
    ("naslora", {"style": "linear"}, None, 110_592 + 12 * (CELL - 1)),
    ("naslora", {"operations": "no-conv"}, None, 110_592 + 12 * 4),
    ("naslora", {"norm": "none", "residual": True}, None, 110_592 + 12 * CELL),
    ("naslora", {"operations": "skip_connect"}, None, 110_592),
    ("naspclora", {}, 491_520 + 32 * PARTIAL_CELL, 110_592 + 12 * PARTIAL_CELL),
    ("full", {}, 637_026_048, 89_670_912),
    ("decoder", {}, 0, 0),
    ("bitfit", {}, 452_352, 102_656),
    ("ssf", {}, 903_680, 204_288),
    ("adapter", {}, 409_728, None),
    ("vpt", {}, 491_520, 110_592),
    ("samadapter", {"scale": 16}, 475_040, None),
    ("samadapter", {}, 186_960, None),
    ("convlora", {}, 491_520 + 23_040, 110_592 + 8_640),
    ("adaptformer", {}, 5_285_888, None),
    ("lst", {}, 16_860_512, None),
    # Derived from the published structures: 4 d a block and the neck's 1,024; two adapters a block of
    # 4 d + 2·64 d + d + 9,728; 2 d r + 12 r² a block.
    ("layernorm", {}, 164_864, 37_888),
    ("mona", {}, 11_517_952, 2_684_928),
    # two bypasses a block of 2·8 d + 8 + d + 9·8² + 8: the paper's 0.33 M on ViT-B
    ("convpass", {}, 1_430_528, 327_552),
    ("convpass", {"sites": "proj"}, 715_264, 163_776),
    ("fact", {}, 139_264, 61_440),
    # as LoRA of the same rank
    ("hira", {}, 491_520, 110_592),
]


@functools.cache
def frozen(backbone: str) -> Any:
    with torch.device("meta"):
        return build_segmenter(backbone, task="binary")


@pytest.mark.parametrize(("name", "options", "vit_h", "vit_b"), COUNTS, ids=[f"{n}-{o}" for n, o, _, _ in COUNTS])
def test_attached_model_and_closed_form_have_the_published_count(name, options, vit_h, vit_b):
    for backbone, expected in (("vit_h", vit_h), ("vit_b", vit_b)):
        if expected is None:
            continue
        segmenter = copy.deepcopy(frozen(backbone))
        method = METHODS.get(name)(method_config_class(name)(**options))
        assert method.config.encoder_parameters(backbone_shape(backbone, 1024)) == expected
        method.attach(segmenter)
        assert all(parameter.is_meta for parameter in segmenter.parameters())
        encoder, total = (
            sum(p.numel() for p in module.parameters() if p.requires_grad) for module in (segmenter.encoder, segmenter)
        )
        assert (encoder, total) == (expected, expected + DECODER)


@pytest.mark.parametrize("backbone", KNOWN)
def test_full_counts_every_encoder_of_the_catalogue(backbone: str) -> None:
    assert method_config_class("full")().encoder_parameters(backbone_shape(backbone)) == encoder_parameters(backbone)


@pytest.mark.parametrize("method", ["layernorm", "bitfit"])
def test_a_plain_vit_with_a_norm_before_its_blocks_and_no_bias_of_patches_is_counted_so(method: str) -> None:
    name, config = "timm/vit_base_patch16_clip_224", method_config_class(method)()
    shape = backbone_shape(name)
    assert (shape.pre_norm, shape.patch_bias) == (True, False)
    with torch.device("meta"):
        segmenter: Any = build_segmenter(name, task="binary", image_size=224)
        METHODS.get(method)(config, seed=0).attach(segmenter)
    around = {id(parameter) for _, parameter in segmenter.decoder_parameters()}
    trained = [
        parameter for parameter in segmenter.parameters() if parameter.requires_grad and id(parameter) not in around
    ]
    assert config.encoder_parameters(shape) == sum(parameter.numel() for parameter in trained)


def test_every_site_is_counted() -> None:
    """Six linear maps a block have one cell each: q, k, v, proj and both of the MLP."""
    shape = backbone_shape("vit_b")
    projections = 3 * 4 * (2 * 768) + 2 * 3 * (768 + 3072)
    assert NASLoRAConfig(sites="q,k,v,proj,mlp").encoder_parameters(shape) == 12 * (projections + 6 * CELL)


def test_samed_has_no_scale_at_any_rank() -> None:
    assert [SAMedConfig(rank=rank).scale for rank in (1, 4, 8)] == [1, 1, 1]
    assert asdict(SAMedConfig())["alpha"] == 4.0
    assert SAMedConfig(rank=8, alpha=8.0) == SAMedConfig(rank=8)
    with pytest.raises(MethodError, match="alpha is the rank in SAMed, whose update has no scale, not 4"):
        SAMedConfig(rank=8, alpha=4.0)  # as older records have it, whose update was scaled by a half


@pytest.mark.parametrize(
    ("config", "field"),
    [(LoRAConfig, "rank"), (SAMedConfig, "rank"), (NASLoRAConfig, "rank"), (NASPCLoRAConfig, "rank"),
     (ConvLoRAConfig, "rank"), (ConvLoRAConfig, "experts"), (AdapterConfig, "hidden"), (AdaptFormerConfig, "hidden"),
     (VPTConfig, "tokens"), (LSTConfig, "reduction"), (SAMAdapterConfig, "scale")],
)  # fmt: skip
@pytest.mark.parametrize("value", [2.5, 0, -1, True, "3"])
def test_a_count_must_be_a_whole_number_above_zero(config: Any, field: str, value: object) -> None:
    with pytest.raises(MethodError, match=f"^{field}={value}: must be a whole number above zero$"):
        config(**{field: value})
