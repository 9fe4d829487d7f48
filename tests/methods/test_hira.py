"""HiRA against HF peft's: outputs, gradients, counts, merges, start.

On a plain ViT, whose tokens are a sequence: peft's layers take SAM's maps of tokens for images, or refuse them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import HiraConfig, get_peft_model

from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from tests.methods.compared import attached, require_alike

IMAGES = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PATHS = {"qkv": "attn.qkv", "attn.proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
SITES = {"qkv": ["qkv"], "qkv,proj,mlp": [*PATHS]}


@pytest.mark.parametrize("sites", SITES)
def test_outputs_gradients_counts_and_merges_equal_those_of_peft(sites: str) -> None:
    segmenter, method = attached("hira", backbone="tiny_timm", sites=sites)
    plain = build_segmenter("tiny_timm", task="binary", image_size=64).encoder
    theirs: Any = get_peft_model(plain, HiraConfig(r=3, target_modules=SITES[sites]))
    pairs: list[tuple[Any, Any]] = []
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(segmenter.encoder.blocks):
        for path in (PATHS[target] for target in SITES[sites]):
            (adapter,) = block.get_submodule(path).adapters.values()
            other = theirs.base_model.model.get_submodule(f"blocks.{index}.{path}")
            pairs += [(adapter.down, other.hira_A["default"]), (adapter.up, other.hira_B["default"])]
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (segmenter.encoder, theirs)]
    assert trained[0] == trained[1] == method.config.encoder_parameters(backbone_shape("tiny_timm", 64))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours.add_(0.1 * torch.randn(ours.shape, generator=generator)))
    outputs = segmenter.double().encoder(IMAGES), theirs.double()(IMAGES)
    require_alike(*outputs, pairs, tolerance=1e-10, of_gradients=1e-9)
    merged = theirs.merge_and_unload()
    assert method.merge("exact").extra_parameters == 0
    for index, block in enumerate(merged.blocks):
        for path in PATHS.values():
            own = segmenter.get_parameter(f"encoder.blocks.{index}.{path}.weight")
            torch.testing.assert_close(own, block.get_submodule(path).weight, rtol=1e-9, atol=1e-9)
