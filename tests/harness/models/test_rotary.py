"""DINOv3's encoder against timm's own forward, SAM 3's trunk against transformers': outputs, gradients, names, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.models.build import build_segmenter
from harness.models.catalog import backbone, encoder_parameters
from harness.models.sam3_encoder import trunk_state
from harness.models.timm_encoder import create_vit
from harness.system.errors import UsageError
from tests.harness.models.images import random_images

SMALL = ("tiny_dinov3", "tiny_sam3")


def _require_equal_gradients(ours: nn.Module, theirs: dict[str, Tensor]) -> None:
    for name, parameter in ours.named_parameters():
        expected = theirs[name]
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("size", [(128, 128), (64, 160)])
def test_dinov3_equals_timm(size: tuple[int, int], fused: bool) -> None:
    entry = backbone("tiny_dinov3")
    encoder: Any = build_segmenter("tiny_dinov3", task="binary", fused_attention=fused).encoder
    vit: Any = create_vit(entry.timm_model, 128, **entry.timm_options)
    vit.load_state_dict(encoder.state_dict(), strict=True)
    vit.set_input_size(size)
    images = random_images(2, *size)
    features = vit.forward_features(images)[:, 5:].unflatten(1, (size[0] // 16, size[1] // 16)).permute(0, 3, 1, 2)
    output = encoder(images)
    torch.testing.assert_close(output, features, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(output)
    (output * direction).sum().backward()
    (features * direction).sum().backward()
    _require_equal_gradients(encoder, {name: p.grad for name, p in vit.named_parameters()})


def test_other_rotary_vits_of_timm_equal_timm() -> None:
    with torch.no_grad():
        encoder: Any = build_segmenter("timm/vit_small_patch16_rope_224", task="binary", image_size=96).encoder
        vit: Any = create_vit("vit_small_patch16_rope_224", 96)
        vit.load_state_dict(encoder.state_dict(), strict=True)
        features = vit.forward_features(random_images(2, 96, 96))[:, vit.num_prefix_tokens :]
        expected = features.unflatten(1, (6, 6)).permute(0, 3, 1, 2)
        torch.testing.assert_close(encoder(random_images(2, 96, 96)), expected, atol=1e-5, rtol=1e-5)


def _transformers(**numbers: Any) -> nn.Module:
    from transformers import Sam3ViTConfig, Sam3ViTModel

    torch.manual_seed(0)
    numbers |= {"layer_norm_eps": 1e-5, "attn_implementation": "eager"}
    return Sam3ViTModel(Sam3ViTConfig(**numbers))


@pytest.mark.parametrize("fused", [True, False])
def test_sam3_equals_transformers(fused: bool) -> None:
    theirs: Any = _transformers(
        hidden_size=64, intermediate_size=296, num_hidden_layers=4, num_attention_heads=2, image_size=128,
        patch_size=16, window_size=3, global_attn_indexes=[1, 3], pretrain_image_size=48, initializer_range=0.2,
    )  # fmt: skip
    encoder: Any = build_segmenter("tiny_sam3", task="binary", fused_attention=fused).encoder
    named = {f"detector_model.vision_encoder.backbone.{name}": tensor for name, tensor in theirs.state_dict().items()}
    encoder.load_state_dict(trunk_state(named), strict=True)
    images = random_images(2, 128, 128)[:1]
    expected = theirs(images).last_hidden_state.unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    output = encoder(images)
    torch.testing.assert_close(output, expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    direction = torch.randn_like(output)
    (output * direction).sum().backward()
    (expected * direction).sum().backward()
    gradients = {f"vision_encoder.backbone.{name}": p.grad for name, p in theirs.named_parameters()}
    _require_equal_gradients(encoder, trunk_state(gradients))


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_further_tokens_are_attended_to_have_no_place_and_give_no_output(fused: bool) -> None:
    encoder: Any = build_segmenter("tiny_sam3", task="binary", fused_attention=fused).encoder
    encoder(random_images(2, 128, 128)[:1])
    attention = encoder.blocks[0].attn
    windows, further = torch.randn(2, 3, 3, 64), torch.randn(1, 2, 64)
    q, k, v = attention.heads(windows)
    _, more_k, more_v = attention.qkv(further).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    k, v = (torch.cat([own, more.expand(2, -1, -1, -1)], dim=2) for own, more in ((k, more_k), (v, more_v)))
    expected = (q @ k.mT * attention.scale).softmax(dim=-1) @ v
    expected = attention.proj(expected.transpose(1, 2).reshape(windows.shape))
    torch.testing.assert_close(attention(windows, further), expected, atol=1e-5, rtol=1e-5)


def test_the_count_of_sam3_is_that_of_transformers() -> None:
    with torch.device("meta"):
        theirs = _transformers()
        ours = build_segmenter("sam3", task="binary").encoder
    count = sum(p.numel() for p in theirs.parameters())
    assert count == sum(p.numel() for p in ours.parameters()) == encoder_parameters("sam3") == 446_236_672


def test_sam3_reads_the_trunk_out_of_its_own_checkpoint(tmp_path: Path) -> None:
    trunk = build_segmenter("tiny_sam3", task="binary", head_seed=5).encoder.state_dict()
    stored = {f"detector.backbone.vision_backbone.trunk.{name}": tensor for name, tensor in trunk.items()}
    positions = "detector.backbone.vision_backbone.trunk.pos_embed"
    stored[positions] = torch.cat([torch.ones(1, 1, 64), stored[positions]], dim=1)
    stored["detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"] = torch.ones(9, 16, dtype=torch.complex64)
    stored["detector.transformer.decoder.query_embed.weight"] = torch.ones(4, 4)
    path = tmp_path / "sam3.pt"
    torch.save({"model": stored}, path)
    segmenter = build_segmenter("tiny_sam3", task="binary", checkpoint=path, head_seed=6)
    for name, tensor in segmenter.encoder.state_dict().items():
        assert torch.equal(tensor, trunk[name]), name


@pytest.mark.parametrize("name", SMALL)
def test_foreign_weights_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "other.pt"
    torch.save({"conv1.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UsageError, match=f"is not a {name}: missing .*; unexpected conv1.weight") as caught:
        build_segmenter(name, task="binary", checkpoint=path)
    assert "\n" not in str(caught.value)


def test_dinov3_weights_of_timm_load_strictly_at_another_size(tmp_path: Path) -> None:
    entry = backbone("tiny_dinov3")
    vit: Any = create_vit(entry.timm_model, 128, **entry.timm_options)
    path = tmp_path / "dinov3.pt"
    torch.save(vit.state_dict(), path)
    encoder: Any = build_segmenter("tiny_dinov3", task="binary", checkpoint=path, image_size=96).encoder
    assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in encoder.state_dict().items())
