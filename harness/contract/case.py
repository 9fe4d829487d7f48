"""What the contract is checked on: a method with a configuration on a tiny backbone, built afresh for every check."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from harness.methods.base import Method
from harness.methods.configs import MethodConfig
from harness.methods.parts.placement import BackboneShape
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoders import LABELLING, Decoder
from harness.models.segmenter import Segmenter, upsample
from harness.protocols.card import Protocol
from harness.training.losses import build_loss

IMAGE_SIZE = 64
"""A grid of 4 tokens a side, which tiny's windows of 3 do not divide: padding is part of every check."""
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class ContractCase:
    """A method to be checked.

    Args:
        method: the class.
        config: its configuration.
        backbone: ``tiny`` (SAM) or ``tiny_timm``.
        decoder: see `harness.models.decoders`. Its dropout is off: it would draw from torch's own generator, which
            training seeds and the contract forbids to methods.
    """

    method: type[Method]
    config: MethodConfig
    backbone: str = "tiny"
    decoder: Decoder = "sam"
    images: Tensor = field(init=False, repr=False)
    targets: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        object.__setattr__(self, "images", torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator))
        object.__setattr__(
            self, "targets", torch.rand(4, 1, IMAGE_SIZE // 4, IMAGE_SIZE // 4, generator=generator).round()
        )

    @property
    def labels(self) -> bool:
        """Whether an image has one label, of two, instead of a mask."""
        return self.decoder in LABELLING

    @property
    def shape(self) -> BackboneShape:
        return backbone_shape(self.backbone, IMAGE_SIZE)

    def plain(self, *, recompute: bool = False) -> Segmenter:
        """The segmenter without the method; the same weights every time."""
        segmenter = build_segmenter(
            self.backbone,
            task="classification" if self.labels else "binary",
            image_size=IMAGE_SIZE,
            head_seed=11,
            activation_checkpointing=recompute,
            decoder=self.decoder,
        )
        for part in segmenter.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return segmenter

    def attached(self, *, recompute: bool = False, seed: int = 0) -> tuple[Segmenter, Method]:
        segmenter = self.plain(recompute=recompute)
        method = self.method(self.config, seed=seed)
        method.attach(segmenter)
        return segmenter, method

    def trained(self, *, seed: int = 0) -> tuple[Segmenter, Method]:
        """Attached and trained for a few steps at a high rate, so that the adapter acts."""
        segmenter, method = self.attached(seed=seed)
        train_steps(segmenter, method, self, steps=STEPS)
        return segmenter, method

    def loss(self, segmenter: Segmenter, method: Method) -> Tensor:
        """Task loss plus the method's auxiliary loss on the subject's images."""
        output = segmenter(self.images)
        if self.labels:
            loss = cross_entropy(output.masks, self.targets[:, 0, :1, :1].long())
        elif output.classes is None:
            masks = upsample(output.masks, (self.targets.shape[-2], self.targets.shape[-1]))  # SAM's have that size
            loss = binary_cross_entropy_with_logits(masks, self.targets)
        else:
            scored = build_loss(Protocol(name="contract", decoder=self.decoder), task="binary", num_classes=2)
            loss = scored(output, self.targets[:, 0].byte())
        extra = method.auxiliary_loss()
        return loss if extra is None else loss + extra


def train_steps(segmenter: Segmenter, method: Method, subject: ContractCase, *, steps: int) -> list[float]:
    """Train what the method's groups name, all roles on every step; returns the losses."""
    segmenter.train()
    if not method.config.trains:
        return [float(subject.loss(segmenter, method).detach())]
    optimiser = torch.optim.AdamW(grouped_parameters(method).values(), lr=1e-2, weight_decay=1e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = subject.loss(segmenter, method)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def grouped_parameters(method: Method) -> dict[str, nn.Parameter]:
    """Everything in the method's parameter groups, by full name."""
    return {name: parameter for group in method.parameter_groups() for name, parameter in group.named.items()}


@torch.no_grad()
def logits(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Mask logits in evaluation mode."""
    segmenter.eval()
    return segmenter(images).masks
