"""BitFit (2106.10199): only the encoder's biases train.

Nothing is inserted: the trained biases are the backbone's own, so the model is its own merge.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from methods.base import MergeMode, MergeReport, Method
from methods.configs import BitFitConfig
from methods.parts.deviation import deviation, predictions
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

    def merge(
        self, mode: MergeMode = "exact", *, calibration: Sequence[Tensor] = (), held_out: Sequence[Tensor] = ()
    ) -> MergeReport:
        if mode not in self.merge_modes:
            return super().merge(mode, calibration=calibration, held_out=held_out)
        before = predictions(self.segmenter, held_out)
        encoder = self.segmenter.get_submodule("encoder")
        folded = tuple(f"encoder.{name}" for name, parameter in encoder.named_parameters() if parameter.requires_grad)
        encoder.requires_grad_(False)
        largest, relative = deviation(before, predictions(self.segmenter, held_out))
        return MergeReport(
            mode=mode, folded=folded, left={}, extra_parameters=0, max_deviation=largest, relative_deviation=relative
        )
