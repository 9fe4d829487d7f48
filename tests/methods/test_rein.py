"""Rein's refinement against the released formula (w1oves/Rein 29755d4, rein/models/backbones/reins.py), token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from harness.contract.case import ContractCase
from harness.methods.configs import ReinConfig
from harness.methods.rein import RefinedBlock, Rein


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
        for place in range(features.shape[1]):
            feature = features[image, place]
            logits = torch.stack([feature @ token for token in learnt]) / math.sqrt(64)
            share = logits.exp() / logits.exp().sum()
            change = sum(share[i + 1] * to_feature[i] for i in range(4)) + feature
            expected[image, place] = feature + 0.5 * (shared.of_features.weight @ change + shared.of_features.bias)
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
