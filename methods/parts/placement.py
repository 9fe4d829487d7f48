"""Where in an encoder a method acts: the placement grammar and the shape of a backbone. Free of torch.

Grammar: ``blocks=all|first-half|last-half|global|windowed|0,3,7-11`` and ``sites=qkv|q,v|q,k,v|proj|mlp``
(comma-separated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class MethodError(ValueError):
    """A method cannot be configured or attached like this; the message is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class NormedConvolution:
    """A convolution without bias and the batch norm after it.

    Args:
        inputs, outputs: channels.
        side: of the kernel.
        stride: of the output, in positions of the input.
        depthwise: each channel by itself.
    """

    inputs: int
    outputs: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False

    @property
    def taps(self) -> int:
        """Weights, each of which acts once at each position of the output."""
        return self.side**2 * self.outputs * (1 if self.depthwise else self.inputs)

    @property
    def parameters(self) -> int:
        return self.taps + 2 * self.outputs


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The numbers of one block.

    Args:
        dim: width of a token.
        heads: attention heads.
        mlp_dim: hidden width of the MLP.
        window: side of an attention window in tokens, 0 for attention over the whole map.
        scale: how many times finer its map is than the encoder's last, along a side.
        downsampling: convolutions that it begins with, which make its map from the previous one (TinyViT).
        local: convolution between attention and MLP (TinyViT).
        inputs: width of the tokens that come in, 0 where it is ``dim``. Another width is projected parallel to attention (Hiera).
        pool: factor by which attention pools its queries along each side, so that the map that enters is that many times finer
            than the one that leaves (Hiera). ``window`` counts tokens of the map that enters.
    """

    dim: int
    heads: int
    mlp_dim: int
    window: int = 0
    scale: int = 1
    downsampling: tuple[NormedConvolution, ...] = ()
    local: NormedConvolution | None = None
    inputs: int = 0
    pool: int = 1

    @property
    def entering(self) -> int:
        """Width of the tokens that the first norm and qkv see."""
        return self.inputs or self.dim

    @property
    def convolutions(self) -> tuple[NormedConvolution, ...]:
        return (*self.downsampling, *([self.local] if self.local else []))


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """The numbers of an encoder that placement and closed-form parameter counts depend on.

    Args:
        blocks: with attention, in order; all alike in a plain ViT, of several widths and maps in a hierarchical one.
        patch: side of a token of the last map in pixels.
        neck_dim: channels of the neck at the encoder's end (SAM), 0 for an encoder without one (timm).
        prefix_tokens: class and register tokens in front of the patch tokens (timm), 0 for SAM.
        image_size: default side of the square input in pixels, which sets how many positions are learnt.
        stem: convolutions that make the first block's map where no patch projection does (TinyViT), with the stride of each.
        final_norm: whether a norm follows the last block (timm).
        relative_positions: what blocks learn for relative positions: decomposed by ``axes`` (SAM), one number per head and a pair of
            ``distances`` (TinyViT), or nothing (timm).
        layer_scale: blocks scale both residual branches by a learnt vector (timm's DINOv2).
        positioned_prefix: prefix tokens that have a row in the position embedding.
        learnt_positions: other rows of the position embedding, None for one per patch, 0 for an encoder that learns none.
        qkv_by_head: the fused output holds q, k and v of the first head, then of the second (TinyViT), not three thirds.
        qkv_bias: whether the fused q, k, v have a bias (DINOv3 in timm: none).
        patch_bias: whether the patch projection has one (CLIP in timm: none).
        pre_norm: whether a norm precedes the first block (CLIP in timm).
        patch_kernel: side in pixels of the patch projection's kernel, 0 where it is ``patch``, without overlap.
        pyramid: the neck reads the last map of every stage (SAM 2) and not that of the last block alone. ``learnt_positions``
            are then those of a coarse map and, repeated over the image, those of one window of the first block.
        upscaled: the neck makes maps two and four times finer of the last one (SAM 3), next to one at its size. ``learnt_positions`` are
            then those of a small map that is repeated over the image.
    """

    blocks: tuple[BlockShape, ...]
    patch: int
    neck_dim: int
    prefix_tokens: int
    image_size: int
    stem: tuple[NormedConvolution, ...] = ()
    final_norm: bool = False
    relative_positions: Literal["axes", "distances", ""] = "axes"
    layer_scale: bool = False
    positioned_prefix: int = 0
    learnt_positions: int | None = None
    qkv_by_head: bool = False
    qkv_bias: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    patch_kernel: int = 0
    pyramid: bool = False
    upscaled: bool = False

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def dim(self) -> int:
        """Width of the tokens that leave the last block."""
        return self.blocks[-1].dim

    @property
    def global_blocks(self) -> tuple[int, ...]:
        return tuple(index for index, block in enumerate(self.blocks) if not block.window)

    @property
    def embedded(self) -> int:
        """Width of the tokens that the patch projection gives."""
        return self.blocks[0].entering

    @property
    def projection_taps(self) -> int:
        """Weights of the patch projection, each of which acts once at each position of the first map."""
        return 3 * (self.patch_kernel or self.patch) ** 2 * self.embedded

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """First block of each stage, and the one after its last; a stage begins where attention pools."""
        starts = [index for index, block in enumerate(self.blocks) if index == 0 or block.pool > 1]
        return tuple(zip(starts, [*starts[1:], self.depth], strict=True))

    @property
    def stage_ends(self) -> tuple[BlockShape, ...]:
        """The last block of every stage."""
        return tuple(self.blocks[behind - 1] for _, behind in self.stages)

    @property
    def embedding_patch(self) -> int:
        """Side in pixels of a position of the embedding that the mask decoder attends to; a pyramid's is the last map but one."""
        return self.patch // 2 if self.pyramid else self.patch

    @property
    def neck_taps(self) -> tuple[tuple[int, int], ...]:
        """Weights of each convolution of the neck, and how many times finer than the last map it acts."""
        if self.pyramid:
            return tuple((block.dim * self.neck_dim, block.scale) for block in self.stage_ends)
        if self.upscaled:
            once, twice, kernel = self.dim // 2, self.dim // 4, 9 * self.neck_dim**2
            first, second = (
                (4 * self.dim * once, 1),
                (4 * once * twice, 2),
            )  # transposed, so that they act where they read
            levels = (self.dim, 1), (once, 2), (twice, 4)
            projections = ((width * self.neck_dim + kernel, scale) for width, scale in levels)
            return (first, first, second, *projections)
        return (self.dim * self.neck_dim, 1), (9 * self.neck_dim**2, 1)

    @property
    def neck_biases(self) -> int:
        """Biases of the neck: those of its convolutions in SAM 2 and SAM 3, else of two norms."""
        if self.upscaled:
            return 2 * (self.dim // 2) + self.dim // 4 + 6 * self.neck_dim
        return self.neck_dim * (len(self.stages) if self.pyramid else 2)

    @property
    def neck_scales(self) -> int:
        """Scales of the neck's norms; those of SAM 2 and SAM 3 have none."""
        return 0 if self.pyramid or self.upscaled else 2 * self.neck_dim

    @property
    def parameters(self) -> int:
        """Parameters of the whole encoder, as its checkpoint learnt them."""
        dim, side = self.dim, self.image_size // self.patch
        patches = self.projection_taps + (self.embedded if self.patch_bias else 0)
        embedding = sum(convolution.parameters for convolution in self.stem) or patches
        rows = side**2 if self.learnt_positions is None else self.learnt_positions
        positions = (rows + self.positioned_prefix + self.prefix_tokens) * self.embedded
        neck_layers = sum(taps for taps, _ in self.neck_taps) + self.neck_biases + self.neck_scales
        norms = 2 * dim * (self.final_norm + self.pre_norm)
        return embedding + positions + sum(map(self._of_block, self.blocks)) + neck_layers + norms

    def _of_block(self, block: BlockShape) -> int:
        dim, entering, hidden = block.dim, block.entering, block.mlp_dim
        attention = 3 * entering * dim + dim * dim + dim + (3 * dim if self.qkv_bias else 0)
        parallel = entering * dim + dim if block.inputs else 0
        mlp = 2 * dim * hidden + dim + hidden
        norms_and_scales = 2 * (entering + dim) + (2 * dim if self.layer_scale else 0)
        span = block.window or self.image_size // self.patch * block.scale
        # Both axes learn one vector per distance, or every head one number per pair of distances.
        relative = {"axes": 2 * (2 * span - 1) * (dim // block.heads), "distances": block.heads * span**2, "": 0}
        convolutions = sum(convolution.parameters for convolution in block.convolutions)
        return attention + parallel + mlp + norms_and_scales + relative[self.relative_positions] + convolutions

    def require_one_width(self, method: str, what: str) -> None:
        """Raise `MethodError` for an encoder whose blocks differ in width or map."""
        if len({(block.dim, block.scale) for block in self.blocks}) > 1:
            raise MethodError(f"{method} {what}, and the blocks of this backbone have several; take another method")


_SITES = ("qkv", "q", "k", "v", "proj", "mlp")
DECODER = "decoder"
"""A site outside the encoder, of methods that update linear layers: all that SAM's mask decoder uses."""
_NAMED_BLOCKS = ("all", "first-half", "last-half", "global", "windowed")


def parse_blocks(spec: str, *, depth: int, global_blocks: Sequence[int]) -> tuple[int, ...]:
    """Block indices, ascending, that ``spec`` names in a ViT of ``depth`` blocks.

    Raises:
        MethodError: unknown word, index outside the backbone, or nothing selected.
    """
    named = {
        "all": range(depth),
        "first-half": range(depth // 2),
        "last-half": range(depth // 2, depth),
        "global": sorted(global_blocks),
        "windowed": [index for index in range(depth) if index not in set(global_blocks)],
    }
    chosen: set[int] = set()
    for part in str(spec).replace(" ", "").split(","):
        if part in named:
            chosen.update(named[part])
            continue
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise MethodError(
                f"blocks={spec!r}: {part!r} is neither one of {', '.join(_NAMED_BLOCKS)} nor a range such as 0,3,7-11"
            )
        start, stop = int(first), int(last or first)
        if start > stop or stop >= depth:
            raise MethodError(f"blocks={spec!r}: {part!r} is outside this backbone, whose blocks are 0-{depth - 1}")
        chosen.update(range(start, stop + 1))
    if not chosen:
        raise MethodError(f"blocks={spec!r} selects no block of this backbone")
    return tuple(sorted(chosen))


def apart(spec: str) -> tuple[str, bool]:
    """``spec`` without `DECODER`, and whether that was in it."""
    parts = str(spec).replace(" ", "").split(",")
    return ",".join(part for part in parts if part != DECODER), DECODER in parts


def parse_sites(spec: str) -> tuple[str, ...]:
    """Site names in the order of `_SITES`.

    Raises:
        MethodError: unknown site, or ``qkv`` together with one of its own slices.
    """
    parts = str(spec).replace(" ", "").split(",")
    unknown = [part for part in parts if part not in _SITES]
    if unknown:
        raise MethodError(
            f"sites={spec!r}: {unknown[0]!r} is unknown; choose from {', '.join(_SITES)}, separated by commas"
        )
    if "qkv" in parts and {"q", "k", "v"} & set(parts):
        raise MethodError(f"sites={spec!r}: qkv already holds q, k and v; name one or the other")
    return tuple(site for site in _SITES if site in parts)
