"""What a user may set in each method, its default with where it comes from, and what it costs in trainable parameters.

Free of torch: planning a thousand runs reads this module and builds no model. ``encoder_parameters`` is the closed form that the contract
tests hold against the attached model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from methods.operations import cell_parameters, parse_operations
from methods.placement import BackboneShape, MethodError, parse_blocks, parse_sites


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all configurations.

    Args:
        lr: learning rate of the weights, None for the protocol's.
    """

    lr: float | None = None

    def encoder_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder, mask decoder not counted."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(MethodConfig):
    """A method that acts on chosen blocks. See `methods.placement` for the grammar."""

    blocks: str = "all"

    def block_count(self, shape: BackboneShape) -> int:
        return len(parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks))


@dataclass(frozen=True, kw_only=True)
class DecoderOnlyConfig(MethodConfig):
    """Encoder frozen; only mask decoder and head train."""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class FullConfig(MethodConfig):
    """Everything trains but prompt encoder and IoU head."""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        dim, hidden, neck = shape.dim, shape.mlp_dim, shape.neck_dim
        side = shape.image_size // shape.patch
        norm, attention, mlp = 2 * dim, 4 * dim * dim + 4 * dim, 2 * dim * hidden + dim + hidden
        block = 2 * norm + attention + mlp + (2 * dim if shape.layer_scale else 0)
        # Both axes learn one vector a distance, for attention over the window or over the whole grid.
        spans = [side if index in shape.global_blocks or not shape.window else shape.window for index in range(shape.depth)]
        relative = sum(2 * (2 * span - 1) * (dim // shape.heads) for span in spans) if shape.relative_positions else 0
        patches = 3 * shape.patch**2 * dim + dim
        positions = (side**2 + shape.positioned_prefix) * dim + shape.prefix_tokens * dim
        neck_layers = dim * neck + 9 * neck * neck + 2 * 2 * neck + (norm if shape.final_norm else 0)
        return patches + positions + shape.depth * block + relative + neck_layers


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(PlacedConfig):
    """LoRA (2106.09685) as the SAM papers use it.

    Args:
        sites: which linears (default: the fused qkv, one adapter a block, as Conv-LoRA released).
        rank: r = 3 (Conv-LoRA, NAS-LoRA).
        alpha: scale is alpha / rank; 32 as released by Conv-LoRA.
    """

    sites: str = "qkv"
    rank: int = 3
    alpha: float = 32.0

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return self.block_count(shape) * low_rank_parameters(shape, self.sites, self.rank)


def site_widths(shape: BackboneShape, sites: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear map that ``sites`` names in one block; ``mlp`` names two."""
    widths = {
        "qkv": [(shape.dim, 3 * shape.dim)],
        "mlp": [(shape.dim, shape.mlp_dim), (shape.mlp_dim, shape.dim)],
    }
    return [pair for site in parse_sites(sites) for pair in widths.get(site, [(shape.dim, shape.dim)])]


def low_rank_parameters(shape: BackboneShape, sites: str, rank: int) -> int:
    """Parameters of the down- and up-projections of one block."""
    return sum(rank * (inputs + outputs) for inputs, outputs in site_widths(shape, sites))


@dataclass(frozen=True, kw_only=True)
class SAMedConfig(LoRAConfig):
    """SAMed (2304.13785): LoRA of rank 4 on the q and v slices; alpha equals the rank, so the update is not scaled (as released)."""

    sites: str = "q,v"
    rank: int = 4
    alpha: float = 4.0


@dataclass(frozen=True, kw_only=True)
class NASLoRAConfig(PlacedConfig):
    """NAS-LoRA (2512.03499). What the paper leaves open is our choice and says so.

    Args:
        sites: the paper says "Q, K, V of every block", which fits one cell on the fused qkv (default, so that LoRA and NAS-LoRA differ
            in the cell alone; ours) and one cell each on ``q,k,v``.
        rank: r = 3 (paper).
        scale: factor of the update; 1, the paper's formula has none.
        style: see `methods.operations` (the paper does not say whether ReLU and batch norm stay; ours: as DARTS).
        operations: ``all``, ``no-conv``, ``no-pool``, or names separated by commas.
        scope: ``window`` runs the cell inside the attention window, ``image`` on the whole map (ours: window, as Conv-LoRA released).
        alpha_std: α ~ N(0, alpha_std²) at init, one α a cell (1e-3, paper).
        alpha_lr: learning rate of α (1e-3, paper). ``lr`` of the weights is the protocol's when None (1e-4, paper).
        alpha_weight_decay: weight decay of α (0, ours).
        stagewise: weights alone for ``search_start_epoch`` epochs, then weights and α in turns (paper); False learns both on every step.
        search_start_epoch: T_B = 10 (paper).
        alternate: take turns every ``iteration`` or every ``epoch`` (ours: iteration); α has the first turn.
        alpha_data: α learns from the ``train`` split as the weights do, or from a ``holdout`` part of it that the weights never see (ours: train).
        alpha_holdout: that part as a fraction (0.5, DARTS).
        fused: run the operations of a cell as few batched convolutions; equal to running them one by one.
    """

    sites: str = "qkv"
    rank: int = 3
    scale: float = 1.0
    style: str = "darts"
    operations: str = "all"
    scope: str = "window"
    alpha_std: float = 1e-3
    alpha_lr: float = 1e-3
    alpha_weight_decay: float = 0.0
    stagewise: bool = True
    search_start_epoch: int = 10
    alternate: str = "iteration"
    alpha_data: str = "train"
    alpha_holdout: float = 0.5
    fused: bool = True

    def __post_init__(self) -> None:
        parse_operations(self.operations, style=self.style)
        for field, choices in (("scope", ("window", "image")), ("alternate", ("iteration", "epoch")), ("alpha_data", ("train", "holdout"))):
            if getattr(self, field) not in choices:
                raise MethodError(f"{field}={getattr(self, field)!r} is unknown; choose from {', '.join(choices)}")
        if not 0 < self.alpha_holdout < 1:
            raise MethodError(f"alpha_holdout={self.alpha_holdout} must lie between 0 and 1: it is the fraction of the training split kept for α")

    @property
    def cell_channels(self) -> int:
        """Channels of the bottleneck that pass the cell; the others bypass it."""
        return self.rank

    def encoder_parameters(self, shape: BackboneShape) -> int:
        cell = cell_parameters(parse_operations(self.operations, style=self.style), channels=self.cell_channels)
        cells = len(site_widths(shape, self.sites))
        return self.block_count(shape) * (low_rank_parameters(shape, self.sites, self.rank) + cells * cell)


@dataclass(frozen=True, kw_only=True)
class NASPCLoRAConfig(NASLoRAConfig):
    """NAS-PC-LoRA (2512.03499): only a part of the bottleneck's channels passes the cell, as in PC-DARTS (1907.05737).

    Args:
        channel_ratio: P = 2/3 (paper): 2 of 3 channels; rounded to at least one channel.
    """

    channel_ratio: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.channel_ratio <= 1:
            raise MethodError(f"channel_ratio={self.channel_ratio} must lie above 0 and not above 1")

    @property
    def cell_channels(self) -> int:
        return max(1, round(self.channel_ratio * self.rank))


@dataclass(frozen=True, kw_only=True)
class ConvLoRAConfig(LoRAConfig):
    """Conv-LoRA (2401.17868): LoRA with a mixture of convolutional experts, one for each scale, on the bottleneck map.

    Args:
        experts: expert i works at scale ×i; 8 (paper).
        gate: ``released`` routes to one expert without weighting it, so that the gate learns from the balance loss alone;
            ``intended`` multiplies the expert's output by its gate, which gives the gate a task gradient.
        scope: where a map ends: at the attention ``window`` (as released) or at the ``image``.
        balance: weight of the balance loss, 0.01 (code).
    """

    experts: int = 8
    gate: Literal["released", "intended"] = "released"
    scope: Literal["window", "image"] = "window"
    balance: float = 0.01

    def __post_init__(self) -> None:
        require_choice("gate", self.gate, ("released", "intended"))
        require_choice("scope", self.scope, ("window", "image"))
        require_positive("experts", self.experts)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        expert = 9 * self.rank * self.rank + self.rank
        routing = 2 * self.rank  # gate and noise, an expert, no bias
        adapters = self.block_count(shape) * len(site_widths(shape, self.sites))
        return super().encoder_parameters(shape) + adapters * self.experts * (expert + routing)


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(PlacedConfig):
    """BitFit (2106.10199): the biases that the encoder has.

    Args:
        outside: also the biases outside the blocks: patch embedding, final norm (timm), the neck's norms.
    """

    outside: bool = True

    def encoder_parameters(self, shape: BackboneShape) -> int:
        block = 7 * shape.dim + shape.mlp_dim  # norms, qkv (3), proj, both MLP linears
        final_norm = shape.dim if shape.final_norm else 0
        outside = shape.dim + final_norm + 2 * shape.neck_dim if self.outside else 0
        return self.block_count(shape) * block + outside


@dataclass(frozen=True, kw_only=True)
class SSFConfig(PlacedConfig):
    """SSF (2210.08823): a scale and a shift for each channel after every linear and norm of a block.

    Args:
        init: ``intended`` starts from the identity; ``released`` from N(1, 0.02²) and N(0, 0.02²), as the code of the paper.
        outside: also after the patch projection.
    """

    init: Literal["released", "intended"] = "intended"
    outside: bool = True

    def __post_init__(self) -> None:
        require_choice("init", self.init, ("released", "intended"))

    def encoder_parameters(self, shape: BackboneShape) -> int:
        channels = 7 * shape.dim + shape.mlp_dim
        return 2 * (self.block_count(shape) * channels + (shape.dim if self.outside else 0))


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(PlacedConfig):
    """Houlsby adapter (1902.00751): a bottleneck with a residual after attention and after the MLP.

    Args:
        sites: after which: ``proj`` (attention), ``mlp``, or both.
        hidden: width of the bottleneck; 2 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
        std: of the truncated normal both projections start from, near zero, 1e-2 (paper).
    """

    sites: str = "proj,mlp"
    hidden: int = 2
    std: float = 1e-2

    def __post_init__(self) -> None:
        require_positive("hidden", self.hidden)
        require_positive("std", self.std)
        if unfit := set(parse_sites(self.sites)) - {"proj", "mlp"}:
            raise MethodError(f"sites={self.sites!r}: an adapter follows proj (attention) or mlp, not {sorted(unfit)[0]}")

    def encoder_parameters(self, shape: BackboneShape) -> int:
        adapter = 2 * shape.dim * self.hidden + self.hidden + shape.dim
        return self.block_count(shape) * len(parse_sites(self.sites)) * adapter


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(PlacedConfig):
    """AdaptFormer (2205.13535): a bottleneck beside the MLP.

    Args:
        hidden: width of the bottleneck, 64 (paper).
        scale: factor of the bottleneck's output, 0.1 (paper).
    """

    hidden: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        require_positive("hidden", self.hidden)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return self.block_count(shape) * (2 * shape.dim * self.hidden + self.hidden + shape.dim)


@dataclass(frozen=True, kw_only=True)
class VPTConfig(PlacedConfig):
    """VPT-deep (2203.12119): learnt tokens that join the attention of a block.

    Args:
        tokens: prompts a block; 12 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
    """

    tokens: int = 12

    def __post_init__(self) -> None:
        require_positive("tokens", self.tokens)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return self.block_count(shape) * self.tokens * shape.dim


@dataclass(frozen=True, kw_only=True)
class LSTConfig(PlacedConfig):
    """Ladder side tuning (2206.06522): a narrow network beside the frozen backbone, fed by its blocks' outputs.

    Args:
        blocks: which blocks have a rung, that is a side block fed by them.
        reduction: the side network is this many times narrower, 8 (paper).
    """

    reduction: int = 8

    def __post_init__(self) -> None:
        require_positive("reduction", self.reduction)

    def width(self, shape: BackboneShape) -> int:
        return max(1, shape.dim // self.reduction)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width, hidden = self.width(shape), max(1, shape.mlp_dim // self.reduction)
        side_block = 4 * width + 4 * (width * width + width) + 2 * width * hidden + hidden + width
        rungs = self.block_count(shape)
        down = (rungs + 1) * shape.dim * width  # one for the embedding that the ladder starts from
        return down + rungs * (side_block + 1) + 2 * width + width * shape.dim


@dataclass(frozen=True, kw_only=True)
class SAMAdapterConfig(PlacedConfig):
    """SAM-Adapter (2304.09148): before each block a prompt made of the patch embedding and of the image's high frequencies.

    Args:
        scale: the prompt's hidden width is dim / scale, 32 (code).
        ratio: the central square of the spectrum with this fraction of its area is removed, 0.25 (paper).
    """

    scale: int = 32
    ratio: float = 0.25

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        if not 0 <= self.ratio < 1:
            raise MethodError(f"ratio={self.ratio}: the removed fraction of the spectrum lies in [0, 1)")

    def width(self, shape: BackboneShape) -> int:
        return max(1, shape.dim // self.scale)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width = self.width(shape)
        shared = (shape.dim * width + width) + (3 * shape.patch**2 * width + width) + (width * shape.dim + shape.dim)
        return shared + self.block_count(shape) * (width * width + width)


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `MethodError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise MethodError(f"{key}={value!r}: choose {' or '.join(choices)}")


def require_positive(key: str, value: float) -> None:
    """Raise `MethodError` unless ``value`` is above zero."""
    if not value > 0:
        raise MethodError(f"{key}={value}: must be above zero")
