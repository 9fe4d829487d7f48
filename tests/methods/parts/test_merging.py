"""What merging folds, what it leaves, and how far the merged model is from the unmerged one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.methods.lora import LowRankMethod
from harness.methods.parts.lowrank import LowRank
from harness.methods.parts.merging import LeastSquares, add_update
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.segmenter import Segmenter
from tests.methods.compared import attached

SIZE = 64


def _images(count: int, *, seed: int) -> Tensor:
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 9, stride=1, padding=4) * 9


def _trained(name: str, backbone: str = "tiny", **options: Any) -> tuple[Segmenter, LowRankMethod]:
    """A segmenter whose adapters are far from their start, with running statistics of real passes; evaluation mode."""
    segmenter, method = attached(name, backbone=backbone, **options)
    generator = torch.Generator().manual_seed(2)
    for adapter in method.adapters().values():
        nn.init.normal_(adapter.up, std=0.2, generator=generator)
    with torch.no_grad():
        for cell in getattr(method, "cells", dict)().values():
            if cell.alpha is not None:
                cell.alpha.normal_(generator=generator)
        segmenter.train()(_images(8, seed=3))
    return segmenter.eval(), method


def _merge(method: Method, mode: Any) -> Any:
    return method.merge(mode, calibration=[_images(4, seed=4), _images(4, seed=5)], held_out=[_images(2, seed=6)])


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora", {}),
        ("lora", {"sites": "q,v,proj,mlp", "blocks": "1-2"}),
        ("samed", {}),
        ("naslora", {"operations": "none,skip_connect"}),
        ("naspclora", {"operations": "none,skip_connect", "sites": "q,k,v,mlp"}),
    ],
)
def test_exact_merge_folds_whatever_is_linear_per_token(name: str, options: dict[str, Any], backbone: str) -> None:
    segmenter, method = _trained(name, backbone, **options)
    plain = build_segmenter(backbone, task="binary", image_size=SIZE)
    started = {key: tensor.clone() for key, tensor in plain.encoder.state_dict().items()}
    sites = set(method.adapters())
    report = _merge(method, "exact")
    assert set(report.folded) == sites
    assert (report.left, report.extra_parameters) == ({}, 0)
    assert report.relative_deviation < 1e-5
    assert segmenter.encoder.state_dict().keys() == started.keys()
    changed = [key for key, tensor in segmenter.encoder.state_dict().items() if not torch.equal(tensor, started[key])]
    assert changed  # the update is in the weights
    assert not any(key.endswith("bias") for key in changed)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("naslora", {}),
        ("naspclora", {}),
        ("naslora", {"style": "linear", "sites": "q,k,v"}),
        ("naspclora", {"scope": "image"}),
        ("convlora", {}),
    ],
)
def test_exact_merge_folds_the_skip_part_of_a_cell_and_keeps_the_rest(name: str, options: dict[str, Any]) -> None:
    _, method = _trained(name, **options)
    sites = set(method.adapters())
    before = {key: layer.adapted.base.weight.clone() for key, layer in enumerate(method._layers)}
    report = _merge(method, "exact")
    assert report.folded == []
    assert set(report.left) == set(report.partly) == sites
    assert report.extra_parameters > 0
    assert report.relative_deviation < 1e-5
    assert all(not torch.equal(before[key], layer.adapted.base.weight) for key, layer in enumerate(method._layers))


def test_a_cell_without_a_linear_share_is_not_reported_as_folded_in_part() -> None:
    _, method = _trained("naslora", operations="none,sep_conv_3x3")
    sites = set(method.adapters())
    report = _merge(method, "exact")
    assert set(report.left) == sites
    assert report.partly == []


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("naslora", {}),
        ("naslora", {"scope": "image", "sites": "qkv,proj,mlp"}),
        ("naspclora", {}),
        ("naslora", {"operations": "no-conv"}),
    ],
)
def test_conv_merge_of_a_linear_cell_is_one_convolution(name: str, options: dict[str, Any], backbone: str) -> None:
    """On a grid of 4 tokens a side, windows of 3 and kernels of 9, no token is away from a border."""
    _, method = _trained(name, backbone, style="linear", **options)
    adapters = method.adapters()
    side = 3 if options.get("operations") else 9
    projections = sum(adapter.down.numel() + adapter.up.numel() for adapter in adapters.values())
    cores: list[Any] = [adapter.core for adapter in adapters.values()]
    kernels = sum(side * side * core.cell.channels**2 for core in cores)
    report = _merge(method, "conv")
    assert set(report.left) == set(adapters)
    assert report.max_deviation < 1e-4
    assert report.relative_deviation < 1e-5
    assert report.extra_parameters == projections + kernels


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("naslora", {}),
        ("naslora", {"style": "linear"}),
        ("naspclora", {"sites": "q,k,v,mlp"}),
        ("convlora", {"experts": 3}),
    ],
)
def test_calibrated_merge_leaves_a_plain_sam_with_an_error_that_is_measured(name: str, options: dict[str, Any]) -> None:
    segmenter, method = _trained(name, **options)
    held_out = _images(2, seed=6)
    with torch.no_grad():
        unmerged = segmenter(held_out).masks
        dropped = build_segmenter("tiny", task="binary", image_size=SIZE).eval()(held_out).masks

    report = _merge(method, "calibrated")

    plain_sam("tiny", image_size=SIZE).load_state_dict(sam_state_dict(segmenter), strict=True)
    with torch.no_grad():
        merged = segmenter(held_out).masks
    assert report.extra_parameters == 0
    assert report.max_deviation == pytest.approx(float((merged - unmerged).abs().max()))
    assert report.relative_deviation == pytest.approx(float((merged - unmerged).norm() / unmerged.norm()), rel=1e-4)
    # The fit must be nearer than no adapter at all, or it has learnt nothing of the cell.
    assert 0 < (merged - unmerged).norm() < 0.5 * (dropped - unmerged).norm()


@pytest.mark.parametrize("affine", [True, False])  # a layer without a bias has no place for an offset
def test_least_squares_equals_a_solver_on_noisy_samples(affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(2, 200, 3, generator=generator).double()
    fit = LeastSquares(3, device=torch.device("cpu"), affine=affine)
    fit.add(inputs[:120].view(2, 6, 10, 3), targets[:120].view(2, 6, 10, 3))
    fit.add(inputs[120:], targets[120:])
    known = torch.cat([inputs, torch.full((200, 1), float(affine)).double()], dim=1)[:, : 3 + affine]
    expected = torch.linalg.lstsq(known, targets).solution
    matrix, constant = fit.solve()
    torch.testing.assert_close(matrix, expected[:3].T)
    torch.testing.assert_close(constant, expected[3] if affine else torch.zeros(3).double())


def test_merging_twice_is_refused() -> None:
    _, method = _trained("naslora")
    method.merge("exact")
    with pytest.raises(MethodError, match="merged already"):
        method.merge("calibrated", calibration=[_images(1, seed=0)])
    with pytest.raises(MethodError, match="merged already"):
        method.affine_updates([_images(1, seed=0)])


def test_a_core_is_not_fitted_without_images() -> None:
    _, method = _trained("naslora")
    for fit in (method.affine_updates, lambda images: method.merge("calibrated", calibration=images)):
        with pytest.raises(MethodError, match="pass calibration="):
            fit([])


@pytest.mark.parametrize(("name", "options"), [("lora", {"sites": "proj,decoder"}), ("naslora", {"sites": "q,v"})])
def test_affine_updates_are_what_a_calibrated_merge_folds(name: str, options: dict[str, Any]) -> None:
    calibration = [_images(4, seed=4), _images(4, seed=5)]
    segmenter, method = _trained(name, **options)
    plain = build_segmenter("tiny", task="binary", image_size=SIZE)
    before = plain.state_dict() | plain.encoder.state_dict()
    updates = method.affine_updates(calibration)
    method.merge("calibrated" if "calibrated" in method.merge_modes else "exact", calibration=calibration, held_out=[])
    after = segmenter.state_dict() | segmenter.encoder.state_dict()
    assert updates
    for update in updates:
        weight, bias = (
            after[f"{update.layer}.{part}"] - before[f"{update.layer}.{part}"] for part in ("weight", "bias")
        )
        torch.testing.assert_close(update.up @ update.down, weight, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(update.offset, bias, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("scope", "operations", "sites", "left"),
    [
        ("image", "none,skip_connect", "q,v", 4),
        ("image", "all", "q,v", 4),
        ("image", "none,skip_connect", "proj", 0),  # what padding becomes there is cropped
        ("window", "none,skip_connect", "q,v", 0),
    ],
)
def test_a_window_padded_before_its_norm_is_folded_only_where_the_cell_sees_its_padding(
    scope: str, operations: str, sites: str, left: int
) -> None:
    """TinyViT's padding comes to qkv as the norm's bias: a folded weight acts on it, and ``scope=image`` does not."""
    options = {"scope": scope, "operations": operations, "blocks": "2-3", "sites": sites}
    segmenter, method = _trained("naslora", "tiny_mobile_sam", **options)
    for name, parameter in segmenter.named_parameters():
        if name.endswith("attn.norm.bias"):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(7))
    report = _merge(method, "exact")
    assert len(report.left) == left
    assert report.relative_deviation < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_an_update_with_an_offset_is_whole_in_a_layer_without_a_bias_too(bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    base = nn.Linear(5, 4, bias=bias)
    adapter = LowRank(down=drawn(2, 5), up=drawn(4, 2), scale=0.5)
    matrix, offset, tokens = drawn(2, 2), drawn(2), drawn(6, 5)
    with torch.no_grad():
        expected = base(tokens) + 0.5 * (tokens @ adapter.down.T @ matrix.T + offset) @ adapter.up.T
        add_update(base, adapter, matrix, offset)
        assert bias or not base.bias.requires_grad
        torch.testing.assert_close(base(tokens), expected)
