"""Hooks on one block of an encoder: what passes through it is reduced at once, so that nothing of a block outlives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.archive.measured import Inside
from harness.evidence.attention import attention_distance, window_validity
from harness.evidence.frequency import half_diagonal
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import BlockSite, Encoder, TokenLayout, block_sites
from harness.models.attention import RelativeAttention
from harness.models.rotary import RotaryAttention
from harness.statistics.cka import upper

SITES = ("qkv", "proj", "mlp_in", "mlp_out")


@dataclass(kw_only=True)
class Seen:
    """What one block did, one entry a minibatch.

    Args:
        distances: (B, heads).
        after_attention, after_mlp: half-diagonals.
        grams: see `harness.archive.measured.Inside`.
        squares: site -> summed squares of f(x) − f₀(x) and of f₀(x).
    """

    distances: list[Tensor] = field(default_factory=list)
    after_attention: list[Tensor] = field(default_factory=list)
    after_mlp: list[Tensor] = field(default_factory=list)
    grams: list[list[float]] = field(default_factory=list)
    squares: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def inside(self) -> Inside:
        return Inside(
            distance_px=_plain(torch.cat(self.distances).mean(dim=0)),
            after_attention=_plain(torch.stack(self.after_attention).mean(dim=0)),
            after_mlp=_plain(torch.stack(self.after_mlp).mean(dim=0)),
            grams=self.grams,
        )

    @property
    def update(self) -> dict[str, float]:
        return {site: rounded((moved / base) ** 0.5) for site, (moved, base) in self.squares.items() if base}

    def add(self, site: str, output: Tensor, frozen: Tensor, *, less: Tensor | float = 0.0) -> None:
        """Compare an output with the frozen one's; ``less`` is taken off the latter, such as a block's input."""
        moved, base = self.squares.get(site, (0.0, 0.0))
        self.squares[site] = (moved + _square(output - frozen), base + _square(frozen - less))


def _square(tensor: Tensor) -> float:
    return float(tensor.float().square().sum(dtype=torch.float64))


def rounded(value: float) -> float:
    """Six significant digits: records of equal models compare, whatever the last bits of a machine."""
    return float(f"{value:.6g}")


def _plain(values: Tensor) -> list[float]:
    return [rounded(value) for value in values.double().tolist()]


@contextmanager
def watched(encoder: Any, *, against: Any = None) -> Iterator[list[Seen]]:
    """What the blocks of ``encoder`` do with whatever runs through it inside the context, in order of depth.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`; a method may have wrapped its blocks or their parts.
        against: the frozen encoder that updates are measured against, None to measure none.
    """
    places = block_sites(encoder, "all")
    others = block_sites(against, "all") if against is not None else [None] * len(places)
    seen = [Seen() for _ in places]
    with ExitStack() as hooks:
        for place, other, mine in zip(places, others, seen, strict=True):
            for handle in _hooks(encoder, place, other, mine):
                hooks.callback(handle.remove)
        yield seen


def _hooks(encoder: Encoder, place: BlockSite, other: BlockSite | None, seen: Seen) -> Iterator[Any]:
    layout, block = place.layout, place.block
    inner = next(module for module in block.modules() if hasattr(module, "norm2"))
    attn = next(module for module in inner.modules() if _is_attention(module))
    shape = encoder.shape

    def of_attention(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        grid = (encoder.grid.height, encoder.grid.width)
        found = attention_distance(module, args[0], grid=grid, window=layout.window, patch=shape.patch)
        seen.distances.append(found.cpu())

    def before_mlp(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.after_attention.append(half_diagonal(_maps(args[0], layout)).cpu())

    def of_block(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        maps = _maps(output, layout)
        seen.after_mlp.append(half_diagonal(maps).cpu())
        seen.grams.append(upper(gram(maps).cpu().numpy()))
        if other is not None:
            seen.add("block", output, other.block(args[0]), less=args[0])

    yield attn.register_forward_hook(of_attention)
    yield inner.get_submodule("norm2").register_forward_pre_hook(before_mlp)
    yield block.register_forward_hook(of_block)
    if other is None:
        return
    core = replace(place, block=inner)
    for site in SITES:
        try:
            yield core.get(site).register_forward_hook(_of_site(site, other.get(site), layout, seen))
        except MethodError:  # a method put something around it; its update is seen in the block's
            continue


def _of_site(site: str, frozen: nn.Module, layout: TokenLayout, seen: Seen) -> Callable[..., None]:
    def compare(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        base = frozen(args[0])
        if layout.window and site in ("qkv", "proj"):  # padding is nothing of an image
            if len(output) % len(valid := window_validity((layout.grid.height, layout.grid.width), layout.window)):
                return  # prompts, which go through qkv by themselves
            valid = valid.repeat(len(output) // len(valid), 1).to(output.device)
            output, base = output.flatten(1, 2)[valid], base.flatten(1, 2)[valid]
        parts = (
            zip("qkv", output.chunk(3, -1), base.chunk(3, -1), strict=True) if site == "qkv" else [(site, output, base)]
        )
        for name, mine, theirs in parts:
            seen.add(name, mine, theirs)

    return compare


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, RelativeAttention | RotaryAttention) or (
        hasattr(module, "qkv") and hasattr(module, "q_norm")
    )


def _maps(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """(B, h, w, C) or (B, P + N, C) as (B, C, h, w), tokens without a place left out."""
    if tokens.ndim == 4:
        return tokens.permute(0, 3, 1, 2)
    height, width = layout.grid.height, layout.grid.width
    return tokens[:, -height * width :].transpose(1, 2).unflatten(-1, (height, width))


def gram(maps: Tensor) -> Tensor:
    """XXᵀ in float64, (B, B), of features (B, …) less their mean over the minibatch.

    One pair of images after the other: a ViT-H's features of eight images in float64 would be another 340 MB.
    """
    centred = (maps - maps.mean(dim=0)).flatten(1)
    found = torch.zeros(len(maps), len(maps), dtype=torch.float64, device=maps.device)
    for row, first in enumerate(centred):
        for column, second in enumerate(centred[: row + 1]):
            found[row, column] = found[column, row] = (first * second).sum(dtype=torch.float64)
    return found
