"""LoRA and its descendants: DoRA, VeRA, SAMed, NAS-LoRA, NAS-PC-LoRA, Conv-LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from methods.configs.common import PlacedConfig, require_choice, require_positive, require_whole
from methods.parts.operations import NORMS, cell_parameters, normed, parse_operations
from methods.parts.placement import BackboneShape, MethodError, apart, parse_sites


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(PlacedConfig):
    """A low-rank update of linear layers.

    Args:
        sites: which linears (default: the fused qkv, one adapter a block, as Conv-LoRA released). ``decoder``, alone or
            beside others, is all linears that SAM's mask decoder uses; the decoder itself is then frozen.
        rank: r = 3 (Conv-LoRA, NAS-LoRA).
    """

    sites: str = "qkv"
    rank: int = 3

    def __post_init__(self) -> None:
        require_whole("rank", self.rank)

    @property
    def encoder_sites(self) -> str:
        return apart(self.sites)[0]

    @property
    def freezes_decoder(self) -> bool:
        return apart(self.sites)[1]

    @property
    def trains_encoder(self) -> bool:
        return bool(self.encoder_sites)

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return super().gradient_from(shape) if self.trains_encoder else None

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        """Of one adapted linear map; a cell is not counted."""
        return self.rank * (inputs + outputs)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        widths = site_widths(shape, self.encoder_sites) if self.encoder_sites else []
        return self.block_count(shape) * sum(self.linear_parameters(*pair) for pair in widths)

    def decoder_parameters(self, linears: Sequence[tuple[int, int]]) -> int:
        return sum(self.linear_parameters(*pair) for pair in linears) if self.freezes_decoder else 0

    def _require_maps(self) -> None:
        if self.freezes_decoder:
            raise MethodError(
                f"sites={self.sites!r}: a cell needs a map, and the mask decoder's layers see mask tokens; use lora, dora, samed "
                "or vera there"
            )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(LowRankConfig):
    """LoRA (2106.09685) as the SAM papers use it.

    Args:
        alpha: scale is alpha / rank; 32 as released by Conv-LoRA.
        scaling: ``lora`` divides alpha by the rank, ``rslora`` by its root (2312.03732), so that high ranks learn as fast.
        rate_ratio: learning rate of B over that of A and of all else that trains; 1, and 16 in LoRA+ (2402.12354).
        initialisation: ``kaiming`` (A random, B zero), or ``pissa`` (2404.02948): B A starts as the best approximation of
            the frozen weights of this rank, and what is learnt is its change.
    """

    alpha: float = 32.0
    scaling: Literal["lora", "rslora"] = "lora"
    rate_ratio: float = 1.0
    initialisation: Literal["kaiming", "pissa"] = "kaiming"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("scaling", self.scaling, ("lora", "rslora"))
        require_choice("initialisation", self.initialisation, ("kaiming", "pissa"))
        require_positive("rate_ratio", self.rate_ratio)

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (self.rank if self.scaling == "lora" else self.rank**0.5)


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """DoRA (2402.09353): LoRA on the direction of each output's weights, and a learnt magnitude for each output."""

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        return super().linear_parameters(inputs, outputs) + outputs


