"""Full fine-tuning: the whole encoder trains besides mask decoder and head; prompt encoder and IoU head stay frozen."""

from __future__ import annotations

from methods.base import Method
from methods.configs import FullConfig
from methods.sites import Adaptable


class Full(Method):
    """Adds nothing and freezes nothing of the encoder."""

    name = "full"
    config_class = FullConfig

    def _insert(self, segmenter: Adaptable) -> None:
        segmenter.encoder.requires_grad_(True)
