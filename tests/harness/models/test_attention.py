"""Attention against segment_anything's own, forward and gradients, and which way SAM's blocks attend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.models import attention as module
from harness.models import attention_choice
from harness.models.attention import RelativeAttention, plain_attention, widened_attention
from harness.models.attention_choice import apply_choice, best, choose, in_words, remembered
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape


@pytest.mark.parametrize("chunk", [1, 50, 700, 1 << 20])
@pytest.mark.parametrize("prefixes", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_kernel_equals_the_plain_one(chunk: int, prefixes: int, dtype, monkeypatch) -> None:
    """Chunks cut through images, heads and queries; gradients reach queries, keys, values and both position terms."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(4)
    shapes = [(3, 4, 30, 8), (3, 4, 30 + prefixes, 8), (3, 4, 30 + prefixes, 8), (3, 4, 30, 5), (3, 4, 30, 6)]
    widest = torch.promote_types(dtype, torch.float32)
    exact = [torch.randn(shape, generator=generator, dtype=widest) for shape in shapes]
    weight = torch.randn(3, 4, 30, 8, generator=generator, dtype=widest)

    def outputs(kernel, inputs: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = kernel(*leaves, scale=0.3)
        return [out, *torch.autograd.grad((out.to(widest) * weight).sum(), leaves)]

    expected = outputs(plain_attention, exact)
    for kernel in (module.chunked_attention, widened_attention, module.biased_attention):
        for got, want in zip(outputs(kernel, [tensor.to(dtype) for tensor in exact]), expected, strict=True):
            assert got.dtype == dtype
            if dtype == torch.bfloat16:
                assert (got.float() - want).norm() / want.norm() < 0.03
            else:
                atol, rtol = (1e-12, 1e-10) if dtype == torch.float64 else (1e-5, 1e-4)
                torch.testing.assert_close(got, want, atol=atol, rtol=rtol)


SIZES: dict[str, Any] = {"batch": 2, "image_size": 64, "precision": "fp32", "device": torch.device("cpu")}


@pytest.mark.parametrize(
    ("backbone", "named", "expected"),
    [
        ("tiny", "auto", {}),
        ("tiny", "bias", {"global": "bias", "window": "bias"}),
        ("tiny_mobile_sam", "bias", {}),
    ],
)
def test_on_a_cpu_auto_leaves_blocks_as_they_are_and_a_name_is_taken(backbone: str, named: str, expected: dict) -> None:
    assert choose(backbone_shape(backbone), named, **SIZES) == expected


@pytest.mark.parametrize(
    ("measured", "taken"),
    [
        ({"widened": (1.0, 10), "bias": (0.9, 20), "math": (0.8, 50)}, "math"),
        ({"widened": (1.0, 10), "bias": (0.9, 20), "math": (0.8, 51)}, "bias"),  # 4 blocks would keep 164 more
        ({"widened": (1.0, 10), "bias": (0.96, 20), "math": None}, "widened"),  # no gain
        ({"widened": (1.0, 10), "bias": (0.9, 5), "math": None}, "bias"),
        ({"widened": None, "bias": (0.9, 20), "math": (0.8, 51)}, "bias"),
        ({"widened": None, "bias": None, "math": None}, "widened"),
    ],
)
def test_another_kind_is_taken_where_it_is_faster_and_has_room(measured: dict, taken: str) -> None:
    assert best(measured, blocks=4, room=160) == taken


def test_a_gpu_is_measured_once_a_shape_and_a_plan_knows_what_was_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    timed: list[Any] = []

    def measured(kind: str, size: Any, half: Any, device: Any) -> tuple[float, float]:
        timed.append((size, half))
        fast = "bias" if size[2] == 3 else "math"
        return (0.5 if kind == fast else 1.0), 1.0

    monkeypatch.setattr(attention_choice, "_measured", measured)
    shape = backbone_shape("tiny")
    sizes: dict[str, Any] = {"batch": 2, "image_size": 64, "precision": "bf16"}
    assert remembered(shape, gpu="GPU", **sizes) == {}
    first = choose(shape, "auto", device=torch.device("cuda"), **sizes)
    assert first == {"window": "bias", "global": "math"} == remembered(shape, gpu="GPU", **sizes)
    assert {(size[2], half) for size, half in timed} == {
        (3, torch.bfloat16),
        (4, torch.bfloat16),
    }  # a window, and the map
    assert choose(shape, "auto", device=torch.device("cuda"), **sizes) == first
    assert len(timed) == 2 * len(module.KERNELS)
    choose(shape, "auto", device=torch.device("cuda"), **{**sizes, "batch": 3})
    assert len(timed) == 4 * len(module.KERNELS)
    assert remembered(shape, gpu="another", **sizes) == {}


@pytest.mark.parametrize("kind", ["widened", "bias", "math"])
def test_a_segmenter_computes_the_same_whichever_way(kind: str) -> None:
    segmenter = build_segmenter("tiny", task="binary", image_size=64).double()
    segmenter.get_submodule("prompt_encoder.pe_layer").float()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = segmenter.encode(images)
    apply_choice(segmenter, {"global": kind, "window": kind})
    assert {module.kind for module in segmenter.modules() if isinstance(module, RelativeAttention)} == {kind}
    torch.testing.assert_close(segmenter.encode(images), plain, atol=1e-10, rtol=1e-9)
    assert in_words({"window": "bias", "global": kind}) == f"global={kind} window=bias"
