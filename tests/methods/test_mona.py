"""Mona against the published structure, executed here a second time with PyTorch's own layers: outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contract.case import ContractCase
from harness.methods.configs.baselines import MonaConfig
from harness.methods.mona import Mona, MonaBlock

HIDDEN = 8


class Published(nn.Module):
    """The adapter as the paper draws it (its figure 3), on a map with the channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(dim)
        self.s1, self.s2 = nn.Parameter(torch.full((dim,), 1e-6)), nn.Parameter(torch.ones(dim))
        self.d, self.u = nn.Linear(dim, HIDDEN), nn.Linear(HIDDEN, dim)
        self.dw = nn.ModuleList(nn.Conv2d(HIDDEN, HIDDEN, k, padding="same", groups=HIDDEN) for k in (3, 5, 7))
        self.pw = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        z = self.d(self.s1 * self.ln(x) + self.s2 * x)
        averaged = torch.stack([dw(z.movedim(-1, 1)).movedim(1, -1) for dw in self.dw]).mean(dim=0)
        z = z + averaged
        z = z + self.pw(z)
        return x + self.u(torch.nn.functional.gelu(z))


def _pairs(ours: Any, theirs: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    layers = [(ours.norm, theirs.ln), (ours.down, theirs.d), (ours.up, theirs.u)]
    layers += zip(ours.filter.convolutions, theirs.dw, strict=True)
    pairs = [(getattr(a, part), getattr(b, part)) for a, b in layers for part in ("weight", "bias")]
    pairs += [(ours.norm_share, theirs.s1), (ours.own_share, theirs.s2)]
    return [*pairs, (ours.filter.projector.bias, theirs.pw.bias)]


@pytest.mark.parametrize(("backbone", "index"), [("tiny", 0), ("tiny", 1), ("tiny_timm", 0)])
def test_block_equals_the_published_structure(backbone: str, index: int) -> None:
    case = ContractCase(method=Mona, config=MonaConfig(hidden=HIDDEN), backbone=backbone)
    segmenter, _ = case.attached()
    block = segmenter.encoder.blocks[index]
    plain = case.plain().encoder.blocks[index]
    assert isinstance(block, MonaBlock)
    torch.manual_seed(1)
    published: list[Any] = [Published(64) for _ in range(2)]
    adapters: list[Any] = [block.after_attention, block.after_mlp]
    for ours, theirs in zip(adapters, published, strict=True):
        with torch.no_grad():
            for own, other in _pairs(ours, theirs):
                own.copy_(0.3 * torch.randn_like(own))
                other.copy_(own)
            ours.filter.projector.weight.normal_(std=0.3)
            theirs.pw.weight.copy_(ours.filter.projector.weight[:, :, 0, 0])
    segmenter.encoder.embed(case.images)  # a grid of 4 × 4: windows of 3 are padded
    tokens = torch.randn(2, 4, 4, 64) if backbone == "tiny" else torch.randn(2, 17, 64)

    def on_maps(adapter: nn.Module, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return adapter(x)
        class_token, patches = x[:, :1], x[:, 1:].reshape(2, 4, 4, 64)
        return torch.cat([adapter(class_token[:, None]).flatten(1, 2), adapter(patches).flatten(1, 2)], dim=1)

    # What the plain block adds to its input, half by half: its MLP is silenced for the first.
    silenced = case.plain().encoder.blocks[index]
    silenced.mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    attended = on_maps(published[0], silenced(tokens))
    expected = on_maps(published[1], attended + plain.mlp(plain.norm2(attended)))
    output = block(tokens)
    torch.testing.assert_close(output, expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in zip(adapters, published, strict=True):
        gradients: list[Any] = [(a.grad, b.grad) for a, b in _pairs(ours, theirs)]
        gradients.append((ours.filter.projector.weight.grad[:, :, 0, 0], theirs.pw.weight.grad))
        for moved, also in gradients:
            assert moved.abs().max() > 0
            torch.testing.assert_close(moved, also, atol=1e-4 * float(also.abs().max()), rtol=1e-4)


def test_starts_as_released() -> None:
    segmenter, _ = ContractCase(method=Mona, config=MonaConfig()).attached()
    for block in segmenter.encoder.blocks:
        for adapter in (block.after_attention, block.after_mlp):
            assert adapter.norm_share.unique().tolist() == [pytest.approx(1e-6)]
            assert adapter.own_share.unique().tolist() == [1.0]
            assert adapter.norm.weight.unique().tolist() == [1.0]
            bounds = ((adapter.down, 64**-0.5), (adapter.up, 64**-0.5), (adapter.filter.convolutions[2], 1 / 7))
            for layer, bound in bounds:
                assert 0.9 * bound < layer.weight.abs().max() <= bound
                assert 0.5 * bound < layer.bias.abs().max() <= bound
