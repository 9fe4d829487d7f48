"""Adapter (Houlsby et al., 1902.00751): y + up(GELU(down(y))) for the output y of attention and for that of the MLP,
before they join the residual stream.

Both projections start from a normal of standard deviation 1e-2, truncated at two of them, and zero biases, as in
the paper: near the identity but not equal to it, which is a declared deviation. Deviations: the paper also trains the
layer norms; here, as in Conv-LoRA's comparison, the adapters alone train. In a timm ViT with layer scale the adapter
comes before the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig, Positive
from harness.methods.parts.layers import Bottleneck
from harness.methods.parts.placement import BackboneShape, MethodError, parse_sites
from harness.methods.parts.sites import Adaptable, block_sites

_FOLLOWED = {"proj": "proj", "mlp": "mlp_out"}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(PlacedConfig):
    """Houlsby adapter (1902.00751): a bottleneck with a residual after attention and after the MLP.

    Args:
        sites: what an adapter follows: ``proj`` (attention), ``mlp``, or both.
        hidden: width of the bottleneck; 2 meets the parameter budget of LoRA r = 3 (Conv-LoRA's comparison).
        std: standard deviation of the truncated normal that both projections start from, 1e-2 (paper).
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


class Adapted(nn.Module):
    """y + adapter(y) with y = base(x).

    Args:
        base: the layer whose output is adapted, frozen.
        adapter: the bottleneck.
    """

    def __init__(self, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, tokens: Tensor) -> Tensor:
        output = self.base(tokens)
        return output + self.adapter(output)


class Adapter(Method):
    """Adapter; see the module."""

    name = "adapter"
    config_class = AdapterConfig
    config: AdapterConfig
    identity_at_init = False

    def _insert(self, segmenter: Adaptable) -> None:
        for target in block_sites(segmenter.encoder, self.config.blocks):
            for site in parse_sites(self.config.sites):
                base = target.get(_FOLLOWED[site])
                device = next(base.parameters()).device
                target.replace(_FOLLOWED[site], Adapted(base, self._bottleneck(target.dim).to(device)))

    def _bottleneck(self, dim: int) -> Bottleneck:
        hidden = self.config.hidden
        return Bottleneck(down=self._near_zero(hidden, dim), up=self._near_zero(dim, hidden), activation=F.gelu)

    def _near_zero(self, outputs: int, inputs: int) -> Tensor:
        std = self.config.std
        return nn.init.trunc_normal_(
            torch.empty(outputs, inputs), std=std, a=-2 * std, b=2 * std, generator=self.generator
        )
