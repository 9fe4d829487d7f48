"""Which way SAM's blocks attend: what a card names, else the fastest, remembered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.models import attention_choice
from harness.models.attention import RelativeAttention
from harness.models.attention_choice import apply_choice, choose, fastest, in_words
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape

SIZES: dict[str, Any] = {"batch": 2, "image_size": 64, "dtype": torch.float32, "device": torch.device("cpu")}


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


def test_the_fastest_that_has_room_is_taken() -> None:
    now = [0.0]

    def pass_of(seconds: float) -> Any:
        def run() -> None:
            now[0] += seconds
            if seconds < 0:
                raise torch.OutOfMemoryError

        return run

    passes = {"widened": pass_of(3.0), "bias": pass_of(2.0), "math": pass_of(-1.0)}
    assert fastest(passes, clock=lambda: now[0]) == "bias"
    assert fastest({"math": pass_of(-1.0)}, clock=lambda: now[0]) == "math"


def test_a_gpu_is_timed_once_a_shape_and_each_kind_of_block_has_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    timed: list[Any] = []
    monkeypatch.setattr(attention_choice, "_pass", lambda kind, size, dtype, device: (kind, size))
    monkeypatch.setattr(
        attention_choice,
        "fastest",
        lambda passes: timed.append(passes["bias"][1]) or ("bias", "widened")[len(timed) % 2],
    )
    sizes = {**SIZES, "device": torch.device("cuda")}
    first = choose(backbone_shape("tiny"), "auto", **sizes)
    assert set(first.values()) == {"bias", "widened"}
    assert {size[2] for size in timed} == {3, 4}  # a window, and the map of 64 px
    assert choose(backbone_shape("tiny"), "auto", **sizes) == first
    assert len(timed) == 2
    choose(backbone_shape("tiny"), "auto", **{**sizes, "batch": 3})
    assert len(timed) == 4


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
