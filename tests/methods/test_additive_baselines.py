"""BitFit, SSF, adapter and AdaptFormer against their formulas, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear

from harness.contract.case import ContractCase, grouped_parameters
from harness.methods.adapter import Adapter
from harness.methods.adaptformer import AdaptFormer
from harness.methods.bitfit import BitFit, LayerNormTuning
from harness.methods.configs.baselines import AdapterConfig, AdaptFormerConfig, BitFitConfig, LayerNormConfig, SSFConfig
from harness.methods.ssf import SSF, ScaleShift


def _tokens() -> torch.Tensor:
    return torch.randn(2, 4, 4, 64, generator=torch.Generator().manual_seed(0))


def perturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("method", "config", "backbone", "some"),
    [
        (BitFit, BitFitConfig(), "tiny", {"patch_embed.proj.bias", "neck.1.bias", "neck.3.bias"}),
        (BitFit, BitFitConfig(blocks="1", outside=False), "tiny", {"blocks.1.attn.qkv.bias"}),
        (LayerNormTuning, LayerNormConfig(), "tiny", {"neck.3.weight"}),
        (LayerNormTuning, LayerNormConfig(), "tiny_timm", {"norm.bias"}),
        (LayerNormTuning, LayerNormConfig(blocks="1", outside=False), "tiny", {"blocks.1.norm2.weight"}),
    ],
)
def test_tensors_of_one_kind_train_and_nothing_else_in_the_encoder(method, config, backbone: str, some: set[str]):
    segmenter, attached = ContractCase(method=method, config=config, backbone=backbone).attached()
    target = "encoder." if config.outside else f"encoder.blocks.{config.blocks}."
    expected = {
        name
        for name, _ in segmenter.named_parameters()
        if name.startswith(target)
        and (
            name.endswith(".bias")
            if method is BitFit
            else "LayerNorm" in type(segmenter.get_submodule(name.rpartition(".")[0])).__name__
        )
    }
    assert {name for name in grouped_parameters(attached) if name.startswith("encoder.")} == expected
    assert {f"encoder.{name}" for name in some} <= expected


def test_ssf_scales_and_shifts_the_output_of_each_listed_module() -> None:
    segmenter, _ = ContractCase(method=SSF, config=SSFConfig()).attached()
    names = [name for name, module in segmenter.named_modules() if isinstance(module, ScaleShift)]
    sites = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2")
    assert names == ["encoder.patch_embed.proj", *(f"encoder.blocks.{i}.{site}" for i in range(4) for site in sites)]
    perturb(segmenter.encoder)
    layer = segmenter.encoder.get_submodule("blocks.0.attn.qkv")
    assert isinstance(layer, ScaleShift)
    torch.testing.assert_close(layer(_tokens()), layer.base(_tokens()) * layer.scale + layer.shift)
    patches = segmenter.encoder.get_submodule("patch_embed.proj")
    assert isinstance(patches, ScaleShift)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = patches.base(images) * patches.scale[None, :, None, None] + patches.shift[None, :, None, None]
    torch.testing.assert_close(patches(images), expected)


def test_ssf_starts_from_noise_as_released_and_from_the_identity_as_intended() -> None:
    for init, std in (("released", 0.02), ("intended", 0.0)):
        segmenter, method = ContractCase(method=SSF, config=SSFConfig(init=init)).attached()  # type: ignore[arg-type]
        layers = [module for module in segmenter.modules() if isinstance(module, ScaleShift)]
        scales, shifts = (torch.cat([getattr(layer, key) for layer in layers]) for key in ("scale", "shift"))
        assert method.identity_at_init == (init == "intended")
        assert scales.mean().item() == pytest.approx(1, abs=2e-3)
        assert shifts.mean().item() == pytest.approx(0, abs=2e-3)
        assert scales.std().item() == pytest.approx(std, abs=1e-3)
        assert shifts.std().item() == pytest.approx(std, abs=1e-3)


def test_adapter_follows_attention_and_mlp_before_the_residual() -> None:
    segmenter, _ = ContractCase(method=Adapter, config=AdapterConfig(hidden=5)).attached()
    perturb(segmenter.encoder)
    block = segmenter.encoder.get_submodule("blocks.1")  # global attention
    proj, lin2 = block.get_submodule("attn.proj"), block.get_submodule("mlp.lin2")

    def adapt(y: torch.Tensor, part: nn.Module) -> torch.Tensor:
        down: Any = part.get_submodule("adapter.down")
        up: Any = part.get_submodule("adapter.up")
        return y + linear(gelu(linear(y, down.weight, down.bias)), up.weight, up.bias)

    x = _tokens()
    plain = ContractCase(method=Adapter, config=AdapterConfig()).plain().encoder.get_submodule("blocks.1")
    attended = x + adapt(plain.attn(plain.norm1(x)), proj)
    expected = attended + adapt(plain.mlp(plain.norm2(attended)), lin2)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_adapter_starts_near_the_identity_and_can_learn() -> None:
    segmenter, _ = ContractCase(method=Adapter, config=AdapterConfig(hidden=16)).attached()
    weights = torch.cat(
        [p.flatten() for n, p in segmenter.named_parameters() if ".adapter." in n and n.endswith("weight")]
    )
    assert weights.abs().max() <= 2e-2
    assert 0.5e-2 < weights.std() < 1e-2  # a normal of 1e-2 cut at two standard deviations


def test_adaptformer_reads_the_tokens_before_the_norm_parallel_to_the_mlp() -> None:
    segmenter, _ = ContractCase(method=AdaptFormer, config=AdaptFormerConfig(hidden=8, scale=0.3)).attached()
    perturb(segmenter.encoder)
    block = segmenter.encoder.get_submodule("blocks.1")
    plain = ContractCase(method=AdaptFormer, config=AdaptFormerConfig()).plain().encoder.get_submodule("blocks.1")
    down, up = block.get_submodule("mlp.adapter.down"), block.get_submodule("mlp.adapter.up")
    x = _tokens()
    attended = x + plain.attn(plain.norm1(x))
    parallel = linear(linear(attended, down.weight, down.bias).relu(), up.weight, up.bias)
    expected = attended + plain.mlp(plain.norm2(attended)) + 0.3 * parallel
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_ssf_leaves_the_norm_behind_a_timm_vits_last_block() -> None:
    segmenter, method = ContractCase(method=SSF, config=SSFConfig(), backbone="tiny_timm").attached()
    assert segmenter.encoder.get_submodule("norm").__class__.__name__ != "ScaleShift"
    assert not [name for name in method.state() if name.startswith("encoder.norm.")]
