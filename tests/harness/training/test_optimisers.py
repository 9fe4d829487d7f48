"""Optimisers: one a role, decay where it belongs, clipping, rates by schedule; and the precision of a pass."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness.cli.cost import _device
from harness.contract.gpu import require_gpu
from harness.experiment.environment import own_device
from harness.methods.base import ARCHITECTURE, WEIGHTS, ParameterGroup
from harness.models.device import autocast
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError
from harness.training import optimisers
from harness.training.loop import learning_rate_factor
from harness.training.optimisers import build_optimisers, parameters_of, set_learning_rate, update

RULES = Protocol(name="x", lr=1e-2, weight_decay=0.1, eps=1e-6, betas=(0.8, 0.9))
OFF = torch.amp.GradScaler("cpu", enabled=False)


def named(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}


def test_norms_and_biases_are_spared_from_decay() -> None:
    parameters = named(weight=(2, 3), bias=(3,), norm=(4,))
    optimiser = build_optimisers([ParameterGroup(role=WEIGHTS, named=parameters)], RULES)[WEIGHTS]
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in parameters.items()} == {"weight": 0.1, "bias": 0.0, "norm": 0.0}


def test_each_role_has_its_own_optimiser_with_its_own_rate_and_decay() -> None:
    groups = [
        ParameterGroup(role=WEIGHTS, named=named(w=(2, 2))),
        ParameterGroup(role=ARCHITECTURE, named=named(alpha=(8,)), lr=1e-3, weight_decay=0.001),
    ]
    optimisers = build_optimisers(groups, RULES)
    assert set(optimisers) == {WEIGHTS, ARCHITECTURE}
    assert [optimiser.param_groups[0]["lr"] for optimiser in optimisers.values()] == [1e-2, 1e-3]
    assert optimisers[ARCHITECTURE].param_groups[0]["weight_decay"] == 0.001  # a vector's too
    assert optimisers[WEIGHTS].param_groups[0]["betas"] == (0.8, 0.9)
    assert optimisers[WEIGHTS].param_groups[0]["eps"] == 1e-6


def test_what_stands_on_the_encoder_may_have_a_rate_of_its_own() -> None:
    parameters = {"encoder.blocks.0.a": nn.Parameter(torch.ones(2, 2)), "decoder.w": nn.Parameter(torch.ones(2, 2))}
    rules = replace(RULES, decoder_lr=1e-4)
    for own, expected in ((None, 1e-2), (3e-3, 3e-3)):
        optimiser = build_optimisers([ParameterGroup(role=WEIGHTS, named=parameters, lr=own)], rules)[WEIGHTS]
        rates = {id(p): group["base_lr"] for group in optimiser.param_groups for p in group["params"]}
        assert [rates[id(p)] for p in parameters.values()] == [expected, 1e-4]


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_a_gpus_fused_update_is_the_plain_one(optimizer: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the optimiser that the protocol names; in float64, on a CPU."""
    ended = []
    for fused in (True, None):
        monkeypatch.setattr(optimisers, "_on_gpu", lambda parts, fused=fused: fused)
        generator = torch.Generator().manual_seed(3)
        shapes: dict[str, tuple[int, ...]] = {"w": (5, 3), "b": (3,)}
        parameters = {
            name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for name, shape in shapes.items()
        }
        group = ParameterGroup(role=WEIGHTS, named=parameters)
        built = build_optimisers([group], replace(RULES, optimizer=optimizer))[WEIGHTS]  # type: ignore[arg-type]
        assert (type(built), built.defaults["fused"]) == (kind, fused)
        for step in range(6):
            set_learning_rate(built, 1 - step / 6)
            for parameter in parameters.values():
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            update([built], clip=1.0, scaler=OFF)
        ended.append([parameter.detach() for parameter in parameters.values()])
    torch.testing.assert_close(ended[0], ended[1], rtol=1e-12, atol=1e-14)


