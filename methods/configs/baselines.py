"""The baselines next to LoRA: BitFit, SSF, adapters, prompts, side networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.methods.configs import Count, PlacedConfig, Positive
from harness.methods.configs.lowrank import LinearsConfig
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, NormedConvolution, parse_sites


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(PlacedConfig):
    """BitFit (2106.10199): the biases that the encoder has.

    Args:
        outside: also the biases outside the blocks: patch embedding, final norm (timm), the neck's norms.
    """

    outside: bool = True

    def encoder_parameters(self, shape: BackboneShape) -> int:
        widths = 6 if shape.qkv_bias else 3  # qkv (3), proj, second norm, the MLP's second linear
        blocks = sum(
            b.entering + (widths + bool(b.inputs)) * b.dim + b.mlp_dim + _shifts(b.convolutions)
            for b in self.placed(shape)
        )
        embedding = _shifts(shape.stem) or shape.embedded * shape.patch_bias
        around = embedding + shape.dim * (shape.pre_norm + shape.final_norm) + shape.neck_biases
        return blocks + (around if self.outside else 0)

    def added_parameters(self, shape: BackboneShape) -> int:
        return 0

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0 if self.outside else super().gradient_from(shape)


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig(BitFitConfig):
    """LayerNorm tuning (2304.01917): the scales and shifts that the encoder's norms have.

    Args:
        outside: also the norms outside the blocks: the final one (timm), the neck's two (SAM), one before them (CLIP).
    """

    def encoder_parameters(self, shape: BackboneShape) -> int:
        around = 2 * shape.dim * (shape.pre_norm + shape.final_norm) + 2 * shape.neck_scales
        return sum(2 * (block.entering + block.dim) for block in self.placed(shape)) + (around if self.outside else 0)

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0 if self.outside and shape.pre_norm else PlacedConfig.gradient_from(self, shape)


@dataclass(frozen=True, kw_only=True)
class MonaConfig(PlacedConfig):
    """Mona (2408.08345): a multi-scale convolutional adapter after attention and another after the MLP.

    Args:
        hidden: channels of the bottleneck, 64 (paper).
    """

    hidden: Count = 64

    def encoder_parameters(self, shape: BackboneShape) -> int:
        hidden = self.hidden
        filters = hidden * (3**2 + 5**2 + 7**2) + 3 * hidden + hidden**2 + hidden
        dims = [block.dim for block in self.placed(shape)]
        return sum(2 * (4 * dim + 2 * dim * hidden + hidden + dim + filters) for dim in dims)


@dataclass(frozen=True, kw_only=True)
class ConvpassConfig(PlacedConfig):
    """Convpass (2207.07039): a convolutional bypass beside attention and another beside the MLP.

    Args:
        sites: beside which: ``proj`` (attention; the paper's Convpass-attn), ``mlp``, or both.
        hidden: channels of the bottleneck, 8 (paper).
        scale: factor s of what a bypass gives, 1 (code; the paper chooses it for each data set).
    """

    sites: str = "proj,mlp"
    hidden: Count = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if unfit := set(self.halves) - {"proj", "mlp"}:
            raise MethodError(
                f"sites={self.sites!r}: a bypass runs in parallel to proj (attention) or mlp, not {sorted(unfit)[0]}"
            )

    @property
    def halves(self) -> tuple[str, ...]:
        """Those of ``proj`` and ``mlp`` that have a bypass."""
        return parse_sites(self.sites)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        blocks, hidden = self.placed(shape), self.hidden
        if any(block.inputs or block.pool > 1 for block in blocks) and "proj" in self.halves:
            raise MethodError(
                "convpass runs in parallel to attention on the tokens that enter it, and attention of this backbone changes their width "
                "or map; take convpass[sites=mlp] or another method"
            )
        bypasses = (2 * block.dim * hidden + hidden + block.dim + 9 * hidden**2 + hidden for block in blocks)
        return len(self.halves) * sum(bypasses)


@dataclass(frozen=True, kw_only=True)
class FacTConfig(LinearsConfig):
    """FacT (2212.03145): the updates of all layers as one tensor, factored.

    Args:
        sites: which linears (paper: all of a block). The MLP's width must be a multiple of the token's, as its weights
            are seen as so many square ones.
        form: ``tt`` (tensor train: U, V for all layers, an r×r core for each square weight) or ``tk`` (Tucker: the cores
            are mixed from one r×r×r core by an r-vector for each).
        rank: r = 16 (paper, tensor train).
        scale: s = 1 (code; the paper tunes it over 0.01 to 100).
    """

    sites: str = "qkv,proj,mlp"
    form: Literal["tt", "tk"] = "tt"
    rank: Count = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sites(self.sites)  # refuses ``decoder``, which is no site of a block

    def squares(self, shape: BlockShape) -> int:
        """How many square weights of the token's width the sites of a block hold.

        Raises:
            MethodError: the MLP does not divide into such.
        """
        ratio, rest = divmod(shape.mlp_dim, shape.dim)
        fused = 3 * (shape.dim // shape.entering)  # squares of the width that qkv reads
        sites = parse_sites(self.sites)
        if "mlp" in sites and rest:
            raise MethodError(
                f"sites={self.sites!r}: FacT sees the MLP as square weights, and {shape.mlp_dim} is not a multiple of "
                f"{shape.dim}; leave mlp out, as in sites=qkv,proj"
            )
        return sum({"qkv": fused, "mlp": 2 * ratio, "proj": 1}.get(site, fused // 3) for site in sites)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        blocks = self.placed(shape)
        rank, squares = self.rank, sum(map(self.squares, blocks))
        cores = squares * rank**2 if self.form == "tt" else rank**3 + squares * rank
        return 2 * max(block.dim for block in blocks) * rank + cores


@dataclass(frozen=True, kw_only=True)
class SSFConfig(PlacedConfig):
    """SSF (2210.08823): a scale and a shift for each channel after every linear and norm of a block.

    Args:
        init: ``intended`` starts from the identity; ``released`` from N(1, 0.02²) and N(0, 0.02²), as the code of the paper.
        outside: also after the patch projection.
    """

    init: Literal["released", "intended"] = "intended"
    outside: bool = True

    def encoder_parameters(self, shape: BackboneShape) -> int:
        what = (
            "q, k and v"
            if not shape.qkv_bias
            else "its patch projection"
            if self.outside and not shape.patch_bias
            else ""
        )
        if what:
            more = "another method" if not shape.qkv_bias else "ssf[outside=false]"
            raise MethodError(f"ssf folds into weight and bias, and this backbone has no bias at {what}; take {more}")
        channels = sum(block.entering + 6 * block.dim + block.mlp_dim for block in self.placed(shape))
        projected = shape.stem[1].outputs if shape.stem else shape.embedded  # of the two that embed patches the last
        return 2 * (channels + (projected if self.outside else 0))

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0 if self.outside else super().gradient_from(shape)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(PlacedConfig):
    """Houlsby adapter (1902.00751): a bottleneck with a residual after attention and after the MLP.

    Args:
        sites: after which: ``proj`` (attention), ``mlp``, or both.
        hidden: width of the bottleneck; 2 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
        std: of the truncated normal both projections start from, near zero, 1e-2 (paper).
    """

    sites: str = "proj,mlp"
    hidden: Count = 2
    std: Positive = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if unfit := set(parse_sites(self.sites)) - {"proj", "mlp"}:
            raise MethodError(
                f"sites={self.sites!r}: an adapter follows proj (attention) or mlp, not {sorted(unfit)[0]}"
            )

    def encoder_parameters(self, shape: BackboneShape) -> int:
        dims = [block.dim for block in self.placed(shape)]
        return len(parse_sites(self.sites)) * sum(2 * dim * self.hidden + self.hidden + dim for dim in dims)


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(PlacedConfig):
    """AdaptFormer (2205.13535): a bottleneck parallel to the MLP.

    Args:
        hidden: width of the bottleneck, 64 (paper).
        scale: factor of the bottleneck's output, 0.1 (paper).
    """

    hidden: Count = 64
    scale: float = 0.1

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return sum(2 * block.dim * self.hidden + self.hidden + block.dim for block in self.placed(shape))


@dataclass(frozen=True, kw_only=True)
class VPTConfig(PlacedConfig):
    """VPT-deep (2203.12119): learnt tokens that join the attention of a block.

    Args:
        tokens: prompts a block; 12 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
    """

    tokens: Count = 12

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return sum(self.tokens * block.entering for block in self.placed(shape))


@dataclass(frozen=True, kw_only=True)
class LSTConfig(PlacedConfig):
    """Ladder side tuning (2206.06522): a narrow network parallel to the frozen backbone, fed by its blocks' outputs.

    Args:
        blocks: which blocks have a rung, that is a side block fed by them.
        reduction: the side network is this many times narrower, 8 (paper).
    """

    reduction: Count = 8

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return None

    def width(self, shape: BackboneShape) -> int:
        shape.require_one_width("lst", "has one ladder of one width over one map")
        return max(1, shape.dim // self.reduction)

    def hidden(self, shape: BackboneShape) -> int:
        return max(1, shape.blocks[0].mlp_dim // self.reduction)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width, hidden = self.width(shape), self.hidden(shape)
        side_block = 4 * width + 4 * (width * width + width) + 2 * width * hidden + hidden + width
        rungs = len(self.placed(shape))
        down = (rungs + 1) * shape.dim * width  # one for the embedding that the ladder starts from
        return down + rungs * (side_block + 1) + 2 * width + width * shape.dim


@dataclass(frozen=True, kw_only=True)
class SAMAdapterConfig(PlacedConfig):
    """SAM-Adapter (2304.09148): before each block a prompt made of the patch embedding and of the image's high frequencies.

    Args:
        scale: the prompt's hidden width is dim / scale, 32 (code).
        ratio: the central square of the spectrum with this fraction of its area is removed, 0.25 (paper).
        patch_embedding: ``intended`` tunes each token's own embedding; ``released`` scrambles it first, see
            `harness.methods.samadapter`.
    """

    scale: Count = 32
    ratio: float = 0.25
    patch_embedding: Literal["released", "intended"] = "intended"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise MethodError(f"ratio={self.ratio}: the removed fraction of the spectrum is in [0, 1)")

    def width(self, shape: BackboneShape) -> int:
        shape.require_one_width("samadapter", "makes the prompts of all blocks of one embedding of the patches")
        return max(1, shape.dim // self.scale)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width = self.width(shape)
        shared = (shape.dim * width + width) + (3 * shape.patch**2 * width + width) + (width * shape.dim + shape.dim)
        return shared + len(self.placed(shape)) * (width * width + width)


@dataclass(frozen=True, kw_only=True)
class ReinConfig(PlacedConfig):
    """Rein (2312.04265): learnt tokens refine what each block gives.

    Args:
        tokens: of a block, 100 (code).
        rank: of their matrix, 16 (code).
        scale: what the learnt factor of the change starts from, 1e-3 (code).
    """

    tokens: Count = 100
    rank: Count = 16
    scale: float = 1e-3

    def encoder_parameters(self, shape: BackboneShape) -> int:
        shape.require_one_width("rein", "refines all blocks by two matrices of one width")
        return len(self.placed(shape)) * self.rank * (self.tokens + shape.dim) + 2 * (shape.dim**2 + shape.dim) + 1


def _shifts(convolutions: Sequence[NormedConvolution]) -> int:
    """Biases of the batch norms."""
    return sum(convolution.outputs for convolution in convolutions)
