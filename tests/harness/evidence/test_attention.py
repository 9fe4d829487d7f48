"""Attention distance against closed forms and against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, window_partition
from torch import nn

from harness.evidence import measuring
from harness.evidence.measuring import attention_distance, pixel_distances, uniform_distance, watched, window_validity
from harness.models.build import build_segmenter


def test_uniform_attention_reaches_as_far_as_its_map_is_wide():
    assert uniform_distance((14, 14), window=0, patch=16) == pytest.approx(116.5, abs=0.05)
    assert uniform_distance((64, 64), window=0, patch=16) == pytest.approx(533.9, abs=0.05)
    assert uniform_distance((28, 28), window=14, patch=16) == pytest.approx(116.5, abs=0.05)  # four whole windows
    assert uniform_distance((1, 2), window=0, patch=10) == 5.0
    # 64 tokens are four windows and 8 tokens of a fifth: what is left of those reaches less far.
    assert uniform_distance((64, 64), window=14, patch=16) < 116.5


def test_padding_is_no_place():
    valid = window_validity((4, 4), 3)
    assert valid.sum(dim=1).tolist() == [9, 3, 3, 1]
    assert valid.sum() == 16
    assert uniform_distance((4, 4), window=3, patch=1) == pytest.approx(
        (9 * uniform_distance((3, 3), window=0, patch=1) + 2 * 3 * uniform_distance((3, 1), window=0, patch=1)) / 16
    )


def test_distances_are_euclidean_in_pixels():
    distances = pixel_distances(2, 3, patch=4)
    assert distances[0].tolist() == pytest.approx([0, 4, 8, 4, 4 * math.sqrt(2), 4 * math.sqrt(5)])
    assert torch.equal(distances, distances.T)


def _blind(attn: nn.Module) -> nn.Module:
    """Attention that cannot tell tokens apart."""
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.zero_()
    return attn


@pytest.mark.parametrize("window", [0, 3])
def test_attention_without_preference_has_the_uniform_distance(window: int):
    encoder = build_segmenter("tiny", task="binary", image_size=64).encoder
    attn = _blind(encoder.blocks[0 if window else 1].attn)
    tokens = torch.randn(2, 4, 4, encoder.shape.dim)
    if window:
        tokens = window_partition(tokens, window)[0]
    distances = attention_distance(attn, tokens, grid=(4, 4), window=window, patch=16)
    assert distances.shape == (2, encoder.shape.blocks[0].heads)
    assert distances.flatten().tolist() == pytest.approx(
        [uniform_distance((4, 4), window=window, patch=16)] * distances.numel()
    )


@pytest.mark.parametrize("chunk", [1 << 24, 20])
def test_every_block_of_the_tiny_sam_agrees_with_loops(monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(measuring, "CHUNK", chunk)
    encoder = build_segmenter("tiny", task="binary", image_size=64, head_seed=3).encoder.eval()
    images = torch.randn(2, 3, 64, 64)
    inputs = _inputs(encoder, images)
    with watched(encoder) as seen, torch.no_grad():
        encoder.run_blocks(encoder.embed(images))
    windows = [block.window_size for block in encoder.blocks]
    assert 0 in windows
    assert any(windows)
    for block, tokens, measured in zip(encoder.blocks, inputs, seen, strict=True):
        for image in range(2):
            expected = _by_loops(block, tokens[image : image + 1], patch=16)
            assert measured.distances[0][image].tolist() == pytest.approx(expected, rel=1e-5)


def _inputs(encoder: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """What every block's attention gets, before windows are made."""
    tokens, inputs = encoder.embed(images), []
    for block in encoder.blocks:
        inputs.append(block.norm1(tokens).detach())
        tokens = block(tokens).detach()
    return inputs


def _by_loops(block: Any, tokens: torch.Tensor, *, patch: int) -> list[float]:
    """As the model attends, with segment_anything's own relative positions; padding dropped and rows renormalised after."""
    height, width = tokens.shape[1:3]
    side = block.window_size or height
    maps, (padded, _) = window_partition(tokens, side) if block.window_size else (tokens, (height, width))
    across = padded // side
    attn = block.attn
    heads = attn.num_heads
    sums, queries = [0.0] * heads, 0
    for number, window in enumerate(maps):
        row, column = number // across * side, number % across * side
        q, k, _ = attn.qkv(window).reshape(side * side, 3, heads, -1).permute(1, 2, 0, 3)
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        scores = add_decomposed_rel_pos(scores, q, attn.rel_pos_h, attn.rel_pos_w, (side, side), (side, side))
        shares = scores.softmax(dim=-1).tolist()
        places = [(i, j) for i in range(side) for j in range(side)]
        real = [n for n, (i, j) in enumerate(places) if row + i < height and column + j < width]
        queries += len(real)
        for head in range(heads):
            for n in real:
                kept = sum(shares[head][n][m] for m in real)
                sums[head] += sum(shares[head][n][m] / kept * patch * math.dist(places[n], places[m]) for m in real)
    return [total / queries for total in sums]


def test_tokens_without_a_place_are_left_out_in_timm():
    encoder = build_segmenter("tiny_timm", task="binary", image_size=64, head_seed=1).encoder.eval()
    images = torch.randn(2, 3, 64, 64)
    with watched(encoder) as seen, torch.no_grad():
        tokens = encoder.embed(images)
        normed = encoder.blocks[0].norm1(tokens)
        encoder.run_blocks(tokens)
    attn, prefix, patch = encoder.blocks[0].attn, encoder.shape.prefix_tokens, encoder.shape.patch
    assert prefix
    q, k, _ = attn.qkv(normed).reshape(2, normed.shape[1], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    shares = ((attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)).softmax(dim=-1)[:, :, prefix:, prefix:]
    shares = shares / shares.sum(dim=-1, keepdim=True)
    side = 64 // patch
    expected = (shares * pixel_distances(side, side, patch=patch)).sum(dim=-1).mean(dim=-1)
    assert torch.allclose(seen[0].distances[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("backbone", "index"), [("tiny_dinov3", 0), ("tiny_sam3", 0), ("tiny_sam3", 1)])
def test_distances_of_rotary_attention_follow_its_own_weights(backbone: str, index: int):
    encoder = build_segmenter(backbone, task="binary", image_size=48, head_seed=1).encoder.eval()
    attn = encoder.blocks[index].attn
    with torch.no_grad():
        attn.qkv.weight.normal_(std=0.5)  # far from uniform attention
    inputs: list[torch.Tensor] = []
    attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with watched(encoder) as seen, torch.no_grad():
        encoder(torch.randn(2, 3, 48, 48))
    q, k, _ = attn.heads(inputs[0])
    # The 3x3 places of an image, which fill one window, behind what tokens have none.
    shares = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)[:, :, -9:, -9:]
    shares = shares / shares.sum(dim=-1, keepdim=True)
    expected = (shares * pixel_distances(3, 3, patch=16)).sum(dim=-1).mean(dim=-1)
    assert torch.allclose(seen[index].distances[0], expected, rtol=1e-5)
    assert expected.std() > 0
