"""LoRA (2106.09685): y = W x + b + (α/r) · B A x, with W and b frozen.

A starts Kaiming-uniform (a = √5), B at zero, as the SAM papers release it (Conv-LoRA, 2401.17868). On the fused qkv of a ViT the default
is one adapter for all three outputs, as they released; ``sites=q,v`` gives each slice its own. No dropout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from methods.base import Method
from methods.cell import kaiming_uniform
from methods.configs import LoRAConfig
from methods.lowrank import AdaptedLinear, LowRank
from methods.placement import MethodError, parse_sites
from methods.sites import Adaptable, BlockSite, TokenLayout, block_sites

_SLICES = {"q": 0, "k": 1, "v": 2}


def modules_of(sites: str) -> dict[str, list[str]]:
    """The linear layers of a block that ``sites`` names, with the adapters that each gets."""
    modules: dict[str, list[str]] = {}
    for site in parse_sites(sites):
        for module in ("mlp_in", "mlp_out") if site == "mlp" else ("qkv" if site in _SLICES else site,):
            modules.setdefault(module, []).append(module if site == "mlp" else site)
    return modules


class LowRankMethod(Method):
    """What LoRA and its descendants share: low-rank updates on the linear layers of chosen blocks. Subclasses choose scale and core."""

    def _insert(self, segmenter: Adaptable) -> None:
        self.layers: dict[str, AdaptedLinear] = {}
        for place in block_sites(segmenter.encoder, self.config.blocks):  # type: ignore[attr-defined]
            for module, names in modules_of(self.config.sites).items():  # type: ignore[attr-defined]
                layer = self._adapt(place, module, names)
                place.replace(module, layer)
                self.layers[f"encoder.{place.name}.{module}"] = layer

    def _adapt(self, place: BlockSite, module: str, names: Sequence[str]) -> AdaptedLinear:
        base = place.get(module)
        if not isinstance(base, nn.Linear):
            raise MethodError(f"{self.name} adapts linear layers, and {module} of block {place.index} is a {type(base).__name__}")
        third = base.out_features // 3
        adapters = {}
        for name in names:
            outputs = third if name in _SLICES else base.out_features
            adapters[name] = self._low_rank(base, outputs=outputs, start=_SLICES.get(name, 0) * third, layout=place.layout_at(module))
        return AdaptedLinear(base, adapters)

    def _low_rank(self, base: nn.Linear, *, outputs: int, start: int, layout: TokenLayout) -> LowRank:
        rank: int = self.config.rank  # type: ignore[attr-defined]
        down = kaiming_uniform((rank, base.in_features), fan_in=base.in_features, generator=self.generator)
        core = self._core(layout)
        adapter = LowRank(down=down, up=torch.zeros(outputs, rank), scale=self._scale(), start=start, core=core)
        return adapter.to(base.weight.device)

    def _scale(self) -> float:
        """Factor of the update."""
        raise NotImplementedError

    def _core(self, layout: TokenLayout) -> nn.Module | None:
        """What stands between down- and up-projection, None for nothing."""
        return None

    def adapters(self) -> dict[str, LowRank]:
        """Every adapter by site, such as ``encoder.blocks.0.qkv`` or ``encoder.blocks.0.qkv.q`` where a layer has several."""
        found = {}
        for name, layer in self.layers.items():
            for site, adapter in layer.adapters.items():
                found[name if len(layer.adapters) == 1 and name.endswith(site) else f"{name}.{site}"] = adapter
        return found  # type: ignore[return-value]


class LoRA(LowRankMethod):
    """LoRA; see the module."""

    name = "lora"
    config_class = LoRAConfig

    def _scale(self) -> float:
        config: LoRAConfig = self.config  # type: ignore[assignment]
        return config.alpha / config.rank
