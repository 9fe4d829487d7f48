"""The mixed cell: its operations against torch's own modules, and the batched way against one operation at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference import stages
from harness.methods.naslora import CellOnTokens
from harness.methods.parts.cell import Cell
from harness.methods.parts.operations import (
    CONVOLUTIONS,
    OPERATIONS,
    POOLS,
    cell_parameters,
    parse_operations,
)
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import TokenGrid, TokenLayout

SPECS = ["all", "no-conv", "no-pool", "skip_connect,none", "sep_conv_3x3", "dil_conv_5x5", "avg_pool_3x3,sep_conv_5x5"]


def _cell(spec: str, *, style: str = "darts", channels: int = 3, alpha_std: float = 0.5, **more: Any) -> Any:
    operations = parse_operations(spec, style=style)
    generator = torch.Generator().manual_seed(0)
    cell = Cell(operations, channels=channels, style=style, alpha_std=alpha_std, generator=generator, **more)
    return cell.double()  # the cell keeps float64, so that equality can be checked to the last digits


def _maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _one_by_one(cell: Any, maps: Tensor) -> Tensor:
    """The mixture of one operation after the other; of the linear style with zeros around the map once, at the cell's input."""
    mixed = cell.skip_weight() * maps
    for share, name in zip(cell.mixture(), cell.operations, strict=True):
        if name not in ("none", "skip_connect"):
            mixed = mixed + share * (_linear if cell.style == "linear" else _darts)(name, cell, maps)
    return mixed


