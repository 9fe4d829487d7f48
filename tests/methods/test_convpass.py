"""Convpass against the equations of 2207.07039 as JieShibo/PETL-ViT 0f1c47f (MIT) computes them, written anew on flat tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.contract.case import ContractCase
from harness.methods.convpass import BypassedBlock, Convpass, ConvpassConfig
from tests.methods.compared import require_alike

HIDDEN, SCALE = 4, 0.7


class Published(nn.Module):
    """What is added beside a half: (B, prefix + side², dim) tokens to the same; class tokens are convolved alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, HIDDEN), nn.Linear(HIDDEN, dim)
        self.conv = nn.Conv2d(HIDDEN, HIDDEN, 3, stride=1, padding=1)

    def forward(self, x: Tensor, prefix: int) -> Tensor:
        def quick_gelu(values: Tensor) -> Tensor:
            return values / (1 + (-1.702 * values).exp())

        z = quick_gelu(self.down(x))
        side = round((z.shape[1] - prefix) ** 0.5)
        parts = []
        for tokens, across in ((z[:, :prefix], 1), (z[:, prefix:], side)):
            maps = tokens.reshape(-1, across, across, HIDDEN).permute(0, 3, 1, 2)
            parts.append(self.conv(maps).permute(0, 2, 3, 1).reshape(tokens.shape))
        return self.up(quick_gelu(torch.cat(parts, dim=1)))


def _halves(block: Any, tokens: Tensor) -> tuple[Tensor, Any]:
    """What the norm of a plain block's attention reads, and the function from the attended tokens to the second such pair."""
    if hasattr(block, "downsample"):  # TinyViT
        own = tokens if block.downsample is None else block.downsample(tokens.movedim(-1, 1)).movedim(1, -1)
        return own, lambda attended: block.local_conv(attended.movedim(-1, 1)).movedim(1, -1)
    return tokens, lambda attended: attended


@pytest.mark.parametrize(
    ("backbone", "index"), [("tiny", 0), ("tiny", 1), ("tiny_timm", 0), ("tiny_mobile_sam", 0), ("tiny_mobile_sam", 1)]
)
@pytest.mark.parametrize("sites", ["proj,mlp", "proj"])
def test_a_block_and_its_gradients_equal_the_published_ones(backbone: str, index: int, sites: str) -> None:
    case = ContractCase(
        method=Convpass, config=ConvpassConfig(hidden=HIDDEN, scale=SCALE, sites=sites), backbone=backbone
    )
    segmenter, method = case.attached()
    block: Any = segmenter.encoder.blocks[index]
    plain: Any = case.plain().encoder.blocks[index]
    assert isinstance(block, BypassedBlock)
    dim = case.shape.blocks[index].dim
    maps = torch.randn(1, HIDDEN, 5, 5)
    bypass: Any
    for bypass in block.bypasses.values():
        torch.testing.assert_close(bypass.convolution(maps), maps)  # which starts as the identity
    torch.manual_seed(1)
    published = {half: Published(dim) for half in sites.split(",")}
    pairs: list[tuple[Any, Any]] = []
    for half, theirs in published.items():
        ours: Any = block.bypasses[half]
        layers: Any = ((ours.down, theirs.down), (ours.convolution, theirs.conv), (ours.up, theirs.up))
        pairs += [(getattr(a, part), getattr(b, part)) for a, b in layers for part in ("weight", "bias")]
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(0.3 * torch.randn_like(own))
            other.copy_(own)
    seen: list[Tensor] = []
    plain.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder = case.plain().encoder
    encoder.blocks[index].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        encoder(case.images)
    segmenter.encoder.embed(case.images)
    (tokens,) = seen
    names = {
        "proj": "attn.norm" if backbone == "tiny_mobile_sam" else "norm1",
        "mlp": "mlp.norm" if backbone == "tiny_mobile_sam" else "norm2",
    }
    prefix = 1 if backbone == "tiny_timm" else 0

    def beside(half: str, x: Tensor) -> Tensor:
        if half not in published:
            return torch.zeros_like(x)
        flat = plain.get_submodule(names[half])(x).reshape(len(x), -1, dim)
        return SCALE * published[half](flat, prefix).view_as(x)

    own_map, then = _halves(plain, tokens)
    mlp = plain.mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    if backbone == "tiny_mobile_sam":
        local, plain.local_conv = plain.local_conv, nn.Identity()
    attended = plain(tokens) + beside("proj", own_map)
    mlp.remove()
    if backbone == "tiny_mobile_sam":
        plain.local_conv = local
    second = then(attended)
    normed = second if backbone == "tiny_mobile_sam" else plain.norm2(second)
    expected = second + plain.mlp(normed) + beside("mlp", second)

    require_alike(block(tokens), expected, pairs, tolerance=1e-5, of_gradients=1e-4)
    assert method.merge_modes == ()
