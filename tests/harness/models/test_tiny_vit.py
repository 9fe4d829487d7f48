"""MobileSAM's encoder against the numbers that MobileSAM's own modules gave (`tests.harness.models.mobile_sam_oracle`)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.methods.naslora import NASLoRA, NASLoRAConfig
from harness.models.build import build_segmenter, require_checkpoint
from harness.models.catalog import decoder_parameters, encoder_parameters
from harness.models.original_sam import sam_state_dict
from harness.models.segmenter import Segmenter
from harness.system.errors import UsageError
from tests.harness.models import mobile_sam_oracle as oracle
from tests.methods.compared import attached

EXPECTED: Any = json.loads(oracle.EXPECTED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all names of ``mobile_sam.pt``: classifier and counted batches too."""
    path = tmp_path_factory.mktemp("official") / "mobile_sam.pt"
    torch.save(oracle.weights(sam_state_dict(build_segmenter("mobile_sam", task="binary"))), path)
    return path


def _built(checkpoint: Path, size: int, dtype: torch.dtype = torch.float32) -> Segmenter:
    """In the types of the checkpoint's own numbers, which the harness rounds to float32."""
    segmenter = build_segmenter("mobile_sam", task="binary", checkpoint=checkpoint, image_size=size).to(dtype)
    encoder = segmenter.encoder
    state = {f"image_encoder.{encoder.published(name)}": name for name in encoder.state_dict()}
    saved = torch.load(checkpoint, weights_only=True)
    encoder.load_state_dict({own: saved[name].to(dtype) for name, own in state.items()}, strict=True)
    return segmenter


def _names(segmenter: Segmenter) -> dict[str, str]:
    return {name: segmenter.encoder.published(name) for name, _ in segmenter.encoder.named_parameters()}


def test_counts_are_those_of_mobile_sam() -> None:
    segmenter: Any = build_segmenter("mobile_sam", task="binary")
    assert sum(p.numel() for p in segmenter.encoder.parameters()) == encoder_parameters("mobile_sam") == 5_743_892
    assert sum(p.numel() for p in segmenter.encoder.neck.parameters()) == 672_768
    assert sum(p.numel() for p in segmenter.mask_decoder.parameters()) == 4_058_340
    assert sum(p.numel() for p in segmenter.prompt_encoder.parameters()) == 6_220
    assert decoder_parameters("mobile_sam", task="binary") == 3_505_536


@pytest.mark.slow
def test_outputs_and_gradients_are_those_that_mobile_sam_gave(official: Path) -> None:
    segmenter = _built(official, 512, torch.float64).train()
    inputs = oracle.images(512).requires_grad_()
    embedding, by_images, gradients = oracle.observed(segmenter.encoder, segmenter.encode(inputs), inputs)
    for name, values in (("embedding", embedding), ("images", by_images)):
        expected = torch.tensor(EXPECTED["512"][name], dtype=torch.float64)
        output = torch.tensor(oracle.some(values), dtype=torch.float64)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9 * float(expected[:-1].abs().max()), msg=name)
    names = _names(segmenter)
    assert {names[name] for name in gradients} == EXPECTED["gradients"].keys()
    for name, gradient in gradients.items():
        assert float(gradient.norm()) == pytest.approx(EXPECTED["gradients"][names[name]], rel=1e-9), name


def test_outputs_at_1024_pixels_are_those_that_mobile_sam_gave_without_fused_attention_too(official: Path) -> None:
    segmenter = _built(official, 1024)
    for block in segmenter.encoder.blocks:
        assert block.attn.fused
        block.attn.fused = False
    with torch.no_grad():
        output = torch.tensor(oracle.some(segmenter.encode(oracle.images(1024).float())))
    expected = torch.tensor(EXPECTED["1024"]["embedding"])
    torch.testing.assert_close(output, expected, atol=1e-5 * float(expected[:-1].abs().max()), rtol=1e-5)


