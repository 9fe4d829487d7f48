"""DoRA against HF peft's layer with equal weights, and against its own formula."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from harness.methods.dora import Decomposed
from harness.methods.parts.lowrank import LowRank


def _layers(rank: int = 3, alpha: int = 32) -> tuple[Decomposed, Any]:
    """Ours and peft's on one linear layer, with equal weights that are not those of the start."""
    torch.manual_seed(0)
    base = nn.Linear(12, 9)
    theirs: Any = get_peft_model(
        nn.Sequential(nn.Linear(12, 9)), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], use_dora=True)
    )
    layer = theirs.base_model.model[0]
    down, up = torch.randn(rank, 12), 0.1 * torch.randn(9, rank)
    ours = Decomposed(base, {"all": LowRank(down=down, up=up, scale=alpha / rank)})
    with torch.no_grad():
        layer.base_layer.weight.copy_(base.weight)
        layer.base_layer.bias.copy_(base.bias)
        layer.lora_A["default"].weight.copy_(down)
        layer.lora_B["default"].weight.copy_(up)
        magnitude = base.weight.norm(dim=1) * torch.linspace(0.5, 1.5, 9)
        layer.lora_magnitude_vector["default"].weight.copy_(magnitude)
        ours.magnitudes["all"].copy_(magnitude)
    return ours, layer


def test_outputs_and_gradients_equal_those_of_peft() -> None:
    ours, theirs = _layers()
    tokens = torch.randn(2, 5, 12)
    weights = torch.randn(2, 5, 9)
    outputs: list[Tensor] = []
    for layer in (ours, theirs):
        output = layer(tokens)
        (output * weights).sum().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    pairs = {
        "A": (ours.adapters["all"].down, theirs.lora_A["default"].weight),
        "B": (ours.adapters["all"].up, theirs.lora_B["default"].weight),
        "m": (ours.magnitudes["all"], theirs.lora_magnitude_vector["default"].weight),
    }
    for name, (mine, other) in pairs.items():
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4, msg=(name + ": {}").format)
