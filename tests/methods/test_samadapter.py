"""SAM-Adapter: the high-frequency component and the prompt before each block."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from harness.contract.case import ContractCase
from harness.methods.configs.baselines import SAMAdapterConfig
from harness.methods.parts.placement import MethodError
from harness.methods.samadapter import SAMAdapter, high_frequencies, scrambled


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
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    impulse = torch.zeros(1, 1, 64, 64)
    impulse[..., 0, 0] = 1  # a flat spectrum: the energy left is the fraction kept
    for ratio, side in ((0.0, 0), (0.25, 32), (0.5625, 48)):
        # Frequencies −side/2 to side/2 − 1 go; the real part keeps half of one whose opposite is gone, a quarter of its energy.
        neither = max(side - 1, 0) ** 2
        either = 2 * (side**2 - neither)
        kept = 1 - (neither + either * 3 / 4) / 64**2
        assert high_frequencies(impulse, ratio=ratio).square().sum().item() == pytest.approx(kept, abs=1e-5)
    torch.testing.assert_close(high_frequencies(noise, ratio=0.0), noise.abs(), atol=1e-5, rtol=0)


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


def test_scrambling_changes_the_tuned_embedding_alone() -> None:
    outputs = {}
    for quirk in ("released", "intended"):
        subject = ContractCase(method=SAMAdapter, config=SAMAdapterConfig(scale=8, patch_embedding=quirk))
        segmenter, _ = subject.attached()
        embedding = segmenter.encoder.get_submodule("patch_embed")
        tokens = embedding(subject.images)
        outputs[quirk] = (tokens, embedding.condition, segmenter(subject.images).masks)
        details = embedding.frequencies(high_frequencies(subject.images, ratio=0.25)).permute(0, 2, 3, 1)
        tuned = embedding.tune(scrambled(tokens) if quirk == "released" else tokens)
        torch.testing.assert_close(embedding.condition, tuned + details)
    assert torch.equal(outputs["released"][0], outputs["intended"][0])
    assert torch.equal(outputs["released"][2], outputs["intended"][2]), "up starts at zero"
    assert not torch.allclose(outputs["released"][1], outputs["intended"][1])


def test_removing_the_whole_spectrum_is_refused() -> None:
    with pytest.raises(MethodError, match="ratio"):
        SAMAdapterConfig(ratio=1.0)
