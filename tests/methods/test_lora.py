"""LoRA against Hugging Face's peft, and where it acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn

from harness.methods.lora import LoRA, LoRAConfig
from harness.methods.parts.lowrank import AdaptedLinear, LowRank
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.segmenter import Segmenter
from tests.methods.compared import require_alike

PEFT_NAMES = {"qkv": "qkv", "proj": "proj", "mlp_in": "lin1", "mlp_out": "lin2"}


def _attached(config: LoRAConfig, *, seed: int = 1) -> tuple[Segmenter, LoRA]:
    segmenter = build_segmenter("tiny", task="binary")
    method = LoRA(config, seed=seed)
    method.attach(segmenter)
    for adapter in method.adapters().values():  # zero up-projections would hide the down-projections
        nn.init.normal_(adapter.up, std=0.1, generator=torch.Generator().manual_seed(len(adapter.up)))
    return segmenter, method


@pytest.mark.parametrize("sites", ["qkv", "proj", "mlp", "qkv,proj,mlp"])
def test_output_and_gradients_equal_peft(sites: str) -> None:
    segmenter, method = _attached(LoRAConfig(sites=sites, rank=3, alpha=32.0))
    reference = build_segmenter("tiny", task="binary").encoder.requires_grad_(False)
    modules = {name.rpartition(".")[2] for name in method.adapters()}
    targets = [PEFT_NAMES[module] for module in modules]
    inject_adapter_in_model(PeftConfig(r=3, lora_alpha=32, target_modules=targets, bias="none"), reference)
    pairs = _twins(reference, method)
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    outputs = segmenter.double().encoder(images), reference.double()(images)
    require_alike(*outputs, pairs, tolerance=1e-9, of_gradients=1e-9)


def _twins(reference: nn.Module, method: LoRA) -> list[tuple[Tensor, Tensor]]:
    """The matrices of our adapters, down and up in turn, each with peft's in ``reference``."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for site, adapter in method.adapters().items():
        block, module = site.rsplit(".", 1)
        path = {"qkv": "attn.qkv", "proj": "attn.proj", "mlp_in": "mlp.lin1", "mlp_out": "mlp.lin2"}[module]
        twin: Any = reference.get_submodule(f"{block}.{path}")
        pairs += [(adapter.down, twin.lora_A["default"].weight), (adapter.up, twin.lora_B["default"].weight)]
    return pairs


def test_rslora_divides_by_the_root_of_the_rank_as_peft_does() -> None:
    _, method = _attached(LoRAConfig(scaling="rslora", rank=9, alpha=6.0))
    layer: Any = inject_adapter_in_model(
        PeftConfig(r=9, lora_alpha=6, target_modules=["0"], use_rslora=True), nn.Sequential(nn.Linear(4, 4))
    ).get_submodule("0")
    assert {adapter.scale for adapter in method.adapters().values()} == {layer.scaling["default"]} == {2.0}


@pytest.mark.parametrize("slices", ["q", "v", "q,v", "k,v", "q,k,v"])
def test_slices_of_fused_qkv_equal_separate_projections_under_peft(slices: str) -> None:
    dim, generator = 16, torch.Generator().manual_seed(0)
    fused = nn.Linear(dim, 3 * dim)
    chosen = {name: "qkv".index(name) * dim for name in slices.split(",")}
    adapters = {
        name: LowRank(
            down=torch.randn(3, dim, generator=generator),
            up=torch.randn(dim, 3, generator=generator),
            scale=2.0,
            rows=torch.arange(start, start + dim),
        )
        for name, start in chosen.items()
    }
    separate: Any = nn.ModuleDict({name: nn.Linear(dim, dim) for name in "qkv"})
    with torch.no_grad():
        for name, start in (("q", 0), ("k", dim), ("v", 2 * dim)):
            separate[name].weight.copy_(fused.weight[start : start + dim])
            separate[name].bias.copy_(fused.bias[start : start + dim])
    inject_adapter_in_model(PeftConfig(r=3, lora_alpha=6, target_modules=list(chosen), bias="none"), separate)
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, adapter in adapters.items():
        twin = separate[name]
        pairs += [(adapter.down, twin.lora_A["default"].weight), (adapter.up, twin.lora_B["default"].weight)]
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    tokens, separate = torch.randn(5, 7, dim, generator=generator).double(), separate.double()

    output = AdaptedLinear(fused, adapters).double()(tokens)
    expected = torch.cat([separate[name](tokens) for name in "qkv"], dim=-1)
    require_alike(output, expected, pairs, tolerance=1e-9, of_gradients=1e-9)


def test_another_seed_draws_other_down_projections() -> None:
    """That one seed draws the same, and nothing from torch's generator, is in the contract."""
    first, other = (_attached(LoRAConfig(), seed=seed)[1].adapters().values() for seed in (3, 4))
    assert not any(torch.equal(a.down, b.down) for a, b in zip(first, other, strict=True))


def test_a_method_attaches_once() -> None:
    segmenter, method = _attached(LoRAConfig())
    with pytest.raises(MethodError, match="attached already"):
        method.attach(build_segmenter("tiny", task="binary"))
    assert method.segmenter is segmenter
