"""DoRA (2402.09353): y = m ⊙ (W + s B A) x / ‖W + s B A‖ + b, the norm taken over the inputs of each output.

The magnitude m (one number an output) starts at ‖W‖, so that with B = 0 the start is the identity; direction and
magnitude then learn apart. The norm is a constant in backward (equation 11, section 4.3), as HF peft does. The update is
linear per token, so that all of it folds into W. Deviations: on slices of a fused qkv (``sites=q,v``) each slice has a
magnitude of its own for its own outputs; the magnitude has no weight decay, like every one-dimensional parameter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import MergeMode
from harness.methods.linears import LinearMethod
from harness.methods.lora import LoRA, LoRAConfig
from harness.methods.parts.lowrank import AdaptedLinear, LowRank
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.sites import BlockSite, DecoderSite


@dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """DoRA (2402.09353): LoRA on the direction of each output's weights, and a learnt magnitude for each output."""

    def linear_parameters(self, inputs: int, outputs: int) -> int:
        return super().linear_parameters(inputs, outputs) + outputs


class Decomposed(AdaptedLinear):
    """An adapted linear layer whose outputs are rescaled to a learnt magnitude.

    Args:
        base: the backbone's own layer, (outputs, inputs).
        adapters: by site name; outputs that none of them reaches stay as they are.
    """

    def __init__(self, base: nn.Linear, adapters: dict[str, LowRank]) -> None:
        super().__init__(base, adapters)
        norms = base.weight.detach().norm(dim=1)
        self.magnitudes = nn.ParameterDict(
            {name: nn.Parameter(norms[adapter.reached].clone()) for name, adapter in adapters.items()}
        )

    def forward(self, tokens: Tensor) -> Tensor:
        bias, gain = self.base.bias, self.gain()
        linear = super().forward(tokens)
        # In the layer's own precision: a bias in float32 would promote what follows.
        scaled = linear * gain.to(linear.dtype)
        return scaled if bias is None else scaled + (bias * (1 - gain)).to(linear.dtype)

    def gain(self) -> Tensor:
        """m / ‖W + s B A‖ of every output, (outputs,); 1 where no adapter reaches. No gradient passes the norm."""
        gain = torch.ones_like(self.base.weight[:, 0])
        with torch.no_grad():
            norms = self.updated().norm(dim=1)
        for name, magnitude in self.magnitudes.items():
            adapter: LowRank = self.adapters[name]  # type: ignore[assignment]
            share = magnitude / norms[adapter.reached]
            gain = share if adapter.rows is None else gain.index_copy(0, adapter.rows, share)
        return gain

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The base with gain and update in its own weights."""
        self.base.weight.copy_(self.gain()[:, None] * self.updated())
        return self.base

    def updated(self) -> Tensor:
        """W + s B A, (outputs, inputs)."""
        weight = self.base.weight
        for adapter in self.adapters.values():
            weight = weight + F.linear(adapter.spread_up(len(weight)), adapter.down.t())  # type: ignore[operator]
        return weight


class DoRA(LoRA):
    """DoRA; see the module."""

    name = "dora"
    config_class = DoRAConfig
    merge_modes = ("exact",)
    affine_updates = None  # type: ignore[assignment]  # the magnitudes rescale W as well, which is not a low-rank update

    def _adapt(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> AdaptedLinear:
        adapted = super()._adapt(target, module, names)
        return Decomposed(adapted.base, dict(adapted.adapters.items()))  # type: ignore[arg-type]

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        return LinearMethod._fold(self, mode, calibration)  # a layer folds whole, magnitudes and all
