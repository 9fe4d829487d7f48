"""The baselines that add to the backbone against their formulas, written out: BitFit, SSF, adapter, AdaptFormer, VPT's prompts, Rein's
tokens (w1oves/Rein 29755d4), LST, SAM-Adapter, and Mona with PyTorch's own layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from harness.contract.case import IMAGE_SIZE, ContractCase, grouped_parameters
from harness.methods.adapter import Adapter, AdapterConfig
from harness.methods.adaptformer import AdaptFormer, AdaptFormerConfig
from harness.methods.bitfit import BitFit, BitFitConfig, LayerNormConfig, LayerNormTuning
from harness.methods.lst import LST, LSTConfig, Rung
from harness.methods.mona import Mona, MonaBlock, MonaConfig
from harness.methods.parts.placement import MethodError
from harness.methods.rein import RefinedBlock, Rein, ReinConfig
from harness.methods.samadapter import SAMAdapter, SAMAdapterConfig, high_frequencies, scrambled
from harness.methods.ssf import SSF, ScaleShift, SSFConfig
from harness.methods.vpt import VPT, VPTConfig
from tests.methods.compared import require_alike


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
        (BitFit, BitFitConfig(blocks="1"), "tiny", {"blocks.1.attn.qkv.bias"}),
        (LayerNormTuning, LayerNormConfig(), "tiny", {"neck.3.weight"}),
        (LayerNormTuning, LayerNormConfig(), "tiny_timm", {"norm.bias"}),
        (LayerNormTuning, LayerNormConfig(blocks="1"), "tiny", {"blocks.1.norm2.weight"}),
    ],
)
def test_tensors_of_one_kind_train_and_nothing_else_in_the_encoder(method, config, backbone: str, some: set[str]):
    segmenter, attached = ContractCase(method=method, config=config, backbone=backbone).attached()
    left = () if config.blocks == "all" else tuple(f"encoder.blocks.{index}." for index in (0, 2, 3))
    expected = {
        name
        for name, _ in segmenter.named_parameters()
        if name.startswith("encoder.")
        and not name.startswith(left)
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


def _prompted(backbone: str) -> torch.nn.Module:
    """An encoder with VPT."""
    segmenter, _ = ContractCase(method=VPT, config=VPTConfig(tokens=5), backbone=backbone).attached()
    return segmenter.encoder


def test_prompts_in_a_sequence_equal_a_block_run_over_the_longer_sequence() -> None:
    encoder = _prompted("tiny_timm")
    plain = ContractCase(method=VPT, config=VPTConfig(), backbone="tiny_timm").plain().encoder
    tokens = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(0))
    prompted = encoder.get_submodule("blocks.2")
    prompts = prompted.get_parameter("attn.prompts")
    longer = torch.cat([prompts.expand(2, -1, -1), tokens], dim=1)
    expected = plain.get_submodule("blocks.2")(longer)[:, 5:]
    torch.testing.assert_close(prompted(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_each_window_attends_to_its_copy_of_the_prompts_with_no_position(fused: bool) -> None:
    encoder = _prompted("tiny")
    block: Any = encoder.get_submodule("blocks.0")  # windows of 3 on a grid of 4: padded
    block.attn.attn.fused = fused
    plain = ContractCase(method=VPT, config=VPTConfig()).plain().encoder.get_submodule("blocks.0")
    tokens = torch.randn(2, 4, 4, 64, generator=torch.Generator().manual_seed(0))
    windows, _ = window_partition(plain.norm1(tokens), 3)
    prompts = plain.norm1(block.get_submodule("attn").prompts)
    attn, heads, width = plain.attn, 2, 32
    expected = []
    for window in windows:  # one by one and head by head, by the formula
        sequence = torch.cat([window.reshape(9, 64), prompts])
        q, k, v = attn.qkv(sequence).reshape(14, 3, heads, width).permute(1, 2, 0, 3)
        scores = q[:, :9] @ k.transpose(1, 2) / math.sqrt(width)
        rows, columns = get_rel_pos(3, 3, attn.rel_pos_h), get_rel_pos(3, 3, attn.rel_pos_w)
        for query in range(9):
            for key in range(9):
                scores[:, query, key] += q[:, query] @ rows[query // 3, key // 3]
                scores[:, query, key] += q[:, query] @ columns[query % 3, key % 3]
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(3, 3, 64)
        expected.append(attn.proj(out))
    torch.testing.assert_close(block.get_submodule("attn")(windows), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_a_rein_block_equals_the_released_formula_and_its_gradients(backbone: str) -> None:
    case = ContractCase(method=Rein, config=ReinConfig(tokens=5, rank=2, scale=0.5), backbone=backbone)
    segmenter, _ = case.attached()
    block: Any = segmenter.encoder.blocks[1]
    assert isinstance(block, RefinedBlock)
    shared = segmenter.encoder.rein.double()
    block.double()
    tokens = torch.randn(2, 17, 64) if backbone == "tiny_timm" else torch.randn(2, 4, 4, 64)
    segmenter.encoder.embed(case.images)
    output = block(tokens.double())

    plain = block.block(tokens.double())
    first = 1 if backbone == "tiny_timm" else 0  # the class token passes by
    features = plain[:, first:].flatten(1, -2) if first else plain.flatten(1, 2)
    learnt = (block.left @ block.right).detach().requires_grad_()
    to_feature = learnt[1:] @ shared.of_tokens.weight.T + shared.of_tokens.bias
    expected = torch.empty_like(features)
    for image in range(2):
        for position in range(features.shape[1]):
            feature = features[image, position]
            logits = torch.stack([feature @ token for token in learnt]) / math.sqrt(64)
            share = logits.exp() / logits.exp().sum()
            change = sum(share[i + 1] * to_feature[i] for i in range(4)) + feature
            expected[image, position] = feature + 0.5 * (shared.of_features.weight @ change + shared.of_features.bias)
    refined = output[:, first:].reshape(expected.shape)
    torch.testing.assert_close(refined, expected, rtol=1e-9, atol=1e-9)
    if first:
        torch.testing.assert_close(output[:, :1], plain[:, :1])
    weights = torch.randn_like(expected)
    (refined * weights).sum().backward()
    (gradient,) = torch.autograd.grad((expected * weights).sum(), learnt)
    torch.testing.assert_close(block.left.grad, gradient @ block.right.T, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(block.right.grad, block.left.T @ gradient, rtol=1e-8, atol=1e-9)


def _lst(backbone: str = "tiny") -> ContractCase:
    return ContractCase(method=LST, config=LSTConfig(), backbone=backbone)


def test_rung_mixes_the_blocks_output_and_the_side_by_its_gate() -> None:
    segmenter, _ = _lst().attached()
    rung = segmenter.encoder.get_submodule("ladder.rungs.1")
    assert isinstance(rung, Rung)
    segmenter.encoder.grid.height = segmenter.encoder.grid.width = IMAGE_SIZE // 16
    assert {module.eps for module in rung.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}  # as SAM's
    generator = torch.Generator().manual_seed(0)
    side, frozen = torch.randn(1, 4, 4, 8, generator=generator), torch.randn(1, 4, 4, 64, generator=generator)
    torch.testing.assert_close(rung(side, frozen), rung.block((rung.down(frozen) + side) / 2))
    with torch.no_grad():
        rung.gate.fill_(0.2)  # σ(2) of the block
    share = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(rung(side, frozen), rung.block(share * rung.down(frozen) + (1 - share) * side))


def test_side_attention_stays_inside_its_blocks_windows() -> None:
    segmenter, _ = _lst().attached()
    grid = segmenter.encoder.grid
    grid.height = grid.width = 6
    windowed, whole = (segmenter.encoder.get_submodule(f"ladder.rungs.{index}.block") for index in (0, 1))
    tokens = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 0, 0] += torch.randn(8, generator=torch.Generator().manual_seed(1))
    moved = [(block(other) - block(tokens)).abs().amax(-1)[0] > 1e-7 for block in (windowed, whole)]
    assert moved[0][:3, :3].all()
    assert not moved[0][3:].any()
    assert not moved[0][:, 3:].any()
    assert moved[1].all()


def _wave(cycles: int, side: int = 64) -> torch.Tensor:
    at = torch.arange(side) / side
    return torch.cos(2 * torch.pi * cycles * at).expand(1, 1, side, side)


def test_high_frequencies_drop_what_is_slow_and_keep_what_is_fast() -> None:
    # A quarter of the area is half of each side: cycles below 16 of a 64-pixel image go, those above stay.
    assert high_frequencies(torch.full((1, 3, 64, 64), 5.0), ratio=0.25).abs().max() < 1e-4
    assert high_frequencies(_wave(10), ratio=0.25).abs().max() < 1e-4
    torch.testing.assert_close(high_frequencies(_wave(20), ratio=0.25), _wave(20).abs(), atol=1e-4, rtol=0)
    mixed = _wave(3) + _wave(20)
    torch.testing.assert_close(high_frequencies(mixed, ratio=0.25), _wave(20).abs(), atol=1e-4, rtol=0)


def test_removed_square_holds_the_configured_fraction_of_the_spectrum() -> None:
    impulse = torch.zeros(1, 1, 64, 64)
    impulse[..., 0, 0] = 1  # a flat spectrum: the energy left is the fraction kept
    for ratio, side in ((0.0, 0), (0.25, 32), (0.5625, 48)):
        # Frequencies −side/2 to side/2 − 1 go; the real part keeps half of one whose opposite is gone, a quarter of its energy.
        neither = max(side - 1, 0) ** 2
        either = 2 * (side**2 - neither)
        kept = 1 - (neither + either * 3 / 4) / 64**2
        assert high_frequencies(impulse, ratio=ratio).square().sum().item() == pytest.approx(kept, abs=1e-5)


def test_each_block_gets_its_prompt_from_patches_and_high_frequencies_by_one_shared_up_projection() -> None:
    subject = ContractCase(method=SAMAdapter, config=SAMAdapterConfig(scale=8, blocks="0,2"))
    segmenter, _ = subject.attached()
    encoder = segmenter.encoder
    with torch.no_grad():
        encoder.get_submodule("prompt_up").weight.normal_(generator=torch.Generator().manual_seed(0))
    plain = subject.plain().encoder
    tune, conv = encoder.get_submodule("patch_embed.tune"), encoder.get_submodule("patch_embed.frequencies")
    up = encoder.get_submodule("prompt_up")
    details = conv(high_frequencies(subject.images, ratio=0.25)).permute(0, 2, 3, 1)
    condition = tune(plain.get_submodule("patch_embed")(subject.images)) + details
    tokens = plain.embed(subject.images)
    for index, block in enumerate(plain.blocks):
        if index in (0, 2):
            tokens = tokens + up(gelu(encoder.get_submodule(f"blocks.{index}.down")(condition)))
        tokens = block(tokens)
    torch.testing.assert_close(encoder(subject.images), plain.finish(tokens), atol=1e-4, rtol=1e-4)
    assert sum(name.endswith("prompt_up.weight") for name, _ in segmenter.named_parameters()) == 1


def test_the_released_code_scrambles_the_patch_embedding() -> None:
    """As tianrun-chen/SAM-Adapter-PyTorch has it in `PromptGenerator.init_embeddings`."""
    tokens = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # N, H, W, C
    n, c, h, w = tokens.permute(0, 3, 1, 2).shape
    expected = tokens.reshape(n, c, h * w).permute(0, 2, 1)
    assert torch.equal(scrambled(tokens).flatten(1, 2), expected)
    assert torch.equal(scrambled(tokens).flatten().sort().values, tokens.flatten()), "nothing is lost"
    assert not torch.equal(scrambled(tokens), tokens)


def test_removing_the_whole_spectrum_is_refused() -> None:
    with pytest.raises(MethodError, match="ratio"):
        SAMAdapterConfig(ratio=1.0)


HIDDEN = 8


class PublishedMona(nn.Module):
    """Mona as the paper draws it (its figure 3), on a map with the channels last."""

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
    layers += [*zip(ours.filter.convolutions, theirs.dw, strict=True), (ours.filter.projector, theirs.pw)]
    pairs = [(getattr(a, part), getattr(b, part)) for a, b in layers for part in ("weight", "bias")]
    return [*pairs, (ours.norm_share, theirs.s1), (ours.own_share, theirs.s2)]


@pytest.mark.parametrize(("backbone", "index"), [("tiny", 0), ("tiny", 1), ("tiny_timm", 0)])
def test_a_mona_block_equals_the_published_structure(backbone: str, index: int) -> None:
    case = ContractCase(method=Mona, config=MonaConfig(hidden=HIDDEN), backbone=backbone)
    segmenter, _ = case.attached()
    block = segmenter.encoder.blocks[index]
    plain = case.plain().encoder.blocks[index]
    assert isinstance(block, MonaBlock)
    torch.manual_seed(1)
    published: list[Any] = [PublishedMona(64) for _ in range(2)]
    adapters: list[Any] = [block.after_attention, block.after_mlp]
    pairs = [pair for both in zip(adapters, published, strict=True) for pair in _pairs(*both)]
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(0.3 * torch.randn_like(own))
            other.copy_(own.reshape(other.shape))
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
    require_alike(block(tokens), expected, pairs, tolerance=1e-5, of_gradients=1e-4)
