"""What tuning changes inside an encoder: attention distances and frequencies of features by block, the paper's analysis.

``python results/analysis/insides.py ADAPTER.safetensors --images DIR [--checkpoint FILE]``. The adapter is what ``sam-peft export
--adapter-only`` writes; each number of the tuned encoder stands beside the same number of its frozen backbone, on the same
images.

*Mean attention distance* (Raghu et al. 2021, 2108.08810) is how far, in pixels, a token's attention reaches: for a query i Σ_j
p_ij · d_ij, with d_ij the distance of two tokens; the mean over queries, images and heads. Tokens without a place (class token,
prompts) count neither as queries nor as keys, and each row is renormalised. In a windowed block of SAM distances are those inside
a window, without the padding at the border.

*High frequencies* (Park and Kim 2022, 2202.06709): log amplitude of the spectrum of a block's output at the highest diagonal
frequency minus that at frequency 0, mean over channels and images. A block that averages its tokens lowers it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling.image_encoder import window_partition
from tabulate import tabulate
from torch import Tensor, nn

from harness.datasets.readers.pairing import image_files
from harness.experiment.trained import adapter, load_adapter
from harness.methods.parts.sites import TokenLayout, block_sites
from harness.models.attention import RelativeAttention
from harness.models.build import build_segmenter
from harness.protocols.load import from_rules
from harness.training.feeding import normalise

FLOOR = 1e-6
"""Added to amplitudes before the logarithm, as in the authors' code."""


