"""LoRA (2106.09685): y = W x + b + (α/r) · B A x, with W and b frozen.

A starts Kaiming-uniform (a = √5), B at zero, as the SAM papers release it (Conv-LoRA, 2401.17868). On the fused qkv of
a ViT the default is one adapter for all three outputs, as in their code; ``sites=q,v`` gives each slice its own. No
dropout. Option: rsLoRA's scale α/√r, see `LoRAConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.methods.base import Count, MergeMode, Positive
from harness.methods.linears import LinearMethod, LowRankConfig, outputs_of
from harness.methods.parts.layers import kaiming_uniform
from harness.methods.parts.lowrank import AdaptedLinear, LowRank
from harness.methods.parts.merging import (
    AffineUpdate,
    MergeReport,
    fit_cores,
    fold_calibrated,
    fold_exactly,
)
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import BlockSite, DecoderSite, TokenLayout


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(LowRankConfig):
    """LoRA (2106.09685) as the SAM papers use it.

    Args:
        alpha: scale is alpha / rank; 32 as released by Conv-LoRA.
        scaling: ``lora`` divides alpha by the rank, ``rslora`` by its root (2312.03732), so that high ranks learn as fast.
    """

    alpha: Positive = 32.0
    scaling: Literal["lora", "rslora"] = "lora"

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / (self.rank if self.scaling == "lora" else self.rank**0.5)


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


class LowRankMethod(LinearMethod):
    """What LoRA and its descendants share: low-rank updates on the linear layers of chosen blocks.

    Subclasses choose the scale and the core, that is, what stands between down- and up-projection.
    """

    config_class = LowRankConfig
    config: LowRankConfig
    merge_modes: tuple[MergeMode, ...] = ("exact", "calibrated")

    def _adapt(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> AdaptedLinear:
        base, layout = self._linear(target, module), target.layout_at(module)
        return AdaptedLinear(base, {name: self._low_rank(base, outputs_of(target, name), layout) for name in names})

    def _low_rank(self, base: nn.Linear, rows: Tensor | None, layout: TokenLayout) -> LowRank:
        """The update of the outputs ``rows``, None for all."""
        rank, outputs = self.config.rank, base.out_features if rows is None else len(rows)
        down = kaiming_uniform((rank, base.in_features), fan_in=base.in_features, generator=self.generator)
        core = self._core(layout)
        adapter = LowRank(down=down, up=torch.zeros(outputs, rank), scale=self._scale(), rows=rows, core=core)
        return adapter.to(base.weight.device)

    def _scale(self) -> float:
        """Factor of the update."""
        raise NotImplementedError

    def _core(self, layout: TokenLayout) -> nn.Module | None:
        """What stands between down- and up-projection, None for nothing."""
        return None

    def adapters(self) -> dict[str, LowRank]:
        """Every adapter by site, such as ``blocks.0.qkv`` or, on a slice, ``blocks.0.qkv.q``; a merge removes them."""
        return {site: adapter for layer in self._layers for site, adapter in layer.adapters().items()}

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        if mode == "calibrated" and any(adapter.core is not None for adapter in self.adapters().values()):
            done = fold_calibrated(self.segmenter, self._layers, calibration)
        else:  # without a core there is nothing to fit
            done = self._fold_convolutions() if mode == "conv" else fold_exactly(self._layers)
        self._layers = [layer for layer in self._layers if layer.adapters()]
        left = [p for adapter in self.adapters().values() for p in adapter.requires_grad_(False).parameters()]
        done.extra_parameters = sum(p.numel() for p in left)
        return done

    @torch.no_grad()
    def affine_updates(self, calibration: Sequence[Tensor]) -> list[AffineUpdate]:
        """s · B · (M A x + c) of every layer with what `fit_cores` gives, the adapters of one layer side by side. Nothing is changed, and
        without a core no image is read. Raises MethodError: see `fit_cores`; or it is merged already.
        """
        if self._merged:
            raise MethodError(f"{self.name} is merged already, so its updates are gone; load its state anew")
        fitted, updates = fit_cores(self.segmenter, self._layers, calibration), []
        for layer in self._layers:
            downs, ups = [], []
            offset = torch.zeros(layer.adapted.base.out_features, dtype=torch.float64)
            for site, adapter in layer.adapters().items():
                matrix, shift = (tensor.double() for tensor in fitted[site])
                ups.append(adapter.spread_up(len(offset)).double().cpu())
                downs.append(matrix @ adapter.down.double().cpu())
                offset += ups[-1] @ shift
            path = f"{layer.target.name}.{layer.target.path(layer.module)}"
            down, up = torch.cat(downs).float(), torch.cat(ups, dim=1).float()
            updates.append(AffineUpdate(layer=path, down=down, up=up, offset=offset.float()))
        return updates

    def _fold_convolutions(self) -> MergeReport:
        """The merge mode ``conv``; methods that have it implement this."""
        raise NotImplementedError


class LoRA(LowRankMethod):
    """LoRA; see the module."""

    name = "lora"
    config_class = LoRAConfig
    config: LoRAConfig

    def _scale(self) -> float:
        return self.config.scale


class SAMed(LoRA):
    """SAMed (2304.13785): LoRA of rank 4 on queries and values, not scaled; see `SAMedConfig`. Deviation: the mask decoder trains as for
    every method of this comparison (SAMed tunes it whole, with prompts)."""

    name = "samed"
    config_class = SAMedConfig
