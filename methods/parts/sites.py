"""Where a method touches an encoder: one view of the blocks of SAM, of a timm ViT, of TinyViT, of SAM 2 and of SAM 3.

A *site* is a sub-module of a block by its role (``qkv``, ``proj``, ``mlp_in``, ``mlp_out``, ``norm1``, ``norm2``). A
*token layout* knows how the tokens that reach a site become a feature map: SAM, TinyViT, SAM 2 and SAM 3 hand over (B', h, w, C), one
window or the whole image per entry; timm hands over (B, N, C) with prefix tokens in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from harness.methods.parts.placement import BackboneShape, MethodError, parse_blocks

_PATHS = {
    "norm1": ("norm1", "attn.norm", "layer_norm1"),
    "norm2": ("norm2", "mlp.norm", "layer_norm2"),
    "qkv": ("attn.qkv", "attention.qkv"),
    "proj": ("attn.proj", "attention.o_proj"),
    "mlp_in": ("mlp.lin1", "mlp.fc1"),
    "mlp_out": ("mlp.lin2", "mlp.fc2"),
}
SLICES = {"q": 0, "k": 1, "v": 2}


@dataclass
class TokenGrid:
    """Side lengths, in tokens, of the last map that the encoder works on; the encoder writes it, token layouts read it."""

    height: int = 0
    width: int = 0


class Encoder(Protocol):
    """What a method may rely on in an image encoder (an ``nn.Module``): images (B, 3, H, W) to (B, C, H/p, W/p).

    ``forward`` is ``finish(run_blocks(embed(images)))``; tokens are (B, h, w, D) for SAM and TinyViT, (B, N, D) for timm.
    In SAM 2 the neck reads the last map of every stage, and the output is (B, C, H/16, W/16): `harness.models.sam2`.
    """

    blocks: nn.ModuleList
    grid: TokenGrid
    shape: BackboneShape
    activation_checkpointing: bool  # a method that runs blocks of its own recomputes them too

    def embed(self, images: Tensor) -> Tensor: ...
    def run_blocks(self, tokens: Tensor) -> Tensor: ...
    def finish(self, tokens: Tensor) -> Tensor: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class Adaptable(Protocol):
    """What a method may rely on in a segmenter (an ``nn.Module``): images (B, 3, H, W) in, logits out, no prompts."""

    encoder: Any  # an nn.Module that is also an Encoder, which Python's types cannot say

    def decoder_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters of mask decoder and head that every method trains (no IoU head, no spare mask tokens)."""
        ...