def _require_near(actual: Tensor, expected: Tensor, what: str, *, tolerance: float = 1e-9) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(
        actual, expected, atol=tolerance * scale, rtol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def test_the_official_file_loads_strictly_and_an_export_gives_all_of_it_back(official: Path) -> None:
    require_checkpoint("mobile_sam", official)
    saved = torch.load(official, weights_only=True)
    exported = sam_state_dict(build_segmenter("mobile_sam", task="binary", checkpoint=official))
    assert exported.keys() == saved.keys()
    unused = {name for name in saved if "head" in name or name.endswith("num_batches_tracked")} - {
        name for name in saved if name.startswith("mask_decoder.")
    }
    for name, tensor in exported.items():
        assert name in unused or torch.equal(tensor, saved[name].to(tensor.dtype)), name


def test_a_file_without_classifier_and_counted_batches_loads_too(official: Path, tmp_path: Path) -> None:
    saved = torch.load(official, weights_only=True)
    slim = {name: tensor.half() for name, tensor in saved.items() if "num_batches" not in name and ".head." not in name}
    torch.save(slim, tmp_path / "slim.pt")
    require_checkpoint("mobile_sam", tmp_path / "slim.pt")
    del slim["image_encoder.layers.2.blocks.3.attn.qkv.weight"]
    torch.save(slim, tmp_path / "short.pt")
    with pytest.raises(UsageError, match=r"missing image_encoder\.layers\.2\.blocks\.3\.attn\.qkv\.weight"):
        require_checkpoint("mobile_sam", tmp_path / "short.pt")


def test_statistics_of_batch_norms_never_move_and_training_equals_evaluation() -> None:
    segmenter, _ = attached("full", backbone="tiny_mobile_sam")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    buffers = {name: buffer.clone() for name, buffer in segmenter.encoder.named_buffers()}
    in_training = segmenter.train()(images).masks
    in_training.square().mean().backward()
    assert torch.equal(in_training, segmenter.eval()(images).masks)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in segmenter.encoder.named_buffers())


@pytest.mark.parametrize("sides", [(3, 5), (14, 14), (16, 15), (7, 23)])
def test_what_is_computed_without_padding_is_what_whole_windows_give(sides: tuple[int, int]) -> None:
    segmenter, _ = attached("lora", backbone="tiny_mobile_sam")
    generator = torch.Generator().manual_seed(0)
    for block in segmenter.encoder.requires_grad_(True).double().blocks:
        block.downsample = None
        for name, parameter in block.attn.named_parameters():
            if name.endswith(
                (".up", "norm.bias", "attention_biases")
            ):  # which start at zero, as does all that is padding
                parameter.data.normal_(std=0.5, generator=generator)
        x = torch.randn(2, *sides, block.mlp.fc1.in_features, generator=generator, dtype=torch.float64).requires_grad_()
        both = []
        for block.attn.fused in (True, False):
            output = block.attention_half(x)
            weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
            gradients = torch.autograd.grad((output * weights).sum(), [x, *block.attn.parameters()])
            both.append([output.detach(), *gradients])
        for index, (ours, whole) in enumerate(zip(*both, strict=True)):
            _require_near(ours, whole, str(index), tolerance=1e-12)


def test_windows_stay_whole_for_who_reads_them_as_maps_or_watches() -> None:
    segmenter: Any = build_segmenter("tiny_mobile_sam", task="binary", image_size=64)
    attentions = [block.attn for block in segmenter.encoder.blocks]
    assert all(attn.skips_padding() for attn in attentions)
    seen: list[Tensor] = []
    handle = attentions[0].qkv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    segmenter.encode(torch.zeros(1, 3, 64, 64))
    assert seen[0].shape[1:3] == (attentions[0].window_size,) * 2
    handle.remove()
    assert attentions[0].skips_padding()
    NASLoRA(NASLoRAConfig()).attach(segmenter)
    assert not any(attn.skips_padding() for attn in attentions)


@pytest.mark.parametrize(
    ("name", "config"), [("lora", {}), ("dora", {}), ("hira", {}), ("peft/oft", {"oft_block_size": 16}), ("fact", {})]
)
def test_a_method_of_single_tokens_skips_the_padding_and_changes_nothing_by_that(name: str, config: dict) -> None:
    segmenter, method = attached(name, backbone="tiny_mobile_sam", **config)
    generator = torch.Generator().manual_seed(0)
    for parameter in itertools.chain(*(group.named.values() for group in method.parameter_groups())):
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    segmenter.double()
    attentions = [block.attn for block in segmenter.encoder.blocks]
    images = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float64)
    assert all(attn.skips_padding() for attn in attentions)
    skipped = segmenter.encode(images)
    for attn in attentions:
        attn.fused = False
    _require_near(skipped, segmenter.encode(images), name, tolerance=1e-9)
