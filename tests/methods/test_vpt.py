"""VPT against the plain reading of the paper: prompts in the sequence, their outputs dropped."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition

from harness.contract.case import ContractCase
from harness.methods.configs import VPTConfig
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
        for place in range(9):
            for other in range(9):
                scores[:, place, other] += q[:, place] @ rows[place // 3, other // 3]
                scores[:, place, other] += q[:, place] @ columns[place % 3, other % 3]
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(3, 3, 64)
        expected.append(attn.proj(out))
    torch.testing.assert_close(block.get_submodule("attn")(windows), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_prompts_start_uniform_within_the_released_bound() -> None:
    prompts = torch.cat([p.flatten() for n, p in _attached("tiny").named_parameters() if n.endswith(".prompts")])
    bound = math.sqrt(6 / (3 * 16**2 + 64))
    assert 0.95 * bound < prompts.abs().max() <= bound
    assert abs(prompts.mean()) < 0.1 * bound
