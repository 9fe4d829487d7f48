"""VPT's prompts against the plain reading of the paper, and Rein's tokens against the released formula (w1oves/Rein 29755d4)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition

from harness.contract.case import ContractCase
from harness.methods.configs.baselines import ReinConfig, VPTConfig
from harness.methods.rein import RefinedBlock, Rein
from harness.methods.vpt import VPT


def _attached(backbone: str) -> torch.nn.Module:
    segmenter, _ = ContractCase(method=VPT, config=VPTConfig(tokens=5), backbone=backbone).attached()
    return segmenter.encoder


def test_prompts_in_a_sequence_equal_a_block_run_over_the_longer_sequence() -> None:
    encoder = _attached("tiny_timm")
    plain = ContractCase(method=VPT, config=VPTConfig(), backbone="tiny_timm").plain().encoder
    tokens = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(0))
    prompted = encoder.get_submodule("blocks.2")
    prompts = prompted.get_parameter("attn.prompts")
    longer = torch.cat([prompts.expand(2, -1, -1), tokens], dim=1)
    expected = plain.get_submodule("blocks.2")(longer)[:, 5:]
    torch.testing.assert_close(prompted(tokens), expected, atol=1e-5, rtol=1e-5)


def test_each_window_attends_to_its_copy_of_the_prompts_with_no_position() -> None:
    encoder = _attached("tiny")
    block = encoder.get_submodule("blocks.0")  # windows of 3 on a grid of 4: padded
    plain = ContractCase(method=VPT, config=VPTConfig()).plain().encoder.get_submodule("blocks.0")
    tokens = torch.randn(2, 4, 4, 64, generator=torch.Generator().manual_seed(0))
    windows, _ = window_partition(plain.norm1(tokens), 3)
    prompts = plain.norm1(block.get_submodule("attn").prompts)
    attn, heads, width = plain.attn, 2, 32
    expected = []
    for window in windows:  # one by one and head by head, by the formula
        sequence = torch.cat([window.reshape(9, 64), prompts])
        q, k, v = attn.qkv(sequence).reshape(14, 3, heads, width).permute(1, 2, 0, 3)
        scores = q[:, :9] @ k.transpose(1, 2) / math.sqrt(width)
        rows, columns = get_rel_pos(3, 3, attn.rel_pos_h), get_rel_pos(3, 3, attn.rel_pos_w)
        for target in range(9):
            for other in range(9):
                scores[:, target, other] += q[:, target] @ rows[target // 3, other // 3]
                scores[:, target, other] += q[:, target] @ columns[target % 3, other % 3]
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(3, 3, 64)
        expected.append(attn.proj(out))
    torch.testing.assert_close(block.get_submodule("attn")(windows), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_prompts_start_uniform_within_the_released_bound() -> None:
    prompts = torch.cat([p.flatten() for n, p in _attached("tiny").named_parameters() if n.endswith(".prompts")])
    bound = math.sqrt(6 / (3 * 16**2 + 64))
    assert 0.95 * bound < prompts.abs().max() <= bound
    assert abs(prompts.mean()) < 0.1 * bound


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_a_block_equals_the_released_formula_and_its_gradients(backbone: str) -> None:
    case = ContractCase(method=Rein, config=ReinConfig(tokens=5, rank=2, scale=0.5), backbone=backbone)
    segmenter, _ = case.attached()
    block: Any = segmenter.encoder.blocks[1]
    assert isinstance(block, RefinedBlock)
    shared = segmenter.encoder.rein.double()
    block.double()
    tokens = torch.randn(2, 17, 64) if backbone == "tiny_timm" else torch.randn(2, 4, 4, 64)
    segmenter.encoder.embed(case.images)
    output = block(tokens.double())

    plain = block.block(tokens.double())
    first = 1 if backbone == "tiny_timm" else 0  # the class token passes by
    features = plain[:, first:].flatten(1, -2) if first else plain.flatten(1, 2)
    learnt = (block.left @ block.right).detach().requires_grad_()
    to_feature = learnt[1:] @ shared.of_tokens.weight.T + shared.of_tokens.bias
    expected = torch.empty_like(features)
    for image in range(2):
        for target in range(features.shape[1]):
            feature = features[image, target]
            logits = torch.stack([feature @ token for token in learnt]) / math.sqrt(64)
            share = logits.exp() / logits.exp().sum()
            change = sum(share[i + 1] * to_feature[i] for i in range(4)) + feature
            expected[image, target] = feature + 0.5 * (shared.of_features.weight @ change + shared.of_features.bias)
    refined = output[:, first:].reshape(expected.shape)
    torch.testing.assert_close(refined, expected, rtol=1e-9, atol=1e-9)
    if first:
        torch.testing.assert_close(output[:, :1], plain[:, :1])
    weights = torch.randn_like(expected)
    (refined * weights).sum().backward()
    (gradient,) = torch.autograd.grad((expected * weights).sum(), learnt)
    torch.testing.assert_close(block.left.grad, gradient @ block.right.T, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(block.right.grad, block.left.T @ gradient, rtol=1e-8, atol=1e-9)


def test_starts_as_released() -> None:
    segmenter, _ = ContractCase(method=Rein, config=ReinConfig()).attached()
    bound = math.sqrt(6 / (3 * 16**2 + math.sqrt(64 * 16)))
    for block in segmenter.encoder.blocks:
        for factor in (block.left, block.right):
            assert 0.98 * bound < factor.abs().max() <= bound
    shared = segmenter.encoder.rein
    assert shared.scale.item() == pytest.approx(1e-3)
    for layer in (shared.of_tokens, shared.of_features):
        for parameter in (layer.weight, layer.bias):
            assert 0.9 / 8 < parameter.abs().max() <= 1 / 8
