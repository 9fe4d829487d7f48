"""What methods on linear layers share: which layers they adapt, in chosen blocks or in SAM's mask decoder, and how they are counted."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from harness.methods.base import Count, MergeMode, Method, PlacedConfig
from harness.methods.parts.merging import Layer, MergeReport, fold_layers
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
        sites: which linears (default: the fused qkv, one adapter per block, as Conv-LoRA released). ``decoder``, alone or
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


class LinearMethod(Method):
    """A method that replaces linear layers by layers of its own."""

    config_class = LinearsConfig
    config: LinearsConfig
    _layers: list[Layer]

    def _insert(self, segmenter: Adaptable) -> None:
        self._layers = []
        config, encoder, sites = self.config, segmenter.encoder, self.config.encoder_sites
        for target in block_sites(encoder, config.blocks):
            layers = layers_of(encoder.shape.blocks[target.index], sites) if sites else []
            for module, parts in itertools.groupby(layers, key=lambda layer: layer[0]):
                self._replace(target, module, [part for _, part, _, _ in parts])
        for part, leaf in decoder_sites(cast(nn.Module, segmenter)) if config.freezes_decoder else ():
            self._replace(part, leaf, [leaf])

    def _replace(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> None:
        adapted = self._adapt(target, module, names)
        target.replace(module, adapted)
        self._layers.append(Layer(target=target, module=module, adapted=adapted))

    @abstractmethod
    def _adapt(self, target: BlockSite | DecoderSite, module: str, names: Sequence[str]) -> nn.Module:
        """The method's layer in place of ``module``, with an adapter for each of ``names``."""

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        layers, self._layers = self._layers, []
        return fold_layers(layers)

    def _linear(self, target: BlockSite | DecoderSite, module: str) -> nn.Linear:
        return cast(nn.Linear, target.get(module))

    def _trained_besides(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        if self.config.freezes_decoder and isinstance(segmenter, AdaptableDecoder):
            return segmenter.new_parameters()
        return super()._trained_besides(segmenter)


def outputs_of(target: BlockSite | DecoderSite, name: str) -> Tensor | None:
    """Which outputs of a fused qkv the adapter ``name`` reaches, None for all of its layer."""
    return target.outputs(name) if name in SLICES and isinstance(target, BlockSite) else None
