"""What is read off blocks: updates and spectra against closed forms, and every method against the frozen backbone."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.evidence.measuring import FLOOR, block_deviations, gram, half_diagonal, watched
from harness.models.build import build_segmenter
from harness.registry import METHODS, method_config_class
from harness.statistics.cka import cka

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@cache
def _frozen(backbone: str) -> Any:
    return build_segmenter(backbone, task="binary", image_size=64, head_seed=5).eval().encoder


@cache
def _before(backbone: str) -> Any:
    return _seen(_frozen(backbone))


def _encoders(name: str, backbone: str = "tiny", **config: object) -> tuple[Any, Any, Any]:
    """Frozen encoder, adapted encoder, and its method."""
    segmenter = build_segmenter(backbone, task="binary", image_size=64, head_seed=5).eval()
    method = METHODS.get(name)(method_config_class(name)(**config), seed=1)
    method.attach(segmenter)
    return _frozen(backbone), segmenter.eval().encoder, method


@torch.no_grad()
def _seen(encoder: Any, against: nn.Module | None = None):
    with watched(encoder, against=against) as seen:
        encoder.run_blocks(encoder.embed(IMAGES))
    return seen


EVERYWHERE = [(name, backbone) for name in METHODS.names() for backbone in ("tiny", "tiny_timm")]
ROTARY = [
    (name, backbone) for name in ("lora", "naslora", "vpt", "adaptformer") for backbone in ("tiny_dinov3", "tiny_sam3")
]


@pytest.mark.parametrize(("name", "backbone"), EVERYWHERE + ROTARY)
def test_every_method_is_read_and_one_that_starts_as_the_identity_moves_nothing(name: str, backbone: str):
    frozen, adapted, method = _encoders(name, backbone)
    before, after = _before(backbone), _seen(adapted, frozen)
    assert len(after) == len(frozen.blocks)
    for then, now in zip(before, after, strict=True):
        assert "block" in now.update
        assert now.update.keys() & {"q", "mlp_in"}, "what a method puts around one part hides no other"
        assert cka(now.inside.grams, then.inside.grams) <= 1 + 1e-6
        if method.identity_at_init:
            assert now.inside.distance_px == pytest.approx(then.inside.distance_px, rel=1e-4)
            assert max(now.update.values()) < 1e-4
            assert cka(now.inside.grams, then.inside.grams) == pytest.approx(1, abs=1e-4)


def test_hooks_are_gone_afterwards():
    frozen, adapted, _ = _encoders("lora")
    seen = _seen(adapted, frozen)
    adapted.run_blocks(adapted.embed(IMAGES))
    assert len(seen[0].grams) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapted.modules())


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_the_update_of_lora_is_its_product_over_the_frozen_output(backbone: str):
    frozen, adapted, method = _encoders("lora", backbone)
    with torch.no_grad():
        for adapter in method.adapters().values():
            adapter.up.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    inputs: list[torch.Tensor] = []
    layer = adapted.blocks[1].attn.qkv  # a global block: nothing is padded
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    update = _seen(adapted, frozen)[1].update
    handle.remove()
    (adapter,) = layer.adapters.values()
    x, adapter = inputs[0].detach(), adapter.requires_grad_(False)
    moved = (adapter.scale * (x @ adapter.down.T) @ adapter.up.T).chunk(3, -1)
    base = layer.base(x).chunk(3, -1)
    for name, delta, plain in zip("qkv", moved, base, strict=True):
        assert update[name] == pytest.approx(float(delta.norm() / plain.norm()), rel=1e-4)
    assert update["mlp_in"] == update["proj"] == 0


def test_padding_of_windows_does_not_enter_the_update():
    """An update that is a constant is counted on the 16 places of the map, not on the 36 of its padded windows."""
    frozen, adapted, _ = _encoders("bitfit")
    block = next(block for block in adapted.blocks if block.window_size)
    index = list(adapted.blocks).index(block)
    with torch.no_grad():
        block.attn.proj.bias += 1.0
        seen = _seen(adapted, frozen)[index]
    width = block.attn.proj.out_features
    assert seen.squares["proj"][0] == pytest.approx(len(IMAGES) * 16 * width, rel=1e-4)


def test_grams_are_of_centred_features_in_float64():
    maps = 1000 + torch.randn(5, 3, 4, 4)
    flat = maps.double().flatten(1)
    flat = flat - flat.mean(dim=0)
    assert torch.allclose(gram(maps), flat @ flat.T, atol=1e-2)
    assert gram(maps).dtype == torch.float64


def test_an_exact_merge_moves_no_block_and_a_wrong_one_does():
    _, adapted, method = _encoders("lora")
    _, merged, merging = _encoders("lora")
    with torch.no_grad():
        for attached in (method, merging):
            for adapter in attached.adapters().values():
                adapter.up.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    merging.merge("exact")
    assert max(block_deviations(adapted, merged, [IMAGES], device=CPU)) < 1e-5
    with torch.no_grad():
        merged.blocks[2].mlp.lin2.bias += 1
    deviations = block_deviations(adapted, merged, [IMAGES], device=CPU)
    assert max(deviations[:2]) < 1e-5
    assert min(deviations[2:]) > 1e-2
    assert not any(module._forward_hooks for module in merged.modules())


def test_a_shifted_delta_holds_all_frequencies_alike():
    maps = torch.zeros(1, 3, 14, 14)
    maps[0, :, 5, 9] = 2.0
    assert half_diagonal(maps).tolist() == pytest.approx([0.0] * 7, abs=1e-5)


def test_white_noise_is_flat_behind_frequency_zero():
    spectrum = half_diagonal(torch.randn(4, 3000, 14, 14, generator=torch.Generator().manual_seed(0)))
    assert spectrum[0] == 0
    assert spectrum[1:].tolist() == pytest.approx([math.log(2) / 2] * 6, abs=0.04)


@pytest.mark.parametrize("cycles", [1, 3, 6])
def test_a_cosine_stands_at_its_frequency(cycles: int):
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    wave = torch.cos(2 * math.pi * cycles * (rows + columns) / 14)
    spectrum = half_diagonal(wave.double().float()[None, None])
    assert int(spectrum.argmax()) == cycles
    # All else is 0 but for rounding, so the step is at most that from the floor.
    assert 10 < float(spectrum[cycles]) <= math.log(14 * 14 / 2) - math.log(FLOOR) + 1e-3


def test_it_is_the_mean_of_the_logarithms_and_not_the_logarithm_of_a_mean():
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((2, 3, 9, 9)).astype(np.float32)
    amplitude = np.fft.fftshift(np.log(np.abs(np.fft.fft2(maps)) + FLOOR), axes=(-2, -1)).mean(axis=(0, 1))
    diagonal = np.diag(amplitude)[4:]
    assert half_diagonal(torch.from_numpy(maps)).tolist() == pytest.approx(list(diagonal - diagonal[0]), abs=1e-4)


def test_a_map_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="4 × 6"):
        half_diagonal(torch.zeros(1, 1, 4, 6))
