"""Methods on linear layers that search nothing: LoRA, SAMed, DoRA, Conv-LoRA, HiRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.methods.configs import Count, PlacedConfig, Positive
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, apart, parse_sites


def layers_of(shape: BlockShape, sites: str) -> list[tuple[str, str, int, int]]:
    """(module, part, inputs, outputs) of every linear map of a block that ``sites`` names; a part is a slice of qkv or its module."""
    wide, hidden, entering = shape.dim, shape.mlp_dim, shape.entering
    known = {
        "qkv": [("qkv", "qkv", entering, 3 * wide)],
        "proj": [("proj", "proj", wide, wide)],
        "mlp": [("mlp_in", "mlp_in", wide, hidden), ("mlp_out", "mlp_out", hidden, wide)],
    }
    return [layer for site in parse_sites(sites) for layer in known.get(site, [("qkv", site, entering, wide)])]


@dataclass(frozen=True, kw_only=True)
class LinearsConfig(PlacedConfig):
    """A method on linear layers.

    Args:
        sites: which linears (default: the fused qkv, one adapter a block, as Conv-LoRA released). ``decoder``, alone or
            with others, is all linears that SAM's mask decoder uses; the decoder itself is then frozen.
    """

    sites: str = "qkv"

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
        """Parameters of one adapted linear map; a cell is not counted."""
        raise NotImplementedError

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return sum(self.linear_parameters(*pair) for pair in self.adapted(shape))

    def adapted(self, shape: BackboneShape) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear map of the encoder that it adapts."""
        sites = self.encoder_sites
        blocks = self.placed(shape) if sites else []
        return [(inputs, outputs) for block in blocks for _, _, inputs, outputs in layers_of(block, sites)]

    def decoder_parameters(self, linears: Sequence[tuple[int, int]]) -> int:
        return sum(self.linear_parameters(*pair) for pair in linears) if self.freezes_decoder else 0


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(LinearsConfig):
    """A low-rank update of linear layers.

    Args:
        rank: r = 3 (Conv-LoRA, NAS-LoRA).
    """

    rank: Count = 3

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        return self.rank * (inputs + outputs)

    def _require_maps(self) -> None:
        if self.freezes_decoder:
            raise MethodError(
                f"sites={self.sites!r}: a cell needs a map, and the mask decoder's layers see mask tokens; use lora, dora, samed "
                "or hira there"
            )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(LowRankConfig):
    """LoRA (2106.09685) as the SAM papers use it.

    Args:
        alpha: scale is alpha / rank; 32 as released by Conv-LoRA.
        scaling: ``lora`` divides alpha by the rank, ``rslora`` by its root (2312.03732), so that high ranks learn as fast.
        rate_ratio: learning rate of B over that of A and of all else that trains; 1, and 16 in LoRA+ (2402.12354).
        initialisation: ``kaiming`` (A random, B zero); or B A starts as a part of the frozen weights, and what is learnt is
            its change: ``pissa`` (2404.02948) their largest singular directions, ``soma`` (2412.04077) their smallest,
            ``olora`` (2406.01775) the first columns of their QR decomposition. ``eva`` (2410.07170): B is zero, and A the
            principal directions of what enters the layer, over the first training images.
    """

    alpha: Positive = 32.0
    scaling: Literal["lora", "rslora"] = "lora"
    rate_ratio: Positive = 1.0
    initialisation: Literal["kaiming", "pissa", "soma", "olora", "eva"] = "kaiming"

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (self.rank if self.scaling == "lora" else self.rank**0.5)


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """DoRA (2402.09353): LoRA on the direction of each output's weights, and a learnt magnitude for each output."""

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        return super().linear_parameters(inputs, outputs) + outputs


@dataclass(frozen=True, kw_only=True)
class SAMedConfig(LoRAConfig):
    """SAMed (2304.13785): LoRA of rank 4 on the q and v slices; alpha equals the rank, whichever it is, so the update is not
    scaled (as released)."""

    sites: str = "q,v"
    rank: Count = 4
    alpha: float | None = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
        if self.alpha not in (None, self.rank):
            raise MethodError(
                f"alpha is the rank in SAMed, whose update has no scale, not {self.alpha:g}; use lora[sites='q,v']"
            )
        object.__setattr__(self, "alpha", float(self.rank))
        super().__post_init__()


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

    experts: Count = 8
    gate: Literal["released", "switch", "intended"] = "released"
    expert_bias: Literal["zero", "uniform"] = "uniform"
    scope: Literal["window", "image"] = "window"
    balance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        if self.gate == "intended":
            object.__setattr__(self, "gate", "switch")
        if self.initialisation != "kaiming":
            raise MethodError(
                f"initialisation={self.initialisation}: Conv-LoRA's experts would act from the start; use lora, samed or dora"
            )

    @property
    def label_note(self) -> str:
        return "Switch gate" if self.gate == "switch" else ""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        expert = 9 * self.rank * self.rank + self.rank
        routing = 2 * self.rank  # gate and noise, an expert, no bias
        adapters = len(self.adapted(shape))
        return super().encoder_parameters(shape) + adapters * self.experts * (expert + routing)


@dataclass(frozen=True, kw_only=True)
class HiRAConfig(LowRankConfig):
    """HiRA (ICLR 2025): a low-rank matrix times the frozen weights, entry by entry."""

    weight_products: ClassVar[int] = 1
