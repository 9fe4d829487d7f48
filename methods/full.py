"""Full fine-tuning: the whole encoder trains besides mask decoder and head; prompt encoder and IoU head stay frozen.

A pretrained encoder may need a lower rate than a decoder that starts from random weights: ``encoder_lr`` (ours; no paper says).
"""

from __future__ import annotations

from harness.methods.base import WEIGHTS, Method, ParameterGroup
from harness.methods.configs import FullConfig
from harness.methods.parts.sites import Adaptable


class Full(Method):
    """Adds nothing and freezes nothing of the encoder."""

    name = "full"
    config_class = FullConfig
    config: FullConfig

    def _insert(self, segmenter: Adaptable) -> None:
        segmenter.encoder.requires_grad_(True)

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group, or two where the encoder has a rate of its own."""
        (group,) = super().parameter_groups()
        rate = self.config.encoder_lr
        if rate is None:
            return [group]
        encoder = {name: parameter for name, parameter in group.named.items() if name.startswith("encoder.")}
        rest = {name: parameter for name, parameter in group.named.items() if name not in encoder}
        return [
            ParameterGroup(role=WEIGHTS, named=encoder, lr=rate),
            ParameterGroup(role=WEIGHTS, named=rest, lr=group.lr),
        ]
