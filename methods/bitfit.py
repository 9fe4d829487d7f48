"""BitFit (2106.10199): only the encoder's biases train.

Nothing is inserted: the trained biases are the backbone's own, so the model is its own merge.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from methods.base import MergeMode, Method
from methods.configs import BitFitConfig
from methods.parts.folding import Folding
from methods.parts.sites import Adaptable, block_sites


class BitFit(Method):
    """BitFit; see the module."""

    name = "bitfit"
    config_class = BitFitConfig
    config: BitFitConfig
    merge_modes = ("exact",)

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        chosen: list[nn.Module] = [place.block for place in block_sites(encoder, self.config.blocks)]
        trained = {id(p) for block in chosen for p in block.parameters()}
        if self.config.outside:
            inside = {id(p) for p in encoder.blocks.parameters()}
            trained |= {id(p) for p in encoder.parameters()} - inside
        for name, parameter in encoder.named_parameters():
            if name.endswith(".bias") and id(parameter) in trained:
                parameter.requires_grad_(True)

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> Folding:
        encoder = self.segmenter.get_submodule("encoder")
        trained = [f"encoder.{name}" for name, parameter in encoder.named_parameters() if parameter.requires_grad]
        encoder.requires_grad_(False)
        return Folding(folded=trained)
