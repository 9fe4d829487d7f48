"""Decoder only: the encoder stays frozen; mask decoder and head train. The floor of every comparison."""

from __future__ import annotations

from harness.methods.base import Method
from harness.methods.configs import DecoderOnlyConfig
from harness.methods.parts.sites import Adaptable


class DecoderOnly(Method):
    """Adds nothing to the encoder. No gradient passes it, so its image embeddings can be cached."""

    name = "decoder"
    config_class = DecoderOnlyConfig

    def _insert(self, segmenter: Adaptable) -> None:
        return None
