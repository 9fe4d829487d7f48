"""The peers compute what ours computes: otherwise the benchmarks compare different things."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.peers import ATTENTIONS, autogluon_conv_lora, hf_lora
from benchmarks.reference import PlainLoRA, plain_twin
from harness.methods.convlora import ConvLoRA, ConvLoRAConfig
from harness.methods.lora import LoRA, LoRAConfig
from harness.models.build import build_segmenter
from harness.models.segmenter import Segmenter

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("nobody_else")


def started(method: LoRA) -> tuple[Segmenter, Any, torch.Tensor]:
    """A segmenter with the method away from its start, its plain twin, and an image."""
    segmenter = build_segmenter("tiny", task="binary", head_seed=3)
    plain = plain_twin("tiny", segmenter, method)
    generator = torch.Generator().manual_seed(5)
    for adapter in method.adapters().values():
        adapter.up.data.copy_(0.02 * torch.randn(adapter.up.shape, generator=generator))
    return segmenter, plain, torch.randn(1, 3, 128, 128, generator=generator)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_transformers_and_peft_give_our_logits_and_gradients(attention: str) -> None:
    segmenter, plain, images = started(method := LoRA(LoRAConfig(), seed=3))
    peer = hf_lora(plain, method, attention=attention)
    ours, theirs = segmenter(images).masks, peer(images).masks
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for masks in (ours, theirs):
        masks.square().mean().backward()
    layers = peer.sam.image_encoder.model.vision_encoder.layers
    for site, adapter in method.adapters().items():
        twin = layers[int(site.split(".")[1])].attn.qkv
        for weight, other in ((adapter.down, twin.lora_A.default.weight), (adapter.up, twin.lora_B.default.weight)):
            assert weight.grad is not None
            assert (weight.grad - other.grad).norm() <= 1e-3 * other.grad.norm()
    trained = {name for name, value in peer.sam.image_encoder.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in trained)


def test_the_structure_of_conv_lora_gives_our_logits() -> None:
    segmenter, plain, images = started(method := ConvLoRA(ConvLoRAConfig(), seed=3))
    peer = autogluon_conv_lora(plain, method)
    assert any(isinstance(module, PlainLoRA) for module in peer.modules())
    with torch.no_grad():  # of an evaluation, where no noise moves the choice of the expert
        torch.testing.assert_close(segmenter.eval()(images).masks, peer.eval()(images).masks, atol=1e-5, rtol=1e-4)
