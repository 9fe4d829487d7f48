"""What is SAM 2's alone: its published sizes, Meta's files, its attention; `test_trackers` holds the rest against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from harness.models.build import build_segmenter
from harness.models.catalog import backbone, decoder_parameters, encoder_parameters, total_parameters
from harness.models.original_sam import sam_state_dict
from harness.models.sam2 import PoolingAttention, packed, unpacked
from harness.system.errors import UsageError

SIZES = ("tiny", "small", "base_plus", "large")


@pytest.mark.parametrize("size", SIZES)
def test_closed_forms_and_names_are_those_of_the_published_sizes(size: str) -> None:
    """timm has the trunk under Meta's names but for the MLP's; its classifier is its own."""
    name = f"sam2_hiera_{size}"
    with torch.device("meta"):
        segmenter: Any = build_segmenter(name, task="binary")
        trunk = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in segmenter.encoder.parameters()) == encoder_parameters(name)
    assert sum(p.numel() for _, p in segmenter.decoder_parameters()) == decoder_parameters(name, task="binary")
    assert decoder_parameters(name, task="binary") == 3_505_536 + 256 + (256 * 96 + 96)
    assert sum(p.numel() for p in segmenter.parameters()) == total_parameters(name, task="binary")
    expected = {
        "trunk." + key.replace("mlp.fc1", "mlp.layers.0").replace("mlp.fc2", "mlp.layers.1"): tensor.shape
        for key, tensor in trunk.state_dict().items()
        if not key.startswith("head.")
    }
    ours = {segmenter.encoder.published(key): tensor.shape for key, tensor in segmenter.encoder.state_dict().items()}
    assert {key: shape for key, shape in ours.items() if key.startswith("trunk.")} == expected
    assert {key.partition(".")[0] for key in sam_state_dict(segmenter)} == {
        "image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed"
    }  # fmt: skip


@pytest.mark.parametrize("fused", [True, False])
def test_further_tokens_are_attended_to_in_every_window_and_give_no_output(fused: bool) -> None:
    attention = PoolingAttention(backbone("tiny_sam2").shape.blocks[0], fused=fused).double()
    windows, further = (torch.randn(*size, attention.qkv.in_features).double() for size in ((3, 4, 4), (1, 2)))
    tokens = torch.cat([windows.flatten(1, 2), further.expand(3, -1, -1)], dim=1)
    q, k, v = (attention._heads(part) for part in attention.qkv(tokens).chunk(3, dim=-1))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))[:, :16].unflatten(1, (4, 4))
    torch.testing.assert_close(attention(windows, further), expected)


def test_maps_are_packed_without_loss_and_sides_may_differ() -> None:
    maps = [torch.randn(2, 3, 2 * side, 5 * side) for side in (1, 2, 4)]
    assert all(map(torch.equal, unpacked(packed(maps)), maps))
    assert build_segmenter("tiny_sam2", task="binary")(torch.randn(1, 3, 96, 160)).masks.shape == (1, 1, 24, 40)
    with pytest.raises(UsageError, match="not a multiple of the 32 px patch"):
        build_segmenter("sam2_hiera_tiny", task="binary", image_size=1008)
