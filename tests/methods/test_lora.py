"""LoRA against Hugging Face's peft, and where it acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import EvaConfig, get_peft_model, inject_adapter_in_model
from peft import LoraConfig as PeftConfig
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor, nn

from harness.methods.convlora import ConvLoRAConfig
from harness.methods.dora import DoRA
from harness.methods.lora import LoRA, LoRAConfig, SAMed, SAMedConfig
from harness.methods.parts.lowrank import AdaptedLinear, LowRank
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.segmenter import Segmenter
from harness.protocols.card import Protocol
from harness.training.optimisers import build_optimisers

PEFT_NAMES = {"qkv": "qkv", "proj": "proj", "mlp_in": "lin1", "mlp_out": "lin2"}


def _attached(config: LoRAConfig, *, seed: int = 1) -> tuple[Segmenter, LoRA]:
    segmenter = build_segmenter("tiny", task="binary")
    method = LoRA(config, seed=seed)
    method.attach(segmenter)
    for adapter in method.adapters().values():  # zero up-projections would hide the down-projections
        nn.init.normal_(adapter.up, std=0.1, generator=torch.Generator().manual_seed(len(adapter.up)))
    return segmenter, method


def _close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)


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

    output, expected = segmenter.double().encoder(images), reference.double()(images)
    output.square().mean().backward()
    expected.square().mean().backward()

    _close(output, expected)
    for own, other in pairs:
        _close(own.grad, other.grad)


def _twins(reference: nn.Module, method: LoRA) -> list[tuple[Tensor, Tensor]]:
    """The matrices of our adapters, down and up in turn, each with peft's in ``reference``."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for site, adapter in method.adapters().items():
        block, module = site.rsplit(".", 1)
        path = {"qkv": "attn.qkv", "proj": "attn.proj", "mlp_in": "mlp.lin1", "mlp_out": "mlp.lin2"}[module]
        twin: Any = reference.get_submodule(f"{block}.{path}")
        pairs += [(adapter.down, twin.lora_A["default"].weight), (adapter.up, twin.lora_B["default"].weight)]
    return pairs


