"""The check of every attached method on any backbone: it starts as it declares, and trains as many parameters as its configuration says.

A run makes this check once, when its method is attached; the contract makes it on the tiny backbones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.models.segmenter import Segmenter


class Violation(AssertionError):
    """A method breaks a clause; the message says which value was found."""


def require(truth: bool, message: str) -> None:  # noqa: FBT001 - reads like an assertion
    """Raise `Violation` with ``message`` unless ``truth``."""
    if not truth:
        raise Violation(message)


@torch.no_grad()
def logits(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Mask logits in evaluation mode."""
    segmenter.eval()
    return segmenter(images).masks


TOLERANCE = 1e-3
"""Largest deviation on a random image, relative to the largest logit. Rounding stays a thousand times below it; a method that does not
start as it declares is usually far above."""


def require_start(method: Method, before: Tensor, after: Tensor, *, tolerance: float) -> None:
    """Require that logits with the attached method (``after``) equal the plain segmenter's (``before``), or are declared to differ.

    Raises:
        Violation: they differ by more than ``tolerance`` without such a declaration, or are not finite.
    """
    largest = float((after - before).abs().max())
    require(math.isfinite(largest), "logits are not finite after attaching")
    same = largest <= tolerance or not method.identity_at_init
    require(same, f"declares identity at init, but logits move by {largest:.1e}")


def require_count(method: Method, encoder: nn.Module, shape: BackboneShape) -> None:
    """Require that the encoder trains as many parameters as the closed form says, and some if it trains. Raises Violation: it does not."""
    attached = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    closed_form = method.config.encoder_parameters(shape)
    require(attached == closed_form, f"{attached} encoder parameters train, but the closed form says {closed_form}")
    require(attached > 0 or not method.config.trains_encoder, "nothing in the encoder trains")


def attach_checked(
    method: Method, segmenter: Segmenter, *, label: str, shape: BackboneShape, device: torch.device
) -> None:
    """Attach the method on the CPU, with both checks; a random image passes through the segmenter before and after, on ``device``.

    Raises:
        MethodError: the method cannot be attached, or one of the checks fails; the message begins with the run's ``label``.
    """
    image = torch.randn(1, 3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(0)).to(device)
    training = segmenter.training
    before = logits(segmenter.to(device), image)
    segmenter.to("cpu").train(training)
    method.attach(segmenter)
    try:
        require_count(method, segmenter.encoder, shape)
        after = logits(segmenter.to(device), image)
        require_start(method, before, after, tolerance=TOLERANCE * max(float(before.abs().max()), 1e-6))
    except Violation as error:
        raise MethodError(f"{label}: {error}") from error
    segmenter.to("cpu").train(training)
