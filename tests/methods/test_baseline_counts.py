"""Published parameter counts of the baselines, met by the attached model at ViT-H and ViT-B, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config_class

DECODER = 3_505_536
COUNTS: list[tuple[str, dict[str, Any], int, int | None]] = [
    ("decoder", {}, 0, 0),
    ("bitfit", {}, 452_352, 102_656),
    ("ssf", {}, 903_680, 204_288),
    ("adapter", {}, 409_728, None),
    ("vpt", {}, 491_520, 110_592),
    ("samadapter", {"scale": 16}, 475_040, None),
    ("samadapter", {}, 186_960, None),
    ("convlora", {}, 491_520 + 23_040, 110_592 + 8_640),
    ("adaptformer", {}, 5_285_888, None),
    # Derived from the published structures: 4 d a block and the neck's 1,024; two adapters a block of
    # 4 d + 2·64 d + d + 9,728; 2 d r + 12 r² a block, and 2 d r + r³ + 12 r a block.
    ("layernorm", {}, 164_864, 37_888),
    ("mona", {}, 11_517_952, 2_684_928),
    ("fact", {}, 139_264, 61_440),
    ("fact", {"form": "tk", "rank": 32}, 126_976, 86_528),
    # d / 32 blocks of 32 · 31 / 2 a layer
    ("oft", {}, 32 * 40 * 496, 12 * 24 * 496),
    # as LoRA of the same rank
    ("shira", {}, 491_520, 110_592),
    ("gralora", {}, 655_360, 147_456),
    ("hira", {}, 491_520, 110_592),
]


@pytest.mark.parametrize(("name", "options", "vit_h", "vit_b"), COUNTS, ids=[f"{n}-{o}" for n, o, _, _ in COUNTS])
def test_attached_method_has_the_published_count(
    name: str, options: dict[str, Any], vit_h: int, vit_b: int | None
) -> None:
    for backbone, expected in (("vit_h", vit_h), ("vit_b", vit_b)):
        if expected is None:
            continue
        with torch.device("meta"):
            segmenter = build_segmenter(backbone, task="binary")
        method = METHODS.get(name)(method_config_class(name)(**options))
        assert method.config.encoder_parameters(backbone_shape(backbone, 1024)) == expected
        method.attach(segmenter)
        assert all(parameter.is_meta for parameter in segmenter.parameters())
        encoder = sum(p.numel() for p in segmenter.encoder.parameters() if p.requires_grad)
        total = sum(p.numel() for p in segmenter.parameters() if p.requires_grad)
        assert (encoder, total) == (expected, expected + DECODER)


def test_adaptformer_rounds_to_the_published_millions() -> None:
    assert round(5_285_888 / 1e6, 2) == 5.29
