"""The placement grammar, and how tokens at a site become maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import nn

from harness.methods.parts.placement import MethodError, parse_blocks, parse_sites
from harness.methods.parts.sites import TokenGrid, TokenLayout, block_sites, halves
from harness.models.build import build_segmenter


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", tuple(range(11))),
        ("first-half", (0, 1, 2, 3, 4)),
        ("last-half", (5, 6, 7, 8, 9, 10)),
        ("global", (2, 5, 8)),
        ("windowed", (0, 1, 3, 4, 6, 7, 9, 10)),
        ("0,3,7-10", (0, 3, 7, 8, 9, 10)),
        ("10, 0", (0, 10)),
        ("global,0", (0, 2, 5, 8)),
    ],
)
def test_blocks_are_named_or_numbered(spec: str, expected: tuple[int, ...]) -> None:
    assert parse_blocks(spec, depth=11, global_blocks=(2, 5, 8)) == expected


@pytest.mark.parametrize(
    ("specs", "right"),
    [
        (("", "half", "-3", "3-", "1.5", "0,,2", "one", "²"), "one of all"),
        (("12", "3-12", "5-3"), "0-11"),
        (("global",), "selects no block"),
    ],
)
def test_wrong_blocks_are_refused_with_what_is_right(specs: tuple[str, ...], right: str) -> None:
    for spec in specs:
        with pytest.raises(MethodError, match=f"blocks=.*{right}"):
            parse_blocks(spec, depth=12, global_blocks=())


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_refused(spec: str) -> None:
    try:
        blocks = parse_blocks(spec, depth=4, global_blocks=(1,))
    except MethodError:
        return
    assert blocks == tuple(sorted(set(blocks)))
    assert set(blocks) <= {0, 1, 2, 3}


def test_sites_come_in_one_order_and_exclude_what_holds_them() -> None:
    assert parse_sites("mlp, v,q") == ("q", "v", "mlp")
    with pytest.raises(MethodError, match="already holds"):
        parse_sites("qkv,q")
    with pytest.raises(MethodError, match="'k_proj' is unknown"):
        parse_sites("q,k_proj")


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (1, 10), (3, 3)])
def test_windows_become_the_image_that_sam_cut_them_from(grid: tuple[int, int]) -> None:
    image = torch.randn(2, *grid, 4, generator=torch.Generator().manual_seed(0))
    windows, padded = window_partition(image, 3)
    layout = TokenLayout(grid=TokenGrid(*grid), window=3, prefix_tokens=0, kind="map")
    whole = layout.to_image(windows)
    torch.testing.assert_close(whole.permute(0, 2, 3, 1), image)
    torch.testing.assert_close(window_unpartition(layout.to_windows(whole), 3, padded, grid), image)
    torch.testing.assert_close(layout.to_windows(whole), windows)  # padding comes back as zeros


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_sequence_is_a_map_behind_its_prefix(prefix: int) -> None:
    layout = TokenLayout(grid=TokenGrid(2, 3), window=0, prefix_tokens=prefix, kind="sequence")
    tokens = torch.arange(2 * (6 + prefix) * 4.0).reshape(2, -1, 4)
    seen: list[tuple[int, ...]] = []

    def double(maps: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(maps.shape))
        return 2 * maps

    torch.testing.assert_close(layout.on_map(tokens, double), 2 * tokens)
    assert sorted(seen) == [(2, 4, 1, 1)] * prefix + [(2, 4, 2, 3)]


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_every_site_is_found_and_replaced_in_both_families(backbone: str) -> None:
    encoder = build_segmenter(backbone, task="binary").encoder
    for block in block_sites(encoder, "0,2"):
        for site in ("qkv", "proj", "mlp_in", "mlp_out"):
            assert isinstance(block.get(site), nn.Linear)
            block.replace(site, nn.Identity())
            assert isinstance(block.get(site), nn.Identity)
        assert isinstance(block.get("norm1"), nn.LayerNorm)
        block.block.mlp = nn.Identity()
        with pytest.raises(MethodError, match=f"block {block.index} of this backbone has no mlp_in"):
            block.get("mlp_in")
    untouched = [block for index, block in enumerate(encoder.blocks) if index not in (0, 2)]
    sites = [block.get_submodule(name) for block in untouched for name in ("attn.qkv", "attn.proj")]
    assert not any(isinstance(site, nn.Identity) for site in sites)


@pytest.mark.parametrize("backbone", ["tiny_timm", "tiny_dinov3", "tiny_sam3"])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_halves_between_which_a_method_acts_are_the_block(backbone: str, scaled: bool) -> None:
    encoder: Any = build_segmenter(backbone, task="binary").eval().encoder
    side = encoder.shape.image_size
    tokens = encoder.embed(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
    for block in encoder.blocks:
        if hasattr(block, "gamma_1"):
            block.gamma_1 = block.gamma_2 = nn.Parameter(torch.full((64,), 0.5)) if scaled else None
        attention_half, mlp_half = halves(block)
        torch.testing.assert_close(mlp_half(attention_half(tokens)), block(tokens), atol=1e-5, rtol=1e-5)


def test_windows_exist_inside_the_attention_only() -> None:
    block = block_sites(build_segmenter("tiny", task="binary").encoder, "0")[0]
    assert (block.layout_at("qkv").window, block.layout_at("proj").window) == (3, 3)
    assert (block.layout_at("mlp_in").window, block.layout_at("mlp_out").window) == (0, 0)