def test_a_parameter_in_two_groups_and_nothing_to_train_are_refused() -> None:
    group = ParameterGroup(role=WEIGHTS, named=named(w=(2,)))
    for groups, words in (
        ([group, group], "w is in two parameter groups"),
        ([replace(group, named={})], "no parameter"),
    ):
        with pytest.raises(UsageError, match=words):
            build_optimisers(groups, RULES)


def test_the_rate_is_scaled_from_the_groups_own() -> None:
    own = ParameterGroup(role=WEIGHTS, named=named(b=(2,)), lr=1.0)
    optimiser = build_optimisers([ParameterGroup(role=WEIGHTS, named=named(a=(2,))), own], RULES)[WEIGHTS]
    set_learning_rate(optimiser, 0.1)
    assert set_learning_rate(optimiser, 0.5) == pytest.approx(5e-3)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([5e-3, 0.5])


def test_clipping_spans_all_optimisers_of_the_step() -> None:
    weights, alphas = named(w=(2,)), named(alpha=(2,))
    optimisers = build_optimisers(
        [ParameterGroup(role=WEIGHTS, named=weights), ParameterGroup(role=ARCHITECTURE, named=alphas)],
        Protocol(name="x", optimizer="adamw", weight_decay=0.0),
    )
    seen = {}
    for role, optimiser in optimisers.items():
        for parameter in parameters_of(optimiser):
            parameter.grad = torch.tensor([3.0, 4.0])
        optimiser.register_step_pre_hook(
            lambda opt, *_, role=role: seen.update({role: float(parameters_of(opt)[0].grad.norm())})  # type: ignore[union-attr]
        )
    assert float(update(optimisers.values(), clip=1.0, scaler=OFF)) == pytest.approx(50**0.5)
    assert sum(value**2 for value in seen.values()) == pytest.approx(1.0, rel=1e-4)
    assert all(p.grad is not None for p in [*weights.values(), *alphas.values()])  # until the method has read them


def test_a_gradient_that_overflows_in_one_optimiser_stops_those_that_step_with_it() -> None:
    weights, alphas = named(w=(2,)), named(alpha=(2,))
    optimisers = build_optimisers(
        [ParameterGroup(role=WEIGHTS, named=weights), ParameterGroup(role=ARCHITECTURE, named=alphas)], RULES
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(weights["w"].sum() * torch.inf + alphas["alpha"].sum()).backward()
    assert not torch.isfinite(update(optimisers.values(), clip=0.0, scaler=scaler))
    for parameter in (weights["w"], alphas["alpha"]):
        assert torch.equal(parameter.detach(), torch.ones(2))
    assert scaler.get_scale() == 32.0


@pytest.mark.parametrize(
    ("kind", "total", "warmup", "factors"),
    [
        ("linear", 100, 0, {0: 1, 50: 0.5, 99: 0.01, 100: 0}),
        ("cosine", 100, 0, {0: 1, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0}),
        ("constant", 100, 0, {0: 1, 50: 1, 100: 1}),
        ("linear", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 0}),
        ("cosine", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 0}),
        ("constant", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 1}),
        ("linear", 5, 4, {4: 1, 5: 0}),  # one update after it
        ("linear", 3, 10, {2: 0.3}),  # all warm-up
    ],
)
def test_the_factor_of_an_update(kind: Any, total: int, warmup: int, factors: dict[int, float]) -> None:
    values = {update: learning_rate_factor(update, total=total, kind=kind, warmup=warmup) for update in factors}
    assert values == pytest.approx(factors)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_forward_pass_is_in_the_precision_of_the_card(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, torch.device("cpu")):
        assert nn.Linear(8, 8)(torch.ones(4, 8)).dtype is dtype


@pytest.mark.parametrize("of", [own_device, lambda: _device("cuda:1"), require_gpu], ids=["runs", "costs", "doctor"])
def test_what_is_measured_on_a_gpu_is_what_a_run_does_there(of, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    for name, answer in {"is_available": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    torch.backends.cuda.enable_cudnn_sdp(True)
    device = of()
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 is False
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert os.environ.pop("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"
    assert taken == [device]
