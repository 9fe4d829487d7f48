"""VeRA: how it starts, beside HF peft's, and what its layers share; `test_against_peft` compares outputs, gradients and merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import VeraConfig, get_peft_model
from torch import nn

from harness.methods.configs.lowrank import VeRAConfig
from harness.methods.parts.lowrank import AdaptedLinear
from harness.methods.vera import Projections, Scaled, VeRA
from harness.models.build import build_segmenter


def test_the_shared_matrices_start_spread_as_pefts_do() -> None:
    theirs: Any = get_peft_model(nn.Sequential(nn.Linear(64, 192)), VeraConfig(r=256, target_modules=["0"]))
    segmenter = build_segmenter("tiny", task="binary")
    method = VeRA(VeRAConfig(), seed=1)
    method.attach(segmenter)
    (shared,) = {module for module in segmenter.modules() if isinstance(module, Projections)}
    for adapter in method.adapters().values():
        torch.testing.assert_close(adapter.down, theirs.base_model.model[0].vera_lambda_d["default"])
        assert not adapter.up.any()
    for ours, other in ((shared.down, theirs.base_model.vera_A), (shared.up, theirs.base_model.vera_B)):
        assert ours.shape == other["default"].shape
        assert ours.std().item() == pytest.approx(other["default"].std().item(), rel=0.02)
        assert ours.abs().max().item() == pytest.approx(other["default"].abs().max().item(), rel=0.01)


def test_a_slice_gets_the_leading_rows_on_its_own_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = Projections(down=torch.randn(4, 6, generator=generator), up=torch.randn(9, 4, generator=generator))
    base = nn.Linear(5, 9)
    adapter = Scaled(shared, inputs=5, outputs=3, initial=0.5, rows=torch.arange(6, 9))
    nn.init.normal_(adapter.up, generator=generator)
    tokens = torch.randn(2, 5, generator=generator)
    change = AdaptedLinear(base, {"v": adapter})(tokens) - base(tokens)
    expected = adapter.up * (0.5 * tokens @ shared.down[:, :5].t() @ shared.up[:3].t())
    torch.testing.assert_close(change[:, 6:], expected)
    torch.testing.assert_close(change[:, :6], torch.zeros(2, 6))


def test_the_state_holds_the_shared_matrices_once() -> None:
    segmenter = build_segmenter("tiny", task="binary")
    method = VeRA(VeRAConfig(rank=8), seed=1)
    method.attach(segmenter)
    assert sum(".shared." in name for name in method.state()) == 2