def site_widths(shape: BackboneShape, sites: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear map that ``sites`` names in one block; ``mlp`` names two."""
    widths = {
        "qkv": [(shape.dim, 3 * shape.dim)],
        "mlp": [(shape.dim, shape.mlp_dim), (shape.mlp_dim, shape.dim)],
    }
    return [pair for site in parse_sites(sites) for pair in widths.get(site, [(shape.dim, shape.dim)])]


@dataclass(frozen=True, kw_only=True)
class VeRAConfig(LowRankConfig):
    """VeRA (2310.11454): frozen random matrices that all layers share, and two learnt vectors a layer.

    Args:
        rank: 256, as the paper takes for ViTs.
        initial: what the inner vector d starts from, 0.1 (paper); the outer one starts at zero.
    """

    rank: int = 256
    initial: float = 0.1

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        return self.rank + outputs


@dataclass(frozen=True, kw_only=True)
class SAMedConfig(LoRAConfig):
    """SAMed (2304.13785): LoRA of rank 4 on the q and v slices; alpha equals the rank, so the update is not scaled (as
    released)."""

    sites: str = "q,v"
    rank: int = 4
    alpha: float = 4.0


@dataclass(frozen=True, kw_only=True)
class NASLoRAConfig(LowRankConfig):
    """NAS-LoRA (2512.03499). What the paper leaves open is our choice and says so.

    Args:
        sites: the paper says "Q, K, V of every block", which fits one cell on the fused qkv (default, so that LoRA and
            NAS-LoRA differ in the cell alone; ours) and one cell each on ``q,k,v``.
        rank: r = 3 (paper).
        scale: factor of the update; 1, the paper's formula has none.
        style: see `methods.parts.operations` (the paper does not say whether ReLU and batch norm stay; ours: as DARTS).
        operations: ``all`` (DARTS's eight, paper), ``no-conv``, ``no-pool``, ``wide`` (three more, ours), or names separated
            by commas.
        scope: ``window`` runs the cell inside the attention window, ``image`` on the whole map (ours: window, as
            Conv-LoRA released).
        alpha_std: α ~ N(0, alpha_std²) at init, one α a cell (1e-3, paper).
        alpha_lr: learning rate of α (1e-3, paper). ``lr`` of the weights is the protocol's when None (1e-4, paper).
        alpha_weight_decay: weight decay of α (0, ours).
        stagewise: weights alone for ``search_start_epoch`` epochs, then weights and α alternate (paper); False learns
            both on every step.
        search_start_epoch: T_B = 10 (paper).
        alternate: how, from T_B on. ``both``: every iteration updates α on a batch of its own, then the weights on
            theirs, as DARTS and PC-DARTS do; the weights lose no update, a second pass is paid. ``joint``: one pass
            updates both. ``iteration`` and ``epoch``: turns, α first; the weights get half of the updates. The paper
            does not say; the card ``nas-lora`` asks for ``both`` (ours). Here ``iteration``, that of the first records.
        alpha_data: α learns from the ``train`` split as the weights do, or from a ``holdout`` part of it that the
            weights never see (ours: train).
        alpha_holdout: that part as a fraction (0.5, DARTS).
        order: with ``both`` and in turns: ``alpha-first`` as DARTS does, or ``weights-first`` (the paper does not say).
        residual: let the bottleneck pass beside the cell too, B (cell(A x) + A x), as Conv-LoRA does; the formula of
            the paper has no such term.
        norm: of the operations: ``batch`` (DARTS's while it searches: no parameters), ``batch-affine`` (a scale and an
            offset a channel are learnt) or ``none``; style=linear has none.
        fused: run the operations of a cell as few batched convolutions; equal to running them one by one.
    """

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
    order: str = "alpha-first"
    residual: bool = False
    norm: str = "batch"
    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        parse_operations(self.operations, style=self.style)
        require_choice("scope", self.scope, ("window", "image"))
        require_choice("alternate", self.alternate, ("both", "joint", "iteration", "epoch"))
        require_choice("alpha_data", self.alpha_data, ("train", "holdout"))
        require_choice("order", self.order, ("alpha-first", "weights-first"))
        require_choice("norm", self.norm, NORMS)
        if self.style == "linear" and self.norm == "batch-affine":
            raise MethodError("norm=batch-affine: style=linear has no norms; use style=darts, or leave norm out")
        if self.alternate == "joint" and self.alpha_data == "holdout":
            raise MethodError("alpha_data=holdout: alternate=joint has one pass on one batch; use alternate=both")
        if not 0 < self.alpha_holdout < 1:
            raise MethodError(f"alpha_holdout={self.alpha_holdout}: a fraction of the training split, in (0, 1)")

    @property
    def cell_channels(self) -> int:
        """Channels of the bottleneck that pass the cell; the others bypass it."""
        return self.rank

    @property
    def mixed_operations(self) -> tuple[str, ...]:
        return parse_operations(self.operations, style=self.style)

    @property
    def searches(self) -> bool:
        """Whether there is an α to learn."""
        return len(self.mixed_operations) > 1

    @property
    def holds_out(self) -> bool:
        """Whether α learns from images that the weights never see."""
        return self.stagewise and self.alpha_data == "holdout"

    @property
    def spares_weight_updates(self) -> bool:
        in_turns = self.searches and self.stagewise and self.alternate in ("iteration", "epoch")
        return in_turns or self.holds_out

    def never_reached(self, epochs: int) -> str:
        if not (self.searches and self.stagewise) or self.search_start_epoch < epochs:
            return ""
        return f"T_B = {self.search_start_epoch} lies not before the end of {epochs} epochs, so its architecture never trains"

    def passes(self, *, epochs: int, of_updates: bool) -> float:
        searched = max(0, epochs - self.search_start_epoch) if self.searches and self.stagewise else 0
        twice = self.alternate == "both" or (of_updates and self.alternate in ("iteration", "epoch"))
        return 1 + searched / epochs if twice else 1.0

    def encoder_parameters(self, shape: BackboneShape) -> int:
        operations = parse_operations(self.operations, style=self.style)
        norms = normed(operations) if self.norm == "batch-affine" else 0
        cell = cell_parameters(operations, channels=self.cell_channels) + 2 * norms * self.cell_channels
        cells = len(site_widths(shape, self.sites))
        return super().encoder_parameters(shape) + self.block_count(shape) * cells * cell


@dataclass(frozen=True, kw_only=True)
class NASPCLoRAConfig(NASLoRAConfig):
    """NAS-PC-LoRA (2512.03499): only a part of the bottleneck's channels passes the cell, as in PC-DARTS (1907.05737).

    Args:
        channel_ratio: P = 2/3 (paper): 2 of 3 channels; rounded to at least one channel, so that at rank 1 no channel is
            left to bypass the cell and the method is NAS-LoRA.
    """

    channel_ratio: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.channel_ratio <= 1:
            raise MethodError(f"channel_ratio={self.channel_ratio} must lie above 0 and not above 1")

    @property
    def cell_channels(self) -> int:
        return max(1, round(self.channel_ratio * self.rank))

    @property
    def label_note(self) -> str:
        return "no channel left out: naslora" if self.cell_channels == self.rank else ""


@dataclass(frozen=True, kw_only=True)
class ConvLoRAConfig(LoRAConfig):
    """Conv-LoRA (2401.17868): LoRA with a mixture of convolutional experts, one for each scale, on the bottleneck map.

    Args:
        experts: expert i works at scale ×i; 8 (paper).
        gate: ``released`` routes to one expert without weighting it, so that the gate learns from the balance loss
            alone; ``switch`` multiplies the expert's output by its share of the gate's softmax, which gives the gate a
            task gradient. That is Switch's idea (2101.03961), not Conv-LoRA's. ``intended`` is its name in older records.
        expert_bias: of the experts' convolutions at the start: ``zero`` (code; the cards at the paper's scale) or
            ``uniform``, as PyTorch starts a convolution, which is that of the first records.
        scope: where a map ends: at the attention ``window`` (as released) or at the ``image``.
        balance: weight of the balance loss, 0.01 (code).
    """

    experts: int = 8
    gate: Literal["released", "switch", "intended"] = "released"
    expert_bias: Literal["zero", "uniform"] = "uniform"
    scope: Literal["window", "image"] = "window"
    balance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        if self.gate == "intended":
            object.__setattr__(self, "gate", "switch")
        if self.initialisation == "pissa":
            raise MethodError(
                "initialisation=pissa: Conv-LoRA's experts would act from the start; use lora, samed or dora"
            )
        require_choice("gate", self.gate, ("released", "switch"))
        require_choice("expert_bias", self.expert_bias, ("zero", "uniform"))
        require_choice("scope", self.scope, ("window", "image"))
        require_whole("experts", self.experts)

    @property
    def label_note(self) -> str:
        return "Switch gate" if self.gate == "switch" else ""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        expert = 9 * self.rank * self.rank + self.rank
        routing = 2 * self.rank  # gate and noise, an expert, no bias
        adapters = self.block_count(shape) * len(site_widths(shape, self.sites))
        return super().encoder_parameters(shape) + adapters * self.experts * (expert + routing)
