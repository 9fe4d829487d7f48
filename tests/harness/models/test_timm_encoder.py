"""DINOv3's encoder against timm's own forward: outputs, gradients, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.timm_encoder import create_vit
from tests.harness.models.images import random_images
from tests.methods.compared import require_alike


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
    pairs = [(parameter, vit.get_parameter(name)) for name, parameter in encoder.named_parameters()]
    require_alike(encoder(images), features, pairs, tolerance=1e-5, of_gradients=1e-5)


def test_other_rotary_vits_of_timm_equal_timm() -> None:
    with torch.no_grad():
        encoder: Any = build_segmenter("timm/vit_small_patch16_rope_224", task="binary", image_size=96).encoder
        vit: Any = create_vit("vit_small_patch16_rope_224", 96)
        vit.load_state_dict(encoder.state_dict(), strict=True)
        features = vit.forward_features(random_images(2, 96, 96))[:, vit.num_prefix_tokens :]
        expected = features.unflatten(1, (6, 6)).permute(0, 3, 1, 2)
        torch.testing.assert_close(encoder(random_images(2, 96, 96)), expected, atol=1e-5, rtol=1e-5)


def test_dinov3_weights_of_timm_load_strictly_at_another_size(tmp_path: Path) -> None:
    entry = backbone("tiny_dinov3")
    vit: Any = create_vit(entry.timm_model, 128, **entry.timm_options)
    path = tmp_path / "dinov3.pt"
    torch.save(vit.state_dict(), path)
    encoder: Any = build_segmenter("tiny_dinov3", task="binary", checkpoint=path, image_size=96).encoder
    assert all(torch.equal(tensor, vit.state_dict()[name]) for name, tensor in encoder.state_dict().items())
