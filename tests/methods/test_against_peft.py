"""Methods that change the weights of linear layers against HF peft's: outputs, gradients, counts, merges.

On a plain ViT, whose tokens are a sequence: some of peft's layers take SAM's maps of tokens for images, or refuse them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import HiraConfig, get_peft_model
from torch import Tensor

from harness.methods.base import Method
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config

IMAGES = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PATHS = {"qkv": "attn.qkv", "attn.proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
SITES = {"qkv": ["qkv"], "qkv,proj,mlp": [*PATHS]}
Pairs = list[tuple[Tensor, Tensor]]
"""What is learnt here and there, one tensor each; GraLoRA's are transposed there."""


def _factors(ours: Any, theirs: Any) -> Pairs:
    return [(ours.down, theirs.hira_A["default"]), (ours.up, theirs.hira_B["default"])]


TWINS: list[tuple[str, dict[str, Any], Callable[..., Any], Callable[[Any, Any], Pairs]]] = [
    ("hira", {}, partial(HiraConfig, r=3), _factors),
]


def _turned(ours: Tensor, other: Tensor) -> Tensor:
    return ours if ours.shape == other.shape else ours.mT


def _attached(name: str, options: dict[str, Any]) -> tuple[Any, Method]:
    segmenter = build_segmenter("tiny_timm", task="binary", image_size=64)
    method: Method = METHODS.get(name)(method_config(name, options), seed=1)
    method.attach(segmenter)
    return segmenter, method


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(("name", "options", "config", "learnt"), TWINS, ids=[f"{n}-{o}" for n, o, _, _ in TWINS])
def test_outputs_gradients_counts_and_merges_equal_those_of_peft(name, options, config, learnt, sites):
    segmenter, method = _attached(name, {"sites": sites, **options})
    plain = build_segmenter("tiny_timm", task="binary", image_size=64).encoder
    theirs: Any = get_peft_model(plain, config(target_modules=SITES[sites]))
    pairs: Pairs = []
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(segmenter.encoder.blocks):
        for target in SITES[sites]:
            (adapter,) = block.get_submodule(PATHS[target]).adapters.values()
            pairs += learnt(adapter, theirs.base_model.model.get_submodule(f"blocks.{index}.{PATHS[target]}"))
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (segmenter.encoder, theirs)]
    assert trained[0] == trained[1] == method.config.encoder_parameters(backbone_shape("tiny_timm", 64))
    with torch.no_grad():
        for ours, other in pairs:
            ours.add_(0.1 * torch.randn(ours.shape, generator=generator))
            other.copy_(_turned(ours, other))
    outputs = [segmenter.double().encoder(IMAGES), theirs.double()(IMAGES)]
    weights = torch.randn(outputs[0].shape, dtype=torch.float64, generator=generator)
    for output in outputs:
        (output * weights).sum().backward()

    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for ours, other in pairs:
        assert ours.grad is not None
        torch.testing.assert_close(_turned(ours.grad, other), other.grad, rtol=1e-8, atol=1e-9)

    merged = theirs.merge_and_unload()
    assert method.merge("exact").extra_parameters == 0
    for index, block in enumerate(merged.blocks):
        for path in PATHS.values():
            own = segmenter.get_parameter(f"encoder.blocks.{index}.{path}.weight")
            torch.testing.assert_close(own, block.get_submodule(path).weight, rtol=1e-9, atol=1e-9)


def test_how_they_start_is_how_pefts_do() -> None:
    """Bounds of the uniform draws, on a layer of 64 inputs; zeros elsewhere are the identity, which the contract holds."""
    for name, factor, config in (("hira", "hira_A", HiraConfig(target_modules=["qkv"])),):
        theirs: Any = get_peft_model(build_segmenter("tiny_timm", task="binary", image_size=64).encoder, config)
        other = theirs.base_model.model.blocks[0].attn.qkv
        ours: Any = _attached(name, {"rank": 32})[0].encoder.blocks[0].attn.qkv.adapters["qkv"]
        sampled = getattr(other, factor)["default"]
        assert ours.down.numel() == sampled.numel()
        assert ours.down.abs().max().item() == pytest.approx(sampled.abs().max().item(), rel=0.02)
        assert ours.down.std().item() == pytest.approx(sampled.std().item(), rel=0.06)
