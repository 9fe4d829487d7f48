"""The case that a check of the contract gets: a method with a configuration on a tiny backbone, in a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from harness.contract.start import Violation
from harness.methods.base import Method, MethodConfig
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoders import LABELLING, Decoder
from harness.models.segmenter import Segmenter, upsample
from harness.protocols.protocol import Protocol
from harness.training.losses import build_loss


@contextmanager
def must_refuse(message: str) -> Iterator[None]:
    """Raise `Violation` with ``message`` unless the code inside raises `MethodError`."""
    try:
        yield
    except MethodError:
        return
    raise Violation(message)


def first(names: Iterable[str]) -> str:
    """One name for a message, the same one every time."""
    return min(names, default="nothing")


IMAGE_SIZE = 64
"""A grid of 4 tokens per side, which tiny's windows of 3 do not divide: padding is part of every check."""
STEPS = 3
SEED = 1
"""Seed of the method that is trained; by default those that are only attached have 0."""


@dataclass(frozen=True, kw_only=True)
class ShortTraining:
    """Observations from training a method for a few steps at a high learning rate; sets hold names of parameters.

    Args:
        declared, marked: those in the method's parameter groups, and those that require a gradient, before the first step.
        decoder: those of the mask decoder and head.
        with_gradient, reached: those that got a gradient in some step, and those that got one other than zero.
        may_idle: those of ``marked`` that may get none, according to the method.
        changed: frozen parameters and buffers of the plain segmenter that changed.
        losses: the loss of every step.
        state: the method's state after the last step.
        draws: whether attaching or training used torch's global generator.
    """

    declared: set[str]
    marked: set[str]
    decoder: set[str]
    with_gradient: set[str]
    reached: set[str]
    may_idle: set[str]
    changed: set[str]
    losses: list[float]
    state: dict[str, Tensor]
    draws: bool


@dataclass(frozen=True, kw_only=True)
class ContractCase:
    """A method to be checked.

    Args:
        backbone: ``tiny`` (SAM) or ``tiny_timm``.
        decoder: see `harness.models.decoders`. Its dropout is off, since it uses torch's global generator, which methods must not use.
    """

    method: type[Method]
    config: MethodConfig
    backbone: str = "tiny"
    decoder: Decoder = "sam"
    images: Tensor = field(init=False, repr=False)
    targets: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        generator, side = torch.Generator().manual_seed(7), IMAGE_SIZE // 4
        object.__setattr__(self, "images", torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator))
        object.__setattr__(self, "targets", torch.rand(4, 1, side, side, generator=generator).round())

    @property
    def labels(self) -> bool:
        """Whether an image has one of two labels instead of a mask."""
        return self.decoder in LABELLING

    @property
    def shape(self) -> BackboneShape:
        return backbone_shape(self.backbone, IMAGE_SIZE)

    def plain(self, *, recompute: bool = False) -> Segmenter:
        """The segmenter without the method; the same weights every time."""
        return copy.deepcopy(_plain(self.backbone, self.decoder, recompute=recompute))

    def attached(self, *, recompute: bool = False, seed: int = 0) -> tuple[Segmenter, Method]:
        segmenter = self.plain(recompute=recompute)
        method = self.method(self.config, seed=seed)
        method.attach(segmenter)
        return segmenter, method

    @cached_property
    def training(self) -> ShortTraining:
        """One training, shared by all checks."""
        return self.train()[1]

    def trained(self) -> tuple[Segmenter, Method]:
        """A fresh copy with the state after that training, so that the adapter has an effect."""
        segmenter, method = self.attached(seed=SEED)
        method.load_state(self.training.state)
        return segmenter.train(), method

    def train(self) -> tuple[tuple[Segmenter, Method], ShortTraining]:
        """Attach the method and train the parameters of its groups, all roles in every step."""
        generator = torch.get_rng_state()
        segmenter = self.plain()
        plain: dict[str, Tensor] = {**dict(segmenter.named_parameters()), **dict(segmenter.named_buffers())}
        before = {name: tensor.detach().clone() for name, tensor in plain.items()}
        method = self.method(self.config, seed=SEED)
        method.attach(segmenter)
        declared = grouped_parameters(method)
        marked = {name for name, parameter in segmenter.named_parameters() if parameter.requires_grad}
        segmenter.train()
        trains = bool(declared) and method.config.trains
        optimiser = torch.optim.AdamW(declared.values(), lr=1e-2, weight_decay=1e-2, fused=True) if trains else None
        losses, with_gradient, reached = list[float](), set[str](), set[str]()
        for _ in range(STEPS if optimiser else 1):
            loss = self.loss(segmenter, method)
            losses.append(float(loss.detach()))
            if not optimiser:
                continue
            optimiser.zero_grad()
            loss.backward()
            gradients = {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}
            with_gradient |= gradients.keys()
            reached |= {name for name in gradients.keys() - reached if gradients[name].abs().max() > 0}
            optimiser.step()
        trained = {id(parameter) for parameter in grouped_parameters(method).values()}
        frozen = {name for name, tensor in plain.items() if id(tensor) not in trained}
        return (segmenter, method), ShortTraining(
            declared=set(declared),
            marked=marked,
            decoder={name for name, _ in segmenter.decoder_parameters()},
            with_gradient=with_gradient,
            reached=reached,
            may_idle={name for name in marked if method.may_idle(name)},
            changed={name for name in frozen if not torch.equal(plain[name], before[name])},
            losses=losses,
            state=method.state(),
            draws=not torch.equal(torch.get_rng_state(), generator),
        )

    def loss(self, segmenter: Segmenter, method: Method) -> Tensor:
        """Task loss plus the method's auxiliary loss on the case's images."""
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


@lru_cache
def _plain(backbone: str, decoder: Decoder, *, recompute: bool) -> Segmenter:
    segmenter = build_segmenter(
        backbone,
        task="classification" if decoder in LABELLING else "binary",
        image_size=IMAGE_SIZE,
        head_seed=11,
        activation_checkpointing=recompute,
        decoder=decoder,
    )
    for part in segmenter.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return segmenter


def grouped_parameters(method: Method) -> dict[str, nn.Parameter]:
    """Everything in the method's parameter groups, by full name."""
    return {name: parameter for group in method.parameter_groups() for name, parameter in group.named.items()}
