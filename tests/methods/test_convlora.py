"""Conv-LoRA: routing, noise, balance loss and the released gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import conv2d, gelu, interpolate

from harness.contract.case import ContractCase
from harness.contract.start import logits
from harness.methods.convlora import ConvLoRA, ConvLoRAConfig, Mixture, expert_load, squared_variation
from harness.planning.plan import configured
from harness.planning.request import PlannedRow
from harness.protocols.load import load_protocol


def _mixture(experts: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)
    mixture = Mixture(3, experts=experts, weighted=False, zero_bias=False, generator=generator)
    with torch.no_grad():  # a gate that has an opinion
        mixture.gate.normal_(generator=torch.Generator().manual_seed(1))
        mixture.noise.normal_(generator=torch.Generator().manual_seed(2))
    return mixture


def _maps(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(3))


def _subject(**options: object) -> ContractCase:
    return ContractCase(method=ConvLoRA, config=ConvLoRAConfig(**options))  # type: ignore[arg-type]


def test_each_map_passes_the_expert_of_its_largest_logit_and_no_other() -> None:
    mixture, maps = _mixture().eval(), _maps()
    chosen = (maps.mean((2, 3)) @ mixture.gate).argmax(1)
    assert len(set(chosen.tolist())) > 1
    for index, (image, expert) in enumerate(zip(maps, chosen.tolist(), strict=True)):
        large = interpolate(image[None], scale_factor=expert + 1, mode="bicubic") if expert else image[None]
        part = mixture.experts[expert]
        convolved = gelu(conv2d(large, part.weight, part.bias, padding=1))
        expected = interpolate(convolved, size=(5, 4), mode="bicubic") if expert else convolved
        torch.testing.assert_close(mixture(maps)[index], expected[0])


@pytest.mark.parametrize("gate", ["released", "switch"])
def test_task_gradient_reaches_the_gate_only_under_switch(gate: str) -> None:
    method: Any
    segmenter, method = _subject(gate=gate).trained()
    segmenter.train().zero_grad()
    segmenter(_subject().images).masks.square().mean().backward()
    gradients = [mixture.gate.grad for mixture in method.mixtures().values()]
    assert any(gradient is not None and gradient.any() for gradient in gradients) == (gate == "switch")


def test_experts_start_without_bias_as_released_and_with_the_same_weights() -> None:
    states = {}
    for bias in ("zero", "uniform"):
        _, method = _subject(expert_bias=bias).attached()
        states[bias] = {name: p for name, p in method.state().items() if ".mixture." in name}
    biases = [name for name in states["zero"] if name.endswith(".bias")]
    assert len(biases) == 4 * 8
    for name in biases:
        assert not states["zero"].pop(name).any()
        assert states["uniform"].pop(name).all()
    torch.testing.assert_close(states["zero"], states["uniform"], rtol=0, atol=0)


def test_the_gate_that_is_switchs_is_named_so_and_found_under_its_older_name() -> None:
    assert ConvLoRAConfig(gate="intended") == ConvLoRAConfig(gate="switch")
    assert ConvLoRAConfig(gate="intended").gate == "switch"
    assert (ConvLoRAConfig(gate="switch").label_note, ConvLoRAConfig().label_note) == ("Switch gate", "")
    row = configured(PlannedRow(method="convlora"), load_protocol("mini"))
    assert (row.config.gate, row.label) == ("switch", "convlora")


def test_the_noise_has_a_floor_where_the_gate_would_have_none() -> None:
    """The released `noise_epsilon` 1e-2: softplus(−50) is 0, and the gate still draws with that spread."""
    mixture, maps = _mixture(), _maps(200).abs()  # so that softplus(−50 · mean) is nothing
    with torch.no_grad():
        mixture.gate.mul_(0.02)
        mixture.noise.fill_(-50.0)
    sampled: list[torch.Tensor] = []
    noise = mixture._noise
    mixture._noise = lambda like: sampled.append(noise(like)) or sampled[-1]  # type: ignore[func-returns-value]
    mixture.train()(maps)
    clean = maps.mean((2, 3)) @ mixture.gate
    logits_ = clean + 0.01 * sampled[0]
    importance = torch.nn.functional.one_hot(logits_.argmax(1), 4).sum(0)
    expected = squared_variation(importance) + squared_variation(
        expert_load(clean, logits_, torch.full_like(clean, 0.01))
    )
    torch.testing.assert_close(mixture.balance, expected, rtol=1e-4, atol=1e-4)


def test_load_is_the_probability_of_winning_when_the_noise_is_sampled_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(5, 4, generator=generator)
    spread = torch.rand(5, 4, generator=generator) + 0.3
    logits_ = clean + torch.randn(5, 4, generator=generator) * spread
    samples = 20000
    noisy = torch.randn(samples, 5, 4, generator=generator) * spread + clean
    expected = torch.zeros(4)
    for expert in range(4):
        others = logits_.clone()
        others[:, expert] = -torch.inf
        expected[expert] = (noisy[:, :, expert] > others.max(1).values).float().mean(0).sum()
    # The sum of five shares, each of 20,000 samples, has an SD of at most 0.008.
    torch.testing.assert_close(expert_load(clean, logits_, spread), expected, atol=0.03, rtol=0)
    assert expert_load(clean[:, :1], logits_[:, :1], spread[:, :1]).tolist() == [5.0]


def test_squared_variation_is_variance_over_squared_mean() -> None:
    assert squared_variation(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(1.0 / 4.0)
    assert squared_variation(torch.tensor([2.0, 2.0])).item() == 0
    assert squared_variation(torch.tensor([7.0])).item() == 0


def test_auxiliary_loss_sums_over_blocks_and_counts_none_twice() -> None:
    values = []
    for recompute in (False, True):
        method: Any
        segmenter, method = _subject(balance=0.5).attached(recompute=recompute, seed=1)
        segmenter.train()
        loss = _subject().loss(segmenter, method)
        before = method.auxiliary_loss()
        loss.backward()
        after = method.auxiliary_loss()
        balances = [mixture.balance for mixture in method.mixtures().values()]
        assert len(balances) == 4
        assert before.item() == after.item() == pytest.approx(0.5 * sum(b.item() for b in balances))
        values.append(before.item())
    assert values[0] == values[1]
    segmenter.eval()
    segmenter(_subject().images)
    assert method.auxiliary_loss() is None, "evaluation has no balance to learn"


def test_noise_comes_from_the_methods_generator_and_resumes_with_its_state() -> None:
    segmenter, method = _subject().trained()
    state = method.generator.get_state()
    first = _subject().loss(segmenter, method).item()
    second = _subject().loss(segmenter, method).item()
    method.generator.set_state(state)
    assert first == _subject().loss(segmenter, method).item()
    assert first != second, "training routes with noise"
    images = _subject().images
    assert torch.equal(logits(segmenter, images), logits(segmenter, images)), "evaluation does not"


def test_scope_decides_whether_a_map_is_a_window_or_the_image() -> None:
    rows = {}
    method: Any
    for scope in ("window", "image"):
        segmenter, method = _subject(scope=scope).attached()
        seen: list[tuple[int, ...]] = []
        for mixture in method.mixtures().values():
            mixture.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape)))
        segmenter(_subject().images)
        rows[scope] = seen
    # Four images of 4 × 4 tokens; blocks 0 and 2 have windows of 3, so 2 × 2 padded windows an image.
    assert rows["window"] == [(16, 3, 3, 3), (4, 3, 4, 4)] * 2
    assert rows["image"] == [(4, 3, 4, 4)] * 4
