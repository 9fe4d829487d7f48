"""BitFit (2106.10199): only the encoder's biases train. LN-Tune (2304.01917): only the scales and shifts of its norms.

Nothing is inserted: the trained parameters are the backbone's own, so there is nothing to merge. Those outside the blocks train too:
in the patch embedding, the final norm (timm) and the neck's norms, which the ViT of LN-Tune's paper does not have. Batch norms (TinyViT)
stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from harness.methods.base import MergeMode, Method, PlacedConfig
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.placement import BackboneShape, NormedConvolution
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(PlacedConfig):
    """BitFit (2106.10199): the encoder's biases; inside its blocks, those of the chosen ``blocks`` alone."""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        widths = 6 if shape.qkv_bias else 3  # qkv (3), proj, second norm, the MLP's second linear
        blocks = sum(
            b.entering + (widths + bool(b.inputs)) * b.dim + b.mlp_dim + _shifts(b.convolutions)
            for b in self.placed(shape)
        )
        embedding = _shifts(shape.stem) or shape.embedded * shape.patch_bias
        around = embedding + shape.dim * (shape.pre_norm + shape.final_norm) + shape.neck_biases
        return blocks + around

    def added_parameters(self, shape: BackboneShape) -> int:
        return 0

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig(BitFitConfig):
    """LayerNorm tuning (2304.01917): the scales and shifts of the encoder's norms, including those outside the blocks: the final one
    (timm), the neck's two (SAM), one before them (CLIP)."""

    def encoder_parameters(self, shape: BackboneShape) -> int:
        around = 2 * shape.dim * (shape.pre_norm + shape.final_norm) + 2 * shape.neck_scales
        return sum(2 * (block.entering + block.dim) for block in self.placed(shape)) + around

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0 if shape.pre_norm else PlacedConfig.gradient_from(self, shape)


def _shifts(convolutions: Sequence[NormedConvolution]) -> int:
    """Biases of the batch norms."""
    return sum(convolution.outputs for convolution in convolutions)


class BitFit(Method):
    """BitFit; see the module. A method that trains other parameters of the backbone overrides `_trains`."""

    name = "bitfit"
    config_class = BitFitConfig
    config: BitFitConfig
    merge_modes = ("exact",)

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        chosen = {module for target in block_sites(encoder, self.config.blocks) for module in target.block.modules()}
        chosen |= set(encoder.modules()) - set(encoder.blocks.modules())
        for module in chosen:
            for name, parameter in module.named_parameters(recurse=False):
                if self._trains(module, name):
                    parameter.requires_grad_(True)

    def _trains(self, module: nn.Module, name: str) -> bool:
        """Whether ``name``, one of the module's own parameters, trains."""
        return name == "bias"

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        encoder = self.segmenter.get_submodule("encoder")
        trained = [f"encoder.{name}" for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        encoder.requires_grad_(False)
        return MergeReport(folded=trained)


class LayerNormTuning(BitFit):
    """LayerNorm tuning; see the module."""

    name = "layernorm"
    config_class = LayerNormConfig

    def _trains(self, module: nn.Module, name: str) -> bool:
        # A scale is the one weight with a single axis, whatever the class of the norm (SAM's neck has its own).
        weight = getattr(module, "weight", None)
        return isinstance(weight, nn.Parameter) and weight.dim() == 1 and not hasattr(module, "running_mean")
