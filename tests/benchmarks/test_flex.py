"""flex_attention with the relative positions as a score modification is SAM's attention."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from torch import Tensor

from benchmarks import flex as benchmark
from benchmarks.flex import flex, inputs, with_positions
from benchmarks.reference import PlainLoRA, plain_twin
from harness.methods.base import Method
from harness.methods.configs import LoRAConfig, NASLoRAConfig
from harness.methods.lora import LoRA
from harness.methods.naslora import NASLoRA
from harness.models.attention import plain_attention, widened_attention
from harness.models.build import build_segmenter

TINY = argparse.Namespace(backbone="tiny", image_size=80, batch=2, precision="fp32")


def written_out(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """What flex_attention is defined as: the modification applied to every score. It knows no backward on a CPU."""
    scores = scale * q @ k.transpose(-2, -1)
    places = torch.meshgrid(*map(torch.arange, scores.shape), indexing="ij")
    return with_positions(rows, columns)(scores, *places).softmax(dim=-1) @ v


@pytest.mark.parametrize("window", [0, 3])
def test_outputs_are_those_of_the_whole_matrix_of_scores(window: int) -> None:
    leaves = [leaf.detach() for leaf in inputs(TINY, torch.device("cpu"), window=window)]
    assert leaves[0].shape[2] == (window or 5) ** 2
    expected = plain_attention(*leaves, scale=0.3)
    torch.testing.assert_close(flex(*leaves, scale=0.3), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attend", [written_out, widened_attention])
def test_gradients_are_those_of_the_whole_matrix_of_scores(attend: benchmark.Attend) -> None:
    leaves = inputs(TINY, torch.device("cpu"), window=0)
    output, expected = (way(*leaves, scale=0.3) for way in (attend, plain_attention))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad((out * weights).sum(), leaves) for out in (output, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_map_that_is_not_square_has_its_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v, rows, columns = (torch.randn(1, 2, 6, width, generator=generator) for width in (4, 4, 4, 2, 3))
    expected = plain_attention(q, k, v, rows, columns, scale=0.5)
    torch.testing.assert_close(flex(q, k, v, rows, columns, scale=0.5), expected, atol=1e-5, rtol=1e-4)


def test_a_way_that_fails_leaves_its_reason_and_the_others_are_timed(tmp_path, monkeypatch, capsys) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this shape")

    monkeypatch.setattr(benchmark, "flex_attention", refuses)
    file = tmp_path / "flex.json"
    words = "--backbone tiny --image-size 64 --precision fp32 --rounds 2 --device cpu --cpu-time --json"
    assert benchmark.main([*words.split(), str(file)]) == 0
    for where in ("global", "windowed"):
        saved = json.loads(file.read_text(encoding="utf-8"))[where]
        assert saved["failed"] == {"flex": "ERROR: RuntimeError: no kernel for this shape"}
        assert {name: len(times) for name, times in saved["seconds"].items()} == {"plain": 2, "widened": 2}
        assert saved["ratios"].keys() == {"plain / widened"}
        assert saved["relative_deviation"]["widened"] < 1e-4
    assert "no kernel for this shape" in capsys.readouterr().out


@pytest.mark.parametrize(("cls", "config"), [(LoRA, LoRAConfig), (NASLoRA, NASLoRAConfig)])
def test_outputs_and_gradients_equal_ours(cls: type[Method], config: type) -> None:
    segmenter = build_segmenter("tiny", task="binary", head_seed=3)
    method = cls(config(), seed=3)
    plain = plain_twin("tiny", segmenter, method)
    generator = torch.Generator().manual_seed(5)
    twins = [module for module in plain.modules() if isinstance(module, PlainLoRA)]
    for adapter, twin in zip(method.adapters().values(), twins, strict=True):  # type: ignore[attr-defined]
        noise = 0.02 * torch.randn(adapter.up.shape, generator=generator)
        adapter.up.data.copy_(noise)
        twin.up.weight.data.copy_(noise)
    images = torch.randn(2, 3, 128, 128, generator=generator)
    ours, theirs = segmenter(images).masks, plain(images).masks
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for masks in (ours, theirs):
        masks.square().mean().backward()
    for adapter, twin in zip(method.adapters().values(), twins, strict=True):  # type: ignore[attr-defined]
        for weight, other in ((adapter.down, twin.down.weight), (adapter.up, twin.up.weight)):
            assert weight.grad is not None and other.grad is not None  # noqa: PT018
            assert (weight.grad - other.grad).norm() <= 1e-3 * other.grad.norm()
    gradient = segmenter.get_parameter("mask_decoder.output_upscaling.0.weight").grad
    other = plain.sam.mask_decoder.output_upscaling[0].weight.grad
    torch.testing.assert_close(gradient, other, atol=1e-7, rtol=1e-3)
