"""What methods on linear layers share: their sites, in chosen blocks or in SAM's mask decoder, and a layer with changed weights.

That layer is y = W′ x + b with W′ = f(W), for methods that change the weights themselves. It computes W′ once per pass, for the one
product that the frozen layer needs anyway: tokens cost nothing extra, backward needs W′ alone, and a merge keeps W′.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, MergeMode, Method, PlacedConfig
from harness.methods.parts.merging import MergeReport, fold_layers
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, apart, parse_sites
from harness.methods.parts.sites import (
    SLICES,
    Adaptable,
    AdaptableDecoder,
    BlockSite,
    DecoderSite,
    block_sites,
    decoder_sites,
)


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


def modules_of(shape: BlockShape, sites: str) -> dict[str, list[str]]:
    """The linear layers of a block that ``sites`` names, with the adapters that each gets."""
    modules: dict[str, list[str]] = {}
    for module, part, _, _ in layers_of(shape, sites):
        modules.setdefault(module, []).append(part)
    return modules


class LinearMethod(Method):
    """A method that replaces linear layers by layers of its own."""

    config_class = LinearsConfig
    config: LinearsConfig

    def _insert(self, segmenter: Adaptable) -> None:
        config, encoder = self.config, segmenter.encoder
        for target in block_sites(encoder, config.blocks):
            shape, sites = encoder.shape.blocks[target.index], config.encoder_sites
            for module, names in modules_of(shape, sites).items() if sites else ():
                self._replace(target, module, names)
        for part, leaf in decoder_sites(cast(nn.Module, segmenter)) if config.freezes_decoder else ():
            self._replace(part, leaf, [leaf])

    @abstractmethod
    def _replace(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> None:
        """Replace ``module`` by the method's layer, with an adapter for each of ``names``."""

    def _linear(self, target: BlockSite | DecoderSite, module: str) -> nn.Linear:
        base = target.get(module)
        if not isinstance(base, nn.Linear):
            kind = type(base).__name__
            raise MethodError(f"{self.name} adapts linear layers, and {module} of block {target.index} is a {kind}")
        return base

    def _trained_besides(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        if self.config.freezes_decoder and isinstance(segmenter, AdaptableDecoder):
            return segmenter.new_parameters()
        return super()._trained_besides(segmenter)


def rows_of(target: BlockSite | DecoderSite, name: str) -> Tensor | None:
    """Which outputs of a fused qkv the adapter ``name`` reaches, None for all of its layer."""
    return target.outputs(name) if name in SLICES and isinstance(target, BlockSite) else None


class Change(nn.Module):
    """What is learnt of W′ = f(W): call it with W (rows, inputs) for W′ of that shape.

    Args:
        rows: which outputs of the layer it reaches, None for all.
    """

    rows: Tensor | None

    def __init__(self, *, rows: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)


class Reweighted(nn.Module):
    """A frozen linear layer that works with changed weights.

    Args:
        base: the backbone's own layer; its weights are not touched.
        adapters: by site name; outputs that none of them reaches stay as they are.
    """

    tokens_alone = True

    def __init__(self, base: nn.Linear, adapters: Mapping[str, Change]) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):  # W′ is as exact as W, and so is a merge
            weight = self.weight()
        return F.linear(tokens, weight, self.base.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The base with W′ for its weights."""
        self.base.weight.copy_(self.weight())
        return self.base

    def weight(self) -> Tensor:
        """W′, (outputs, inputs)."""
        weight = whole = self.base.weight
        for adapter in self.adapters.values():
            rows: Tensor | None = adapter.rows  # type: ignore[assignment]
            weight = adapter(weight) if rows is None else weight.index_copy(0, rows, adapter(whole[rows]))
        return weight


class ReweightingMethod(LinearMethod):
    """A method whose layers are `Reweighted`; subclasses say what a `Change` is."""

    merge_modes: tuple[MergeMode, ...] = ("exact",)
    _layers: list[tuple[BlockSite | DecoderSite, str]]

    def _insert(self, segmenter: Adaptable) -> None:
        self._layers = []
        super()._insert(segmenter)

    def _replace(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> None:
        base = self._linear(target, module)
        rows = {name: rows_of(target, name) for name in names}
        weights = {
            name: base.weight if selected is None else base.weight[selected.to(base.weight.device)]
            for name, selected in rows.items()
        }
        changes = {name: self._change(weights[name].detach(), rows=rows[name]) for name in names}
        target.replace(module, Reweighted(base, changes).to(base.weight.device))
        self._layers.append((target, module))

    @abstractmethod
    def _change(self, weight: Tensor, *, rows: Tensor | None) -> Change:
        """What is learnt for ``weight`` (outputs, inputs), which are the layer's ``rows``."""

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        return fold_layers(self._layers)
