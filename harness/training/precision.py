"""The precision of a forward pass."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from harness.protocols.card import Protocol

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def without_tf32() -> None:
    """Make ``precision: fp32`` mean it on a GPU: torch's convolutions round to TF32's ten bits there by default and its matrix products do
    not, so that methods with convolutions would be compared at another precision than those without."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def autocast(protocol: Protocol, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A forward pass in the protocol's precision; fp32 is torch's own."""
    if protocol.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[protocol.precision])