def pixel_distances(height: int, width: int, *, patch: int) -> Tensor:
    """(N, N): distance of any two tokens of a map, in pixels, N = height · width in rows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = patch * torch.stack([rows, columns], dim=-1).reshape(-1, 2).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def valid_tokens(grid: tuple[int, int], window: int) -> Tensor:
    """(windows of an image, N) bool: which tokens of each window lie on the map; one window of all where ``window`` is 0."""
    if not window:
        return torch.ones(1, grid[0] * grid[1], dtype=torch.bool)
    windows, _ = window_partition(torch.ones(1, *grid, 1), window)
    return windows.flatten(1) > 0


def uniform_distance(grid: tuple[int, int], *, window: int, patch: int) -> float:
    """The distance of uniform attention: 116.5 px on a whole 14 × 14 window of 16 px tokens, 533.9 px on 64 × 64."""
    valid = valid_tokens(grid, window).double()
    distances = pixel_distances(*((window, window) if window else grid), patch=patch).double()
    by_query = (valid @ distances) / valid.sum(dim=1, keepdim=True)
    return float((by_query * valid).sum() / valid.sum())


@torch.no_grad()
def attention_distance(attn: Any, tokens: Tensor, *, grid: tuple[int, int], window: int, patch: int) -> float:
    """Mean over heads, images and queries, in pixels.

    Args:
        attn: SAM's attention over maps, or timm's over sequences.
        tokens: what reaches it: (B', h, w, C), a window or an image an entry, or (B, P + N, C) with P tokens without a place in front.
    """
    distances = pixel_distances(*((window, window) if window else grid), patch=patch)
    valid = valid_tokens(grid, window)
    total = 0.0
    for number, entry in enumerate(tokens.split(1)):  # one window or image at a time: its scores are heads · N² numbers
        there = valid[number % len(valid)]
        weights = scores(attn, entry, places=grid[0] * grid[1]).masked_fill(~there, -torch.inf).softmax(dim=-1)
        by_query = (weights * distances).sum(dim=-1)[..., there]
        total += float(by_query.mean(dim=(0, 1)).sum())
    return total / (int(valid.sum()) * (len(tokens) // len(valid)))


def scores(attn: Any, tokens: Tensor, *, places: int) -> Tensor:
    """(B', heads, N, N) before the softmax, of the tokens that have a place."""
    if isinstance(attn, RelativeAttention):
        q, k, _ = attn._heads(attn.qkv(tokens))
        rows, columns = attn._relative_scores(q, *tokens.shape[1:3])
        products = ((q * attn.scale) @ k.transpose(-2, -1)).unflatten(-1, (rows.shape[-1], columns.shape[-1]))
        return (products + rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
    batch, length, _ = tokens.shape
    q, k, _ = attn.qkv(tokens).reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = (attn.q_norm(q) * attn.scale)[:, :, length - places :], attn.k_norm(k)[:, :, length - places :]
    return q @ k.transpose(-2, -1)


@torch.no_grad()
def half_diagonal(maps: Tensor) -> Tensor:
    """Log amplitude of (B, C, side, side) from frequency 0 towards (π, π), minus its first value; entry k is the frequency 2πk / side."""
    side = maps.shape[-1]
    amplitude = torch.fft.fft2(maps.float()).abs().add(FLOOR).log().mean(dim=(0, 1))
    diagonal = torch.fft.fftshift(amplitude).diagonal()[side // 2 :]
    return diagonal - diagonal[0]


def as_maps(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """(B, h, w, C) or (B, P + N, C) as (B, C, h, w), tokens without a place left out."""
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2)
    height, width = layout.grid.height, layout.grid.width
    return tokens[:, -height * width :].transpose(1, 2).unflatten(-1, (height, width))


@dataclass(kw_only=True)
class Seen:
    """What one block did, an entry a batch."""

    distances: list[float] = field(default_factory=list)
    frequencies: list[float] = field(default_factory=list)


@contextmanager
def watched(encoder: Any) -> Iterator[list[Seen]]:
    """What the blocks of ``encoder`` do with whatever runs through it inside the context, in order of depth."""
    seen = []
    with ExitStack() as hooks:
        for site in block_sites(encoder, "all"):
            block_seen, layout = Seen(), site.layout
            attn = next(module for module in site.block.modules() if is_attention(module))

            def of_attention(
                module: nn.Module,
                args: tuple[Tensor, ...],
                output: Tensor,
                *,
                to: Seen = block_seen,
                of: TokenLayout = layout,
            ) -> None:
                grid = (encoder.grid.height, encoder.grid.width)  # of the images that pass
                to.distances.append(
                    attention_distance(module, args[0], grid=grid, window=of.window, patch=encoder.shape.patch)
                )

            def of_block(
                module: nn.Module,
                args: tuple[Tensor, ...],
                output: Tensor,
                *,
                to: Seen = block_seen,
                of: TokenLayout = layout,
            ) -> None:
                to.frequencies.append(float(half_diagonal(as_maps(output, of))[-1]))

            hooks.callback(attn.register_forward_hook(of_attention).remove)
            hooks.callback(site.block.register_forward_hook(of_block).remove)
            seen.append(block_seen)
        yield seen


def is_attention(module: nn.Module) -> bool:
    return isinstance(module, RelativeAttention) or (hasattr(module, "qkv") and hasattr(module, "q_norm"))


def read_images(folder: Path, side: int, count: int) -> Tensor:
    """(B, 3, side, side) uint8."""
    paths = image_files(folder)[:count]
    pictures = [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for path in paths]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def insides(file: Path, images: Path, *, checkpoint: Path | None = None, count: int = 16) -> list[list[Any]]:
    """A line a block: number, window, distance of uniform attention, of the frozen and of the tuned encoder, their high frequencies."""
    rules = from_rules(adapter(file).run.rules)
    segmenter, _ = load_adapter(file, checkpoint=checkpoint)
    frozen = build_segmenter(
        adapter(file).run.backbone,
        task="binary",
        image_size=rules.image_size,
        checkpoint=checkpoint,
        fused_attention=False,
    ).eval()
    batches = normalise(read_images(images, rules.image_size, count), rules.pixels).split(4)
    found: list[Sequence[Seen]] = []
    for model in (frozen, segmenter):
        encoder: Any = model.encoder
        with watched(encoder) as seen, torch.no_grad():
            for batch in batches:
                encoder.run_blocks(encoder.embed(batch))
        found.append(seen)
    shape, grid = encoder.shape, (encoder.grid.height, encoder.grid.width)
    return [
        [
            number, block.window or "global", uniform_distance(grid, window=block.window, patch=shape.patch),
            *(float(np.mean(each.distances)) for each in both), *(float(np.mean(each.frequencies)) for each in both),
        ]
        for number, (block, both) in enumerate(zip(shape.blocks, zip(*found, strict=True), strict=True))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--checkpoint", type=Path, help="the pretrained weights that the run started from")
    parser.add_argument("--count", type=int, default=16, help="images at most (default: 16)")
    options = parser.parse_args()
    lines = insides(options.adapter, options.images, checkpoint=options.checkpoint, count=options.count)
    heads = [
        "block",
        "window",
        "uniform (px)",
        "distance frozen (px)",
        "tuned (px)",
        "high frequencies frozen (ln)",
        "tuned (ln)",
    ]
    print(tabulate(lines, headers=heads, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
