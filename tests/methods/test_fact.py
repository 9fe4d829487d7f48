"""FacT against its equation, executed a second time on whole weights: outputs, gradients, merge, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from harness.contract.case import ContractCase
from harness.methods.fact import FacT, FacTConfig
from harness.methods.parts.placement import BlockShape, MethodError
from harness.models.segmenter import Segmenter
from tests.methods.compared import require_alike

SCALE = 0.5


def _dense_updates(segmenter: Segmenter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """ΔW by the name of the weight in a plain encoder, from copies of the factors; and the copies, by their own names."""
    copies = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in segmenter.encoder.named_parameters()
        if parameter.requires_grad
    }
    u, v = copies["factors.down"], copies["factors.up"]
    updates = {}
    for name in copies:
        if name.startswith("factors."):
            continue
        layer = name.removesuffix(".own")
        outputs = segmenter.encoder.get_submodule(layer).outputs
        weight = segmenter.encoder.get_submodule(layer).base.weight
        columns = weight.shape[1] // 64
        update = [[torch.zeros(64, 64).to(weight) for _ in range(columns)] for _ in range(weight.shape[0] // 64)]
        for position, row in enumerate((outputs[:, 0] // 64).tolist()):
            for column in range(columns):
                own = copies[name][position * columns + column]
                update[row][column] = SCALE * v @ own @ u
        updates[f"{layer}.weight"] = torch.cat([torch.cat(row, dim=1) for row in update])
    return updates, copies


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
@pytest.mark.parametrize("sites", ["qkv,proj,mlp", "q,v"])
def test_outputs_and_gradients_equal_the_equation_on_whole_weights(backbone: str, sites: str) -> None:
    """In float64: the factors are ten times the weights, and what float32 loses there depends on the processor."""
    case = ContractCase(method=FacT, config=FacTConfig(rank=3, scale=SCALE, sites=sites), backbone=backbone)
    segmenter, _ = case.attached()
    torch.manual_seed(0)
    with torch.no_grad():  # every factor away from its start
        for parameter in segmenter.encoder.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    plain, images = case.plain().encoder.double(), case.images.double()
    segmenter.encoder.double()
    updates, copies = _dense_updates(segmenter)
    weights = dict(plain.named_parameters())
    features = segmenter.encoder(images)
    expected = functional_call(plain, {name: weights[name] + update for name, update in updates.items()}, images)
    pairs = [(segmenter.encoder.get_parameter(name), copy) for name, copy in copies.items()]
    require_alike(features, expected, pairs, tolerance=1e-9, of_gradients=1e-9)


def test_an_mlp_that_is_not_of_square_weights_is_refused() -> None:
    shape = BlockShape(dim=64, heads=2, mlp_dim=160)
    assert FacTConfig(sites="qkv,proj").squares(shape) == 4
    with pytest.raises(MethodError, match="leave mlp out"):
        FacTConfig().squares(shape)