@runtime_checkable
class AdaptableDecoder(Protocol):
    """What a method may rely on in a segmenter with SAM's mask decoder, to adapt that."""

    def decoder_linears(self) -> Iterable[str]:
        """Full names of the linear layers that the mask decoder uses."""
        ...

    def new_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The parameters among `Adaptable.decoder_parameters` that no checkpoint of SAM holds: class head, neck after a timm ViT, and
        the mask tokens where there are several."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How the tokens at a site form maps.

    Args:
        grid: the encoder's current grid.
        window: side of the attention window in tokens, 0 where attention is global.
        prefix_tokens: leading tokens without a position (timm).
        kind: ``map`` for (B', h, w, C), ``sequence`` for (B, N, C).
        normed_padding: windows are padded before the norm (TinyViT), so that padding reaches qkv as the norm's bias and not as zeros.
        scale: how many times finer the block's map is than ``grid``.
    """

    grid: TokenGrid
    window: int
    prefix_tokens: int
    kind: str
    scale: int = 1
    normed_padding: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole map, in tokens."""
        return self.grid.height * self.scale, self.grid.width * self.scale

    def on_map(
        self,
        tokens: Tensor,
        function: Callable[[Tensor], Tensor],
        *,
        scope: str = "window",
        prefix_function: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Apply ``function`` ((B', C, h, w) to the same shape) to the tokens seen as maps; tokens keep their layout.

        Args:
            tokens: (B', h, w, C) or (B, N, C).
            scope: ``window`` works inside the attention window as the tokens come; ``image`` puts the windows of one
                image together first and leaves the padding out (its tokens come back as zeros).
            prefix_function: what happens to prefix tokens (B, P, C), which have no position on the map and no neighbours;
                by default each is a map of one token.
        """
        if self.kind == "sequence":
            prefix, patches = tokens[:, : self.prefix_tokens], tokens[:, self.prefix_tokens :]
            image = patches.transpose(1, 2).reshape(tokens.shape[0], -1, *self.size)
            mapped = function(image).flatten(2).transpose(1, 2)
            if not self.prefix_tokens:
                return mapped
            if prefix_function is None:
                alone = function(prefix.reshape(-1, prefix.shape[-1], 1, 1)).reshape(prefix.shape)
            else:
                alone = prefix_function(prefix)
            return torch.cat([alone, mapped], dim=1)
        if scope == "image" and self.window:
            return self.to_windows(function(self.to_image(tokens)))
        return function(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _window_counts(self) -> tuple[int, int]:
        height, width = self.size
        # Not -(-height // side): the division of a traced graph truncates in ONNX.
        return (height + self.window - 1) // self.window, (width + self.window - 1) // self.window

    def to_image(self, windows: Tensor) -> Tensor:
        """Windows (B·rows·columns, side, side, C) of a map layout to images (B, C, h, w), padding left out."""
        rows, columns = self._window_counts()
        side, channels = self.window, windows.shape[-1]
        image = windows.reshape(-1, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
        image = image.reshape(-1, channels, rows * side, columns * side)
        height, width = self.size
        return image[:, :, :height, :width]

    def to_windows(self, image: Tensor) -> Tensor:
        """Images (B, C, h, w) to windows (B·rows·columns, side, side, C), padded with zeros as SAM does."""
        rows, columns = self._window_counts()
        side, channels = self.window, image.shape[1]
        height, width = self.size
        padded = nn.functional.pad(image, (0, columns * side - width, 0, rows * side - height))
        windows = padded.reshape(-1, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        return windows.reshape(-1, side, side, channels)


@dataclass(frozen=True, kw_only=True)
class BlockSite:
    """One block of the encoder with its named sites.

    Args:
        dim: width of the tokens that leave it.
        entering: width of those that its first norm and qkv see.
        heads: of its attention, where they group the outputs of qkv; 1 where q, k and v are three thirds.
        pool: how many times finer, along each side, the map is at qkv than after attention.
        layout: at qkv.
    """

    index: int
    block: nn.Module
    name: str
    dim: int
    entering: int
    heads: int
    pool: int
    layout: TokenLayout = field(repr=False)

    def path(self, site: str) -> str:
        """The module path of ``site`` inside the block, such as ``attn.qkv``."""
        for path in _PATHS[site]:
            parent, _, leaf = path.rpartition(".")
            owner = getattr(self.block, parent, None) if parent else self.block
            if hasattr(owner, leaf):
                return path
        children = ", ".join(name for name, _ in self.block.named_children())
        raise MethodError(f"block {self.index} of this backbone has no {site}; its modules are {children}")

    def get(self, site: str) -> nn.Module:
        return self.block.get_submodule(self.path(site))

    def layout_at(self, site: str) -> TokenLayout:
        """The layout at ``site``: windows exist between the query projection and the output projection only, and what padding becomes
        after qkv is cropped with them."""
        if site == "qkv":
            return self.layout
        window = self.layout.window // self.pool if site == "proj" else 0
        return replace(self.layout, window=window, scale=self.layout.scale // self.pool, normed_padding=False)

    def outputs(self, part: str) -> Tensor:
        """Which outputs of the fused qkv are ``q``, ``k`` or ``v``."""
        return torch.arange(3 * self.dim).view(self.heads, 3, -1)[:, SLICES[part]].flatten()

    def replace(self, site: str, module: nn.Module) -> None:
        parent, _, leaf = self.path(site).rpartition(".")
        setattr(self.block.get_submodule(parent), leaf, module)


@dataclass(frozen=True, kw_only=True)
class DecoderSite:
    """A module of the mask decoder with its linear layers; its tokens form no map."""

    owner: nn.Module
    name: str

    @property
    def index(self) -> str:
        return self.name

    def path(self, site: str) -> str:
        return site

    def get(self, site: str) -> nn.Module:
        return self.owner.get_submodule(site)

    def layout_at(self, site: str) -> TokenLayout:
        return TokenLayout(grid=TokenGrid(), window=0, prefix_tokens=0, kind="sequence")

    def replace(self, site: str, module: nn.Module) -> None:
        setattr(self.owner, site, module)


def decoder_sites(segmenter: nn.Module) -> list[tuple[DecoderSite, str]]:
    """The part of the mask decoder that each linear layer belongs to, and its name there.

    Raises:
        MethodError: the segmenter has another decoder.
    """
    if not isinstance(segmenter, AdaptableDecoder):
        raise MethodError("sites=decoder: only SAM's mask decoder is adapted; use decoder=sam, or sites of the encoder")
    targets = (name.rpartition(".") for name in segmenter.decoder_linears())
    return [(DecoderSite(owner=segmenter.get_submodule(parent), name=parent), leaf) for parent, _, leaf in targets]


def block_sites(encoder: Encoder, blocks: str) -> list[BlockSite]:
    """The blocks that the placement ``blocks`` names, in order.

    Raises:
        MethodError: the placement does not fit the encoder.
    """
    shape = encoder.shape
    indices = parse_blocks(blocks, depth=shape.depth, global_blocks=shape.global_blocks)
    sites = []
    for index in indices:
        block, block_shape = encoder.blocks[index], shape.blocks[index]
        kind = "map" if getattr(block, "window_size", None) is not None else "sequence"
        layout = TokenLayout(
            grid=encoder.grid,
            window=block_shape.window,
            prefix_tokens=shape.prefix_tokens,
            kind=kind,
            scale=block_shape.scale * block_shape.pool,
            normed_padding=isinstance(getattr(getattr(block, "attn", None), "norm", None), nn.LayerNorm),
        )
        sites.append(
            BlockSite(
                index=index,
                block=block,
                name=f"blocks.{index}",
                dim=block_shape.dim,
                entering=block_shape.entering,
                heads=block_shape.heads if shape.qkv_by_head else 1,
                pool=block_shape.pool,
                layout=layout,
            )
        )
    return sites


def halves(block: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The two residual halves of a block, x + attention(norm(x)) and x + MLP(norm(x)), each from tokens to tokens.

    The harness's own blocks have both halves as methods; timm's block computes both in one call, so they are written out here.
    """
    untyped: Any = block
    if hasattr(block, "attention_half"):
        return untyped.attention_half, untyped.mlp_half
    if hasattr(block, "gamma_1"):  # DINOv3's; 1 where it scales nothing
        scales = (1.0 if scale is None else scale for scale in (untyped.gamma_1, untyped.gamma_2))
        first, second = ((lambda tokens, scale=scale: scale * tokens) for scale in scales)
    else:
        first, second = untyped.ls1, untyped.ls2
    return (
        lambda tokens: tokens + untyped.drop_path1(first(untyped.attn(untyped.norm1(tokens)))),
        lambda tokens: tokens + untyped.drop_path2(second(untyped.mlp(untyped.norm2(tokens)))),
    )


def halves_on_own_map(block: nn.Module) -> tuple[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...]:
    """`halves`, each as two steps: what makes the tokens that its norm reads (the identity, except for TinyViT's convolutions), then the
    half on those tokens."""
    untyped: Any = block
    if hasattr(untyped, "attend"):
        return (untyped.enter, untyped.attend), (untyped.filter, untyped.process)
    return tuple(((lambda tokens: tokens), half) for half in halves(block))
