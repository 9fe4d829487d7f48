"""Conv-LoRA (2401.17868): y = W x + b + (α/r) · B [A x + E_g(A x)], E_g a routed convolutional expert on the
bottleneck map.

Expert i of n: bicubic ×i, 3×3 convolution with bias, GELU, bicubic back. Router: the globally pooled map f gives one
logit per expert, f W_g + ε · (softplus(f W_n) + 0.01), with ε ~ N(0, 1) in training and ε = 0 after it. The expert with
the largest logit acts (noisy top-1 gating, 1701.06538, equations 3-5). A balance loss w · (cv²(importance) + cv²(load)), summed
over the adapters, spreads the work (equations 6-11 there). Only the linear path B A can be merged exactly.

As released, the chosen expert's gate is the softmax over one logit, that is 1, and the task loss never reaches the
router (``gate: released``). ``gate: switch`` weights the expert by its share of the softmax over all logits, as
Switch (2101.03961) does and Conv-LoRA does not. The release starts the experts' biases at zero (``expert_bias: zero``).
Deviations: router and experts compute in float32 under autocast; prefix tokens of a timm ViT, which have no position on
the map, take the linear path A x alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count
from harness.methods.lora import LoRA, LoRAConfig
from harness.methods.parts.layers import kaiming_uniform, recomputing
from harness.methods.parts.placement import BackboneShape
from harness.methods.parts.sites import TokenLayout

NOISE_FLOOR = 1e-2


@dataclass(frozen=True, kw_only=True)
class ConvLoRAConfig(LoRAConfig):
    """Conv-LoRA (2401.17868): LoRA with a mixture of convolutional experts, one for each scale, on the bottleneck map.

    Args:
        experts: expert i works at scale ×i; 8 (paper).
        gate: ``released`` routes to one expert without weighting it, so that the gate learns from the balance loss
            alone; ``switch`` multiplies the expert's output by its share of the gate's softmax, which gives the gate a
            task gradient. That is Switch's idea (2101.03961), not Conv-LoRA's. ``intended`` is its name in older records.
        expert_bias: initial biases of the experts' convolutions: ``zero`` (code; the protocols at the paper's scale) or
            ``uniform``, PyTorch's default for a convolution, which the first records used.
        scope: where a map ends: at the attention ``window`` (as released) or at the ``image``.
        balance: weight of the balance loss, 0.01 (code).
    """

    experts: Count = 8
    gate: Literal["released", "switch", "intended"] = "released"
    quirks: ClassVar = {"gate": "moe_gate"}
    expert_bias: Literal["zero", "uniform"] = "uniform"
    scope: Literal["window", "image"] = "window"
    balance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        if self.gate == "intended":
            object.__setattr__(self, "gate", "switch")

    @property
    def label_note(self) -> str:
        return "Switch gate" if self.gate == "switch" else ""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        expert = 9 * self.rank * self.rank + self.rank
        routing = 2 * self.rank  # gate and noise per expert, no bias
        adapters = len(self.adapted(shape))
        return super().encoder_parameters(shape) + adapters * self.experts * (expert + routing)


class Expert(nn.Module):
    """Convolution at ``scale`` times the resolution of the map.

    Args:
        channels: channels in and out.
        scale: i; 1 works at the map's own resolution.
        zero_bias: the bias starts at zero, otherwise at PyTorch's default.
        generator: source of the initial weights.

    Shape: (B, channels, h, w) to the same.
    """

    def __init__(self, channels: int, *, scale: int, zero_bias: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        fan_in = channels * 9
        self.weight = nn.Parameter(kaiming_uniform((channels, channels, 3, 3), fan_in=fan_in, generator=generator))
        # Taken from the generator in either case, so that both start with the same weights.
        bias = kaiming_uniform((channels,), fan_in=fan_in, generator=generator)
        self.bias = nn.Parameter(torch.zeros_like(bias) if zero_bias else bias)

    def forward(self, maps: Tensor) -> Tensor:
        if self.scale == 1:
            return F.gelu(F.conv2d(maps, self.weight, self.bias, padding=1))
        enlarged = F.interpolate(maps, scale_factor=self.scale, mode="bicubic", align_corners=False)
        convolved = F.gelu(F.conv2d(enlarged, self.weight, self.bias, padding=1))
        return F.interpolate(convolved, size=maps.shape[-2:], mode="bicubic", align_corners=False)


class Mixture(nn.Module):
    """One expert per map, chosen by a noisy gate that starts undecided (zeros).

    Args:
        channels: channels of the map.
        experts: how many; expert i works at scale ×i.
        weighted: multiply the expert's output by its share of the gate's softmax (``switch``).
        zero_bias: the experts' biases start at zero.
        generator: source of the initial weights and of the noise.

    Shape: (B, channels, h, w) to the same.
    """

    def __init__(
        self,
        channels: int,
        *,
        experts: int,
        weighted: bool,
        zero_bias: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.weighted = weighted
        self.generator = generator
        self.gate = nn.Parameter(torch.zeros(channels, experts))
        self.noise = nn.Parameter(torch.zeros(channels, experts))
        self.experts = nn.ModuleList(
            Expert(channels, scale=i + 1, zero_bias=zero_bias, generator=generator) for i in range(experts)
        )
        self.balance: Tensor | None = None
        """cv²(importance) + cv²(load) of the latest forward pass in training."""
        self._epsilon = torch.empty(0)

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy or pickle, without the balance, which belongs to the graph of one forward pass."""
        return {**self.__dict__, "balance": None}

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            maps = maps.float()
            chosen, share = self._route(maps)
            mixed = torch.zeros_like(maps)
            # One count for all experts: on a GPU every decision on where a map goes waits for all earlier work.
            counts = (chosen[:, None] == torch.arange(len(self.experts), device=maps.device)).sum(dim=0).tolist()
            for expert, rows in zip(self.experts, chosen.argsort(stable=True).split(counts), strict=True):
                if len(rows):
                    mixed = mixed.index_add(0, rows, expert(maps[rows]))
            return mixed * share[:, None, None, None] if self.weighted else mixed

    def _route(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen expert of each map and its share of the softmax, both (B,); notes the balance of the batch."""
        pooled = maps.mean(dim=(2, 3))
        clean = pooled @ self.gate
        if not self.training:
            self.balance = None
            chosen = clean.argmax(dim=1)
            return chosen, clean.softmax(dim=1).gather(1, chosen[:, None]).squeeze(1)
        spread = F.softplus(pooled @ self.noise) + NOISE_FLOOR
        logits = clean + self._noise(clean) * spread
        chosen = logits.argmax(dim=1)
        share = logits.softmax(dim=1).gather(1, chosen[:, None]).squeeze(1)
        gates = F.one_hot(chosen, len(self.experts)) * (share[:, None] if self.weighted else 1.0)
        balance = squared_variation(gates.sum(dim=0)) + squared_variation(expert_load(clean, logits, spread))
        if not recomputing():  # the loss has the first pass's; a recomputation only has to save the same tensors
            self.balance = balance
        return chosen, share

    def _noise(self, like: Tensor) -> Tensor:
        """ε, new in each forward pass; a recomputation has the noise of the pass that it repeats."""
        if not recomputing():
            noise = torch.randn(like.shape, generator=self.generator)
            # Pinned, or the host would wait for the copy to the GPU.
            self._epsilon = (
                noise.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else noise.to(like.device)
            )
        return self._epsilon


def expert_load(clean: Tensor, logits: Tensor, spread: Tensor) -> Tensor:
    """Smooth number of maps each expert is chosen for, (experts,): 1701.06538, equations 8-10, with k = 1.

    Args:
        clean: logits without noise, (B, experts).
        logits: with noise.
        spread: standard deviation of the noise.
    """
    if clean.shape[1] == 1:
        return clean.new_full((1,), float(len(clean)))
    best, second = logits.topk(2, dim=1).values.unbind(1)
    # An expert wins if it beats the best of the others.
    rival = torch.where(logits == best[:, None], second[:, None], best[:, None])
    return torch.special.ndtr((clean - rival) / spread).sum(dim=0)


def squared_variation(counts: Tensor) -> Tensor:
    """Squared coefficient of variation, variance (n − 1) over squared mean; 0 for one count."""
    if len(counts) == 1:
        return counts.new_zeros((), dtype=torch.float32)
    counts = counts.float()
    return counts.var() / (counts.mean() ** 2 + 1e-10)


class MixtureOnTokens(nn.Module):
    """z + E_g(z) for the bottleneck tokens z, or E_g(z) alone once a merge has folded z into the backbone.

    Args:
        mixture: the routed experts.
        layout: how tokens form maps at this site.
        scope: ``window`` or ``image``.

    Shape: (…, r) tokens as they come at the site, to the same.
    """

    def __init__(self, mixture: Mixture, *, layout: TokenLayout, scope: str) -> None:
        super().__init__()
        self.mixture = mixture
        self.layout = layout
        self.scope = scope
        self.linear_folded = False

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.layout.on_map(tokens, self.mixture, scope=self.scope, prefix_function=torch.zeros_like)
        return mixed if self.linear_folded else tokens + mixed

    def linear_part(self) -> Tensor:
        """The identity, (r, r)."""
        return torch.eye(len(self.mixture.gate), device=self.mixture.gate.device)

    def drop_linear_part(self) -> bool:
        """Keep E_g alone; since it always remains, the answer is True."""
        self.linear_folded = True
        return True


class ConvLoRA(LoRA):
    """Conv-LoRA; see the module."""

    name = "convlora"
    config_class = ConvLoRAConfig
    config: ConvLoRAConfig

    def _core(self, layout: TokenLayout) -> nn.Module:
        mixture = Mixture(
            self.config.rank,
            experts=self.config.experts,
            weighted=self.config.gate == "switch",
            zero_bias=self.config.expert_bias == "zero",
            generator=self.generator,
        )
        return MixtureOnTokens(mixture, layout=layout, scope=self.config.scope)

    def mixtures(self) -> dict[str, Mixture]:
        """Every mixture by site."""
        return {site: a.core.mixture for site, a in self.adapters().items() if isinstance(a.core, MixtureOnTokens)}

    def auxiliary_loss(self) -> Tensor | None:
        terms = [mixture.balance for mixture in self.mixtures().values() if mixture.balance is not None]
        return self.config.balance * torch.stack(terms).sum() if terms else None

    def may_idle(self, name: str) -> bool:
        return ".mixture.experts." in name
