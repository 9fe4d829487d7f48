"""Methods that change the weights of linear layers against HF peft's: outputs, gradients, counts, merges.

On a plain ViT, whose tokens are a sequence: some of peft's layers take SAM's maps of tokens for images, or refuse them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import GraloraConfig, HiraConfig, OFTConfig, ShiraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from harness.methods.base import Method
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config

IMAGES = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PATHS = {"qkv": "attn.qkv", "attn.proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
SITES = {"qkv": ["qkv"], "qkv,proj,mlp": [*PATHS]}
Pairs = list[tuple[Tensor, Tensor]]
"""What is learnt here and there, one tensor each; GraLoRA's are transposed there."""


def _rotations(ours: Any, theirs: Any) -> Pairs:
    return [(ours.skew, theirs.oft_R["default"].weight)]


def _entries(ours: Any, theirs: Any) -> Pairs:
    """Theirs are moved to where ours lie: each library draws them from a generator of its own."""
    columns = ours.places.long() % theirs.in_features
    theirs.shira_indices["default"] = torch.stack([ours.places.long() // theirs.in_features, columns]).int()
    return [(ours.values, theirs.shira_weight["default"])]


def _squares(ours: Any, theirs: Any) -> Pairs:
    return [(ours.down, theirs.gralora_A["default"]), (ours.up, theirs.gralora_B["default"])]


def _factors(ours: Any, theirs: Any) -> Pairs:
    return [(ours.down, theirs.hira_A["default"]), (ours.up, theirs.hira_B["default"])]


def _scales(ours: Any, theirs: Any) -> Pairs:
    """Of two matrices that all layers share, of one shape here and there: as large as the largest layer."""
    theirs.vera_A["default"].copy_(ours.shared.down)
    theirs.vera_B["default"].copy_(ours.shared.up)
    return [(ours.down, theirs.vera_lambda_d["default"]), (ours.up, theirs.vera_lambda_b["default"])]


TWINS: list[tuple[str, dict[str, Any], Callable[..., Any], Callable[[Any, Any], Pairs]]] = [
    ("oft", {}, partial(OFTConfig, use_cayley_neumann=False), _rotations),
    ("oft", {"cayley": "neumann", "block_size": 16}, partial(OFTConfig, oft_block_size=16), _rotations),
    ("shira", {"rank": 3}, partial(ShiraConfig, r=3), _entries),
    ("gralora", {}, partial(GraloraConfig, r=4, alpha=32, gralora_k=2), _squares),
    ("gralora", {"rank": 8, "k": 4, "alpha": 8.0}, partial(GraloraConfig, r=8, alpha=8, gralora_k=4), _squares),
    ("hira", {}, partial(HiraConfig, r=3), _factors),
    ("vera", {"rank": 16}, partial(VeraConfig, r=16, d_initial=0.1), _scales),
]


def _turned(ours: Tensor, other: Tensor) -> Tensor:
    return ours if ours.shape == other.shape else ours.mT


def _attached(name: str, options: dict[str, Any]) -> tuple[Any, Method]:
    segmenter = build_segmenter("tiny_timm", task="binary", image_size=64)
    method: Method = METHODS.get(name)(method_config(name, options), seed=1)
    method.attach(segmenter)
    return segmenter, method


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(("name", "options", "config", "learnt"), TWINS, ids=[f"{n}-{o}" for n, o, _, _ in TWINS])
def test_outputs_gradients_counts_and_merges_equal_those_of_peft(name, options, config, learnt, sites):
    segmenter, method = _attached(name, {"sites": sites, **options})
    plain = build_segmenter("tiny_timm", task="binary", image_size=64).encoder
    theirs: Any = get_peft_model(plain, config(target_modules=SITES[sites]))
    pairs: Pairs = []
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(segmenter.encoder.blocks):
        for target in SITES[sites]:
            (adapter,) = block.get_submodule(PATHS[target]).adapters.values()
            pairs += learnt(adapter, theirs.base_model.model.get_submodule(f"blocks.{index}.{PATHS[target]}"))
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (segmenter.encoder, theirs)]
    assert trained[0] == trained[1] == method.config.encoder_parameters(backbone_shape("tiny_timm", 64))
    with torch.no_grad():
        for ours, other in pairs:
            ours.add_(0.1 * torch.randn(ours.shape, generator=generator))
            other.copy_(_turned(ours, other))
    outputs = [segmenter.double().encoder(IMAGES), theirs.double()(IMAGES)]
    weights = torch.randn(outputs[0].shape, dtype=torch.float64, generator=generator)
    for output in outputs:
        (output * weights).sum().backward()

    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for ours, other in pairs:
        assert ours.grad is not None
        torch.testing.assert_close(_turned(ours.grad, other), other.grad, rtol=1e-8, atol=1e-9)

    merged = theirs.merge_and_unload()
    assert method.merge("exact").extra_parameters == 0
    for index, block in enumerate(merged.blocks):
        for path in PATHS.values():
            own = segmenter.get_parameter(f"encoder.blocks.{index}.{path}.weight")
            torch.testing.assert_close(own, block.get_submodule(path).weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cayley", ["exact", "neumann"])
def test_a_rotation_keeps_lengths_and_its_series_nearly_so(cayley: str) -> None:
    segmenter, _ = _attached("oft", {"cayley": cayley})
    rotation: Any = segmenter.double().encoder.blocks[0].attn.qkv.adapters["qkv"]
    with torch.no_grad():
        rotation.skew.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    blocks = rotation.blocks()
    off = (blocks @ blocks.mT - torch.eye(32, dtype=torch.float64)).abs().max().item()
    skew = rotation.skew.abs().max().item() * 32  # bounds the norm of Q; the series leaves its fifth power out
    assert off < 1e-12 if cayley == "exact" else 1e-12 < off < 4 * skew**4


def test_how_they_start_is_how_pefts_do() -> None:
    """Bounds of the uniform draws, on a layer of 64 inputs; zeros elsewhere are the identity, which the contract holds."""
    for name, factor, config in (
        ("gralora", "gralora_A", GraloraConfig(target_modules=["qkv"])),
        ("hira", "hira_A", HiraConfig(target_modules=["qkv"])),
    ):
        theirs: Any = get_peft_model(build_segmenter("tiny_timm", task="binary", image_size=64).encoder, config)
        other = theirs.base_model.model.blocks[0].attn.qkv
        ours: Any = _attached(name, {"rank": 32})[0].encoder.blocks[0].attn.qkv.adapters["qkv"]
        drawn = getattr(other, factor)["default"]
        assert ours.down.numel() == drawn.numel()
        assert ours.down.abs().max().item() == pytest.approx(drawn.abs().max().item(), rel=0.02)
        assert ours.down.std().item() == pytest.approx(drawn.std().item(), rel=0.06)
    assert (
        _attached("shira", {})[1].state()["encoder.blocks.0.attn.qkv.adapters.qkv.places"].unique().numel() == 3 * 256
    )


def test_slices_of_the_fused_qkv_turn_apart_and_the_rest_stays() -> None:
    segmenter, _ = _attached("oft", {"sites": "q,v"})
    layer: Any = segmenter.encoder.blocks[0].attn.qkv
    nn.init.normal_(layer.adapters["v"].skew, std=0.1, generator=torch.Generator().manual_seed(0))
    changed = (layer.weight() != layer.base.weight).any(dim=1).view(3, -1)
    assert changed.all(dim=1).tolist() == [False, False, True]
    assert changed.any(dim=1).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("oft", {"block_size": 48}, "block_size=48"),
        ("oft", {"block_size": 1}, "block_size=1"),
        ("gralora", {"k": 3, "rank": 3}, "k=3"),
        ("shira", {"rank": 49}, "rank=49"),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line_before_and_at_attaching(name, options, word):
    config = method_config(name, options)
    for act in (lambda: config.encoder_parameters(backbone_shape("tiny_timm")), lambda: _attached(name, options)):
        with pytest.raises(MethodError, match=word) as caught:
            act()
        assert "\n" not in str(caught.value)