def _darts(name: str, cell: Any, maps: Tensor) -> Tensor:
    if name in POOLS:
        pools = {"max_pool_3x3": nn.MaxPool2d(3, 1, 1), "avg_pool_3x3": nn.AvgPool2d(3, 1, 1, count_include_pad=False)}
        return _normed(pools[name](maps), name, 0, cell)
    form = CONVOLUTIONS[name]
    for stage, (taps, mixer) in enumerate(stages(name, cell)):
        settings: dict[str, Any] = {"padding": form.span // 2, "dilation": form.dilation, "groups": cell.channels}
        maps = F.conv2d(F.conv2d(maps.relu(), taps, **settings), mixer)
        maps = _normed(maps, name, stage, cell)
    return maps


def _normed(maps: Tensor, name: str, stage: int, cell: Any) -> Tensor:
    """By the row of statistics that the operation's stage has."""
    if cell.norm == "none":
        return maps
    first = [each for each in cell.operations if each in POOLS]
    first += [
        each
        for kind in (1, 2)
        for each in CONVOLUTIONS
        if each in cell.operations and CONVOLUTIONS[each].stages == kind
    ]
    order = [(each, 0) for each in first] + [
        (each, 1) for each in first if each in CONVOLUTIONS and CONVOLUTIONS[each].stages == 2
    ]
    row = order.index((name, stage))
    return F.batch_norm(maps, cell.running_mean[row], cell.running_var[row], training=cell.training)


def _linear(name: str, cell: Any, maps: Tensor) -> Tensor:
    if name in POOLS:
        return F.avg_pool2d(maps, 3, stride=1, padding=1)
    form = CONVOLUTIONS[name]
    maps = F.pad(maps, [form.reach // 2] * 4)
    for taps, mixer in stages(name, cell):
        maps = F.conv2d(F.conv2d(maps, taps, dilation=form.dilation, groups=cell.channels), mixer)
    return maps


@pytest.mark.parametrize("strongest", ["dil_conv_3x3", "skip_connect", "max_pool_3x3", "sep_conv_5x5"])
def test_a_decoded_cell_is_its_strongest_operation_alone_and_never_none(strongest: str) -> None:
    cell, maps = _cell("all"), _maps(4, 3, 9, 11)
    cell(maps)  # so that there are running statistics
    with torch.no_grad():
        cell.alpha[OPERATIONS.index("none")] = 9.0
        cell.alpha[OPERATIONS.index(strongest)] = 8.0
    assert cell.decode()
    expected = maps if strongest == "skip_connect" else _darts(strongest, cell.eval(), maps)
    torch.testing.assert_close(cell.eval()(maps), expected, rtol=1e-9, atol=1e-9)
    assert cell.mixture().tolist() == [float(name == strongest) for name in OPERATIONS]
    assert not _cell("sep_conv_3x3").decode()


@pytest.mark.parametrize(
    ("spec", "style", "channels", "more"),
    [(spec, style, channels, {}) for spec in SPECS for style in ("darts", "linear") for channels in (1, 3)]
    + [(spec, "darts", 3, {"norm": "none"}) for spec in SPECS]
    + [("all", style, 2, {"residual": True}) for style in ("darts", "linear")],
)
def test_batched_cell_equals_one_operation_at_a_time(spec: str, style: str, channels: int, more: dict[str, Any]):
    plain = _cell(spec, style=style, channels=channels, **more)
    fused = copy.deepcopy(plain)
    for step in range(2):
        maps = _maps(3, channels, 7, 10) + step
        first, second = maps.clone().requires_grad_(), maps.clone().requires_grad_()
        weight = torch.randn_like(maps)
        (_one_by_one(plain, first) * weight).sum().backward()
        (fused(second) * weight).sum().backward()
        torch.testing.assert_close(fused(maps), _one_by_one(plain, maps), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(second.grad, first.grad, rtol=1e-7, atol=1e-8)
        for (name, p), (_, q) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-8, msg=(name + ": {}").format)
    for statistics, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(statistics, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fused.eval()(maps), _one_by_one(plain.eval(), maps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "size"),
    [("all", (14, 14)), ("all", (1, 1)), ("no-conv", (5, 12)), ("sep_conv_5x5", (3, 3)), ("dil_conv_3x3,none", (3, 3))],
)
def test_a_linear_cell_is_one_kernel_at_the_borders_too(spec: str, size: tuple[int, int]) -> None:
    cell, maps = _cell(spec, style="linear"), _maps(2, 3, *size)
    torch.testing.assert_close(cell(maps), _one_by_one(cell, maps), rtol=1e-9, atol=1e-12)


def test_linear_cell_is_linear_and_a_darts_cell_is_not() -> None:
    x, y = _maps(1, 3, 6, 6), _maps(2, 3, 6, 6)[1:]
    linear, darts = _cell("all", style="linear").eval(), _cell("all").eval()
    torch.testing.assert_close(linear(x + 2 * y), linear(x) + 2 * linear(y))
    assert (darts(x + 2 * y) - darts(x) - 2 * darts(y)).abs().max() > 1e-2
    with pytest.raises(MethodError, match="style=linear"):
        darts.kernel()


def test_a_residual_adds_the_map_and_a_merge_takes_it_with_the_skip() -> None:
    cell, maps = _cell("all"), _maps(3, 3, 6, 6)
    parallel = copy.deepcopy(cell)
    parallel.residual = True
    torch.testing.assert_close(parallel(maps), cell(maps) + maps)
    torch.testing.assert_close(parallel.skip_weight(), cell.skip_weight() + 1)
    parallel.skip_folded = cell.skip_folded = True
    torch.testing.assert_close(parallel(maps), cell(maps))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", SPECS)
def test_parameters_are_counted_without_building(spec: str, channels: int) -> None:
    operations = parse_operations(spec, style="darts")
    counted = cell_parameters(operations, channels=channels)
    assert counted == sum(p.numel() for p in _cell(spec, channels=channels).parameters())


def test_running_statistics_count_a_recomputed_pass_once() -> None:
    once, twice = _cell("all"), _cell("all")
    maps = _maps(2, 3, 6, 6).requires_grad_()
    once(maps).sum().backward()
    torch.utils.checkpoint.checkpoint(twice, maps, use_reentrant=False).sum().backward()
    assert not torch.equal(once.running_mean, torch.zeros_like(once.running_mean))
    torch.testing.assert_close(twice.running_mean, once.running_mean)
    torch.testing.assert_close(twice.running_var, once.running_var)


def test_cell_computes_in_float32_under_autocast() -> None:
    cell = _cell("all").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = cell(_maps(2, 3, 6, 6).bfloat16())
    assert mixed.dtype == torch.float32
    assert mixed.isfinite().all()


def _layout(kind: str, *, window: int = 0, prefix: int = 0, grid: tuple[int, int] = (4, 5)) -> TokenLayout:
    return TokenLayout(grid=TokenGrid(*grid), window=window, prefix_tokens=prefix, kind=kind)


def test_channels_beyond_the_cell_bypass_it() -> None:
    core = CellOnTokens(_cell("sep_conv_3x3", channels=2), width=3, layout=_layout("map"), scope="window")
    tokens = _maps(2, 4, 5, 3)
    passed = core(tokens)
    torch.testing.assert_close(passed[..., 2], tokens[..., 2])
    torch.testing.assert_close(passed[..., :2], core.cell(tokens[..., :2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def test_prefix_tokens_see_the_skip_connection_only() -> None:
    cell = _cell("all").eval()
    core = CellOnTokens(cell, width=3, layout=_layout("sequence", prefix=2), scope="window")
    tokens = _maps(2, 2 + 20, 3)
    passed = core(tokens)
    torch.testing.assert_close(passed[:, :2], cell.mixture()[3] * tokens[:, :2])
    image = tokens[:, 2:].transpose(1, 2).reshape(2, 3, 4, 5)
    torch.testing.assert_close(passed[:, 2:], cell(image).flatten(2).transpose(1, 2))


def test_image_scope_sees_across_windows_and_window_scope_does_not() -> None:
    grid = (6, 6)  # four windows of 3 × 3
    tokens = torch.zeros(4, 3, 3, 3, dtype=torch.float64)
    tokens[0, 2, 2] = 1.0  # the lower right corner of the first window, next to the three others
    outcomes = {}
    for scope in ("window", "image"):
        layout = _layout("map", window=3, grid=grid)
        outcomes[scope] = CellOnTokens(_cell("avg_pool_3x3", style="linear"), width=3, layout=layout, scope=scope)(
            tokens
        )
    assert not outcomes["window"][1:].any()
    assert all(outcomes["image"][window].any() for window in range(4))


@pytest.mark.parametrize(
    ("spec", "style", "message"),
    [
        ("sepconv", "darts", "'sepconv' is unknown"),
        ("none", "darts", "lets nothing pass"),
        ("max_pool_3x3", "linear", "not linear"),
        ("all", "relu", "style='relu'"),
    ],
)
def test_impossible_operation_sets_are_refused_with_a_reason(spec: str, style: str, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        parse_operations(spec, style=style)


def test_operations_come_in_one_order_whatever_the_order_given() -> None:
    assert parse_operations("dil_conv_3x3, none", style="darts") == ("none", "dil_conv_3x3")
    assert parse_operations("no-pool", style="darts") == ("none", "skip_connect", *CONVOLUTIONS)
    assert parse_operations("all", style="linear") == tuple(name for name in OPERATIONS if name != "max_pool_3x3")


def test_batch_norm_over_one_value_is_one_line_that_says_what_to_do() -> None:
    cell, maps = _cell("all"), torch.randn(1, 3, 1, 1)
    with pytest.raises(MethodError, match=r"one image whose map is 1x1.*image_size.*norm=none"):
        cell.train()(maps)
    assert cell.eval()(maps).isfinite().all()
    assert cell.train()(torch.randn(2, 3, 1, 1)).isfinite().all()
