"""VeRA against HF peft: outputs, gradients, how it starts, what it merges to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import VeraConfig, get_peft_model
from torch import Tensor, nn

from harness.methods.configs.lowrank import VeRAConfig
from harness.methods.parts.lowrank import AdaptedLinear
from harness.methods.vera import Projections, Scaled, VeRA
from harness.models.build import build_segmenter

IMAGES = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PATHS = {"qkv": "attn.qkv", "proj": "attn.proj", "mlp_in": "mlp.lin1", "mlp_out": "mlp.lin2"}


@pytest.mark.parametrize(
    ("sites", "targets"), [("qkv", ["qkv"]), ("qkv,proj,mlp", ["qkv", "attn.proj", "lin1", "lin2"])]
)
def test_outputs_and_gradients_equal_those_of_peft(sites: str, targets: list[str]) -> None:
    segmenter = build_segmenter("tiny", task="binary", image_size=64)
    method = VeRA(VeRAConfig(sites=sites, rank=16), seed=1)
    method.attach(segmenter)
    plain = build_segmenter("tiny", task="binary", image_size=64).encoder
    theirs: Any = get_peft_model(plain, VeraConfig(r=16, target_modules=targets, d_initial=0.1))
    shared = next(module for module in segmenter.modules() if isinstance(module, Projections))
    pairs: list[tuple[Scaled, Tensor, Tensor]] = []
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        theirs.base_model.vera_A["default"].copy_(
            shared.down
        )  # of one shape: theirs are as large as the largest layer too
        theirs.base_model.vera_B["default"].copy_(shared.up)
        for site, adapter in method.adapters().items():
            block, module = site.rsplit(".", 1)
            twin = theirs.base_model.model.get_submodule(f"{block}.{PATHS[module]}")
            inner, outer = twin.vera_lambda_d["default"], twin.vera_lambda_b["default"]
            torch.testing.assert_close(inner, adapter.down)
            torch.testing.assert_close(outer, adapter.up)
            for mine, other in ((adapter.down, inner), (adapter.up, outer)):
                mine.add_(0.2 * torch.randn(mine.shape, generator=generator))
                other.copy_(mine)
            assert isinstance(adapter, Scaled)
            pairs.append((adapter, inner, outer))
    outputs = [segmenter.double().encoder(IMAGES), theirs.double()(IMAGES)]
    weights = torch.randn(outputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for output in outputs:
        (output * weights).sum().backward()

    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for adapter, inner, outer in pairs:
        torch.testing.assert_close(adapter.down.grad, inner.grad, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(adapter.up.grad, outer.grad, rtol=1e-8, atol=1e-9)

    merged = theirs.merge_and_unload()
    method.merge("exact")
    for index, block in enumerate(merged.blocks):
        for path in PATHS.values():
            own = segmenter.get_parameter(f"encoder.blocks.{index}.{path}.weight")
            torch.testing.assert_close(own, block.get_submodule(path).weight, rtol=1e-9, atol=1e-9)


def test_the_shared_matrices_start_spread_as_pefts_do() -> None:
    theirs: Any = get_peft_model(nn.Sequential(nn.Linear(64, 192)), VeraConfig(r=256, target_modules=["0"]))
    segmenter = build_segmenter("tiny", task="binary")
    method = VeRA(VeRAConfig(), seed=1)
    method.attach(segmenter)
    (shared,) = {module for module in segmenter.modules() if isinstance(module, Projections)}

    for mine, other in ((shared.down, theirs.base_model.vera_A), (shared.up, theirs.base_model.vera_B)):
        assert mine.shape == other["default"].shape
        assert mine.std().item() == pytest.approx(other["default"].std().item(), rel=0.02)
        assert mine.abs().max().item() == pytest.approx(other["default"].abs().max().item(), rel=0.01)


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
