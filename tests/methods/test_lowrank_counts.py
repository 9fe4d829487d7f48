"""Published parameter counts of LoRA's family and of full fine-tuning, met exactly by attached models (no memory used).

Sources: the counts follow from the shapes of segment_anything's ViT-H and ViT-B (dim 1280 and 768, 32 and 12 blocks);
LoRA on ViT-H with the trained part of the mask decoder gives the 4.00 M that Conv-LoRA (2401.17868) reports.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.methods.configs import (
    AdapterConfig,
    AdaptFormerConfig,
    ConvLoRAConfig,
    FullConfig,
    LoRAConfig,
    LSTConfig,
    NASLoRAConfig,
    NASPCLoRAConfig,
    SAMAdapterConfig,
    SAMedConfig,
    VPTConfig,
)
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_names, backbone_shape, decoder_parameters, encoder_parameters
from harness.registry import METHODS, method_config_class

CELL = 360 + 8
PARTIAL_CELL = 228 + 8
COUNTS: list[tuple[str, dict[str, Any], str, int]] = [
    ("lora", {}, "vit_h", 491_520),
    ("lora", {}, "vit_b", 110_592),
    ("samed", {}, "vit_h", 655_360),
    ("samed", {}, "vit_b", 147_456),
    ("naslora", {}, "vit_h", 491_520 + 32 * CELL),
    ("naslora", {}, "vit_b", 110_592 + 12 * CELL),
    ("naslora", {"style": "linear"}, "vit_b", 110_592 + 12 * (CELL - 1)),
    ("naslora", {"operations": "no-conv"}, "vit_b", 110_592 + 12 * 4),
    ("naslora", {"norm": "batch-affine"}, "vit_b", 110_592 + 12 * (CELL + 2 * 3 * 8)),
    ("naslora", {"norm": "none", "residual": True}, "vit_b", 110_592 + 12 * CELL),
    ("naslora", {"operations": "skip_connect"}, "vit_b", 110_592),
    ("naslora", {"operations": "wide"}, "vit_b", 110_592 + 12 * (CELL + 147 + 54 + 3)),
    ("naspclora", {}, "vit_h", 491_520 + 32 * PARTIAL_CELL),
    ("naspclora", {}, "vit_b", 110_592 + 12 * PARTIAL_CELL),
    ("full", {}, "vit_h", 637_026_048),
    ("full", {}, "vit_b", 89_670_912),
]


@pytest.mark.parametrize(("name", "options", "backbone", "expected"), COUNTS)
def test_attached_model_and_closed_form_have_the_published_count(
    name: str, options: dict[str, Any], backbone: str, expected: int
) -> None:
    with torch.device("meta"):
        segmenter = build_segmenter(backbone, task="binary")
    config = method_config_class(name)(**options)
    METHODS.get(name)(config).attach(segmenter)

    trained = sum(p.numel() for p in segmenter.encoder.parameters() if p.requires_grad)

    assert trained == expected
    assert config.encoder_parameters(backbone_shape(backbone)) == expected


def test_lora_on_vit_h_with_its_decoder_trains_the_published_four_million() -> None:
    config = method_config_class("lora")()

    total = config.encoder_parameters(backbone_shape("vit_h")) + decoder_parameters("vit_h", task="binary")

    assert total == 3_997_056


@pytest.mark.parametrize("backbone", backbone_names())
def test_full_counts_every_encoder_of_the_catalogue(backbone: str) -> None:
    assert FullConfig().encoder_parameters(backbone_shape(backbone)) == encoder_parameters(backbone)


def test_every_site_is_counted() -> None:
    """Six linear maps a block have one cell each: q, k, v, proj and both of the MLP."""
    shape = backbone_shape("vit_b")
    projections = 3 * 4 * (2 * 768) + 2 * 3 * (768 + 3072)

    assert NASLoRAConfig(sites="q,k,v,proj,mlp").encoder_parameters(shape) == 12 * (projections + 6 * CELL)


@pytest.mark.parametrize(
    ("config", "field"),
    [(LoRAConfig, "rank"), (SAMedConfig, "rank"), (NASLoRAConfig, "rank"), (NASPCLoRAConfig, "rank"),
     (ConvLoRAConfig, "rank"), (ConvLoRAConfig, "experts"), (AdapterConfig, "hidden"), (AdaptFormerConfig, "hidden"),
     (VPTConfig, "tokens"), (LSTConfig, "reduction"), (SAMAdapterConfig, "scale")],
)  # fmt: skip
@pytest.mark.parametrize("value", [2.5, 0, -1, True, "3"])
def test_a_count_that_is_no_whole_number_is_one_line(config: Any, field: str, value: object) -> None:
    with pytest.raises(MethodError, match=f"^{field}={value}: must be a whole number above zero$"):
        config(**{field: value})