@pytest.mark.parametrize(("sites", "layer"), [("q,v", "attn.qkv"), ("proj", "attn.proj")])
@pytest.mark.parametrize("batches", [1, pytest.param(3, marks=pytest.mark.slow)])
@torch.no_grad()
def test_eva_starts_from_the_directions_that_peft_finds(sites: str, layer: str, batches: int) -> None:
    segmenter, plain = (build_segmenter("tiny", task="binary", image_size=64).eval() for _ in range(2))
    method = LoRA(LoRAConfig(initialisation="eva", sites=sites, blocks="3", rank=8))
    method.attach(segmenter)
    generators = [torch.Generator().manual_seed(number) for number in range(batches)]
    images = [torch.randn(2, 3, 64, 64, generator=each) * torch.linspace(0.2, 2, 64) for each in generators]
    # With as many components as half the width peft's decomposition of a batch is exact; its ranks are then shared out anew.
    exact = EvaConfig(rho=4, tau=0.9999)
    config = PeftConfig(r=8, target_modules=f"blocks.3.{layer}", init_lora_weights="eva", eva_config=exact)
    theirs = get_eva_state_dict(
        plain.encoder, images, config, forward_fn=lambda model, batch: model(batch), prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip

    method.start_from(segmenter(batch) for batch in images)

    (directions,) = theirs.values()
    for adapter in method.adapters().values():
        cosines = (adapter.down[: len(directions)] * directions).sum(dim=1)
        torch.testing.assert_close(cosines.abs(), torch.ones_like(cosines), atol=1e-3, rtol=0)
    assert len(directions) == 8


def test_rslora_divides_by_the_root_of_the_rank_as_peft_does() -> None:
    _, method = _attached(LoRAConfig(scaling="rslora", rank=9, alpha=6.0))
    layer: Any = inject_adapter_in_model(
        PeftConfig(r=9, lora_alpha=6, target_modules=["0"], use_rslora=True), nn.Sequential(nn.Linear(4, 4))
    ).get_submodule("0")
    assert {adapter.scale for adapter in method.adapters().values()} == {layer.scaling["default"]} == {2.0}


@torch.no_grad()
def _separated(encoder: nn.Module) -> nn.Module:
    """Its four largest singular values doubled, as trained weights stand out: what float32 (peft's) finds of the first four
    directions is off by rounding times σ₁ / (σ₄ − σ₅), up to 350 in random weights."""
    for name, layer in encoder.named_modules():
        if name.endswith(("qkv", "lin1", "lin2")):
            left, values, right = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            layer.weight.add_((left[:, :4] * values[:4]) @ right[:4])
    return encoder


@pytest.mark.parametrize(
    ("kind", "scaling", "start"),
    [(LoRA, "lora", "pissa"), (DoRA, "rslora", "pissa"), (LoRA, "rslora", "olora"), (DoRA, "lora", "olora")],
)
def test_starts_from_a_part_of_the_weights_equal_pefts_and_go_on_so(kind: type[LoRA], scaling: str, start: str) -> None:
    options: dict[str, Any] = {"sites": "qkv,mlp", "rank": 4, "alpha": 6.0, "scaling": scaling}
    segmenter = build_segmenter("tiny", task="binary")
    _separated(segmenter.encoder)
    segmenter.double()
    method = kind(kind.config_class(**options, initialisation=start), seed=1)  # type: ignore[arg-type]
    method.attach(segmenter)
    reference = _separated(build_segmenter("tiny", task="binary").encoder.requires_grad_(False))
    theirs = PeftConfig(
        r=4, lora_alpha=6, target_modules=["qkv", "lin1", "lin2"], init_lora_weights=start,  # type: ignore[arg-type]
        use_rslora=scaling == "rslora", use_dora=kind is DoRA,
    )  # fmt: skip
    inject_adapter_in_model(theirs, reference)
    pairs = _twins(reference, method)
    for (down, a), (up, b) in zip(pairs[::2], pairs[1::2], strict=True):
        # peft keeps float32 adapters; singular vectors are unique up to their signs
        torch.testing.assert_close(up @ down, (b @ a).double(), rtol=1e-4, atol=1e-5)
    reference.double()
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(
        segmenter.encoder(images).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    for step in range(2):
        outputs = [segmenter.encoder(images), reference(images)]
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
        for output in outputs:
            (output * weights).sum().backward()
        for own, other in pairs:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)
        with torch.no_grad():  # and on from other weights than those of the start
            generator = torch.Generator().manual_seed(step)
            for own, other in pairs:
                own.add_(0.1 * torch.randn(own.shape, generator=generator))
                other.copy_(own)
                own.grad, other.grad = None, None


def test_soma_starts_at_the_smallest_singular_directions_as_released() -> None:
    """ysj9909/SoMA 2bf0124, rein/peft/sora.py, with init=sora: s · B A is W cut to its last singular values."""
    segmenter = build_segmenter("tiny", task="binary").double()
    method = LoRA(LoRAConfig(rank=4, alpha=6.0, initialisation="soma"), seed=1)
    method.attach(segmenter)
    for site, adapter in method.adapters().items():
        weight = segmenter.encoder.get_submodule(site.replace(".qkv", ".attn.qkv")).base.weight
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        kept = left[:, -4:] @ torch.diag(values[-4:]) @ right[-4:]
        torch.testing.assert_close(6.0 / 4 * adapter.up @ adapter.down, kept, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(adapter.up.norm(dim=0), adapter.down.norm(dim=1))


def test_pissa_needs_a_matrix_of_that_rank() -> None:
    with pytest.raises(MethodError, match=r"^rank=65: .* at most 64"):
        _attached(LoRAConfig(rank=65, initialisation="pissa"))
    with pytest.raises(MethodError, match=r"^initialisation=pissa: "):
        ConvLoRAConfig(initialisation="pissa")


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_lora_plus_steps_as_pefts_optimiser_does(ratio: float) -> None:
    segmenter, method = _attached(LoRAConfig(rate_ratio=ratio, lr=1e-2))
    reference: Any = get_peft_model(
        build_segmenter("tiny", task="binary").encoder, PeftConfig(r=3, lora_alpha=32, target_modules=["qkv"])
    )
    segmenter, reference = segmenter.double(), reference.double()
    pairs = _twins(reference.base_model.model, method)
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    theirs = create_loraplus_optimizer(reference, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=ratio, weight_decay=0.0)
    card = Protocol(name="x", optimizer="adamw", lr=1e-3, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-6)
    for group in theirs.param_groups:
        group["eps"] = card.eps
    ours = build_optimisers(method.parameter_groups(), card)["weights"]
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for output, optimiser in ((segmenter.encoder(images), ours), (reference(images), theirs)):
            optimiser.zero_grad()
            output[:, 0].sum().backward()
            optimiser.step()
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)
    rates = {id(p): group["lr"] for group in ours.param_groups for p in group["params"]}
    ups = {id(adapter.up) for adapter in method.adapters().values()}
    assert {rates[key] for key in ups} == {1e-2 * ratio}
    assert {rate for key, rate in rates.items() if key not in ups} == {1e-2}


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
    for name, adapter in adapters.items():
        separate[name].lora_A["default"].weight.data.copy_(adapter.down.data)
        separate[name].lora_B["default"].weight.data.copy_(adapter.up.data)
    tokens, weights = torch.randn(5, 7, dim, generator=generator), torch.randn(5, 7, 3 * dim, generator=generator)

    tokens, weights, separate = tokens.double(), weights.double(), separate.double()

    output = AdaptedLinear(fused, adapters).double()(tokens)
    expected = torch.cat([separate[name](tokens) for name in "qkv"], dim=-1)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()

    _close(output, expected)
    for name, adapter in adapters.items():
        _close(adapter.down.grad, separate[name].lora_A["default"].weight.grad)
        _close(adapter.up.grad, separate[name].lora_B["default"].weight.grad)


def test_samed_reaches_queries_and_values_only() -> None:
    segmenter = build_segmenter("tiny", task="binary")
    method = SAMed(SAMedConfig())
    method.attach(segmenter)
    layer = segmenter.encoder.blocks[0].attn.qkv
    for adapter in method.adapters().values():
        nn.init.ones_(adapter.up)
    tokens = torch.randn(1, 3, 3, 64, generator=torch.Generator().manual_seed(0))
    change = (layer(tokens) - layer.base(tokens)).detach()
    assert change[..., :64].any()
    assert not change[..., 64:128].any()
    assert change[..., 128:].any()
    assert next(iter(method.adapters().values())).scale == 1.0


def test_blocks_outside_the_placement_keep_their_own_layers() -> None:
    segmenter, method = _attached(LoRAConfig(blocks="last-half"))
    assert list(method.adapters()) == ["blocks.2.qkv", "blocks.3.qkv"]
    assert [type(block.attn.qkv) for block in segmenter.encoder.blocks] == [nn.Linear, nn.Linear] + 2 * [AdaptedLinear]


def test_another_seed_draws_other_down_projections() -> None:
    """That one seed draws the same, and nothing from torch's generator, is in the contract."""
    first, other = (_attached(LoRAConfig(), seed=seed)[1].adapters().values() for seed in (3, 4))
    assert not any(torch.equal(a.down, b.down) for a, b in zip(first, other, strict=True))


def test_down_projection_starts_within_the_bound_of_kaiming_uniform() -> None:
    _, method = _attached(LoRAConfig())
    down = torch.cat([adapter.down.detach() for adapter in method.adapters().values()])
    bound = 64**-0.5
    assert down.abs().max() <= bound
    assert down.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
