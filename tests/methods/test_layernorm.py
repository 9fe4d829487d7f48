"""LayerNorm tuning: which tensors of the backbone train."""

from __future__ import annotations

import pytest
from torch import nn

from harness.contract.case import ContractCase, grouped_parameters
from harness.methods.configs import LayerNormConfig
from harness.methods.layernorm import LayerNormTuning


def _trained(config: LayerNormConfig, backbone: str) -> tuple[nn.Module, set[str]]:
    segmenter, method = ContractCase(method=LayerNormTuning, config=config, backbone=backbone).attached()
    return segmenter, {name for name in grouped_parameters(method) if name.startswith("encoder.")}


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_every_norm_of_the_encoder_trains_and_nothing_else_in_it(backbone: str) -> None:
    segmenter, trained = _trained(LayerNormConfig(), backbone)
    assert trained == {
        f"{name}.{part}"
        for name, module in segmenter.named_modules()
        if name.startswith("encoder.") and "LayerNorm" in type(module).__name__
        for part in ("weight", "bias")
    }
    assert ("encoder.neck.3.weight" if backbone == "tiny" else "encoder.norm.bias") in trained


def test_norms_of_chosen_blocks_alone() -> None:
    _, trained = _trained(LayerNormConfig(blocks="1", outside=False), "tiny")
    assert trained == {f"encoder.blocks.1.norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
