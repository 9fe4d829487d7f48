"""The plain implementation computes what ours computes: otherwise the benchmarks compare different things."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference import PlainLoRA, plain_twin
from harness.methods.base import Method
from harness.methods.configs import LoRAConfig, NASLoRAConfig
from harness.methods.lora import LoRA
from harness.methods.naslora import NASLoRA
from harness.models.build import build_segmenter


@pytest.mark.parametrize(("cls", "config"), [(LoRA, LoRAConfig), (NASLoRA, NASLoRAConfig)])
def test_outputs_and_gradients_equal_ours(cls: type[Method], config: type) -> None:
    segmenter = build_segmenter("tiny", task="binary", head_seed=3)
    method = cls(config(), seed=3)
    plain = plain_twin("tiny", segmenter, method)
    generator = torch.Generator().manual_seed(5)
    twins = [module for module in plain.modules() if isinstance(module, PlainLoRA)]
    for adapter, twin in zip(method.adapters().values(), twins, strict=True):  # type: ignore[attr-defined]
        noise = 0.02 * torch.randn(adapter.up.shape, generator=generator)
        adapter.up.data.copy_(noise)
        twin.up.weight.data.copy_(noise)
    images = torch.randn(2, 3, 128, 128, generator=generator)
    ours, theirs = segmenter(images).masks, plain(images).masks
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for masks in (ours, theirs):
        masks.square().mean().backward()
    for adapter, twin in zip(method.adapters().values(), twins, strict=True):  # type: ignore[attr-defined]
        for weight, other in ((adapter.down, twin.down.weight), (adapter.up, twin.up.weight)):
            assert weight.grad is not None and other.grad is not None  # noqa: PT018
            assert (weight.grad - other.grad).norm() <= 1e-3 * other.grad.norm()
    gradient = segmenter.get_parameter("mask_decoder.output_upscaling.0.weight").grad
    other = plain.sam.mask_decoder.output_upscaling[0].weight.grad
    torch.testing.assert_close(gradient, other, atol=1e-7, rtol=1e-3)
