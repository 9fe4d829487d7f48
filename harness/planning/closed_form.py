"""How many parameters a method trains, computed from closed forms of method and backbone without building a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.registry import method_config


def trained_parameters(method: str, options: Mapping[str, Any], backbone: str) -> int:
    """Of a method on ``backbone``, mask decoder of the binary task included; imports no torch."""
    from harness.models.catalog import backbone_shape, trained_in_decoder

    config = method_config(method, options)
    return int(config.encoder_parameters(backbone_shape(backbone))) + trained_in_decoder(
        config, backbone, task="binary"
    )
