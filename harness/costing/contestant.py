"""One method on its own segmenter, ready to take training steps that are timed part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.costing.device import Clock
from harness.costing.flops import FlopCount
from harness.methods.base import Method, Role
from harness.models.decoder_shape import Task
from harness.protocols.card import Protocol
from harness.training.batches import UpdatePlan, hold_out
from harness.training.distributed import ALONE
from harness.training.embeddings import EmbeddingCache
from harness.training.feeding import Batch, Feeder, task_loss
from harness.training.losses import build_loss
from harness.training.optimisers import build_optimisers, parameters_of, update

CACHED = "cached"
"""Suffix of a role whose steps find the frozen encoder's embeddings in the cache."""
PARTS = ("total", "data", "forward", "backward", "optimiser", "untracked")
_NOMINAL_STEPS = 100


class RandomImages:
    """Noise in place of a training split, made once: cost does not depend on what the images show.

    Args:
        image_size: side in pixels.
        num_classes: classes in the masks.
        labels: a class an image, (1, 1), instead of masks.
    """

    def __init__(self, count: int, *, image_size: int, num_classes: int, labels: bool = False) -> None:
        source = np.random.default_rng(0)
        self._images = source.integers(0, 256, (count, 3, image_size, image_size), dtype=np.uint8)
        # Blocks of a class, so that the loss meets regions with boundaries.
        coarse = source.integers(0, num_classes, (count, 8, 8), dtype=np.uint8)
        at = np.arange(image_size) * 8 // image_size
        self._masks = coarse[:, :1, :1] if labels else np.ascontiguousarray(coarse[:, at][:, :, at])

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> NDArray[np.uint8]:
        return self._images[index]

    def mask_input(self, index: int) -> NDArray[np.uint8]:
        return self._masks[index]


@dataclass(frozen=True)
class StepKind:
    """A kind of training step.

    Args:
        roles: which parameters it updates.
        cached: the encoder's embedding is in the cache.
    """

    roles: tuple[Role, ...]
    cached: bool = False

    @property
    def name(self) -> str:
        return "+".join(self.roles) + (f"-{CACHED}" if self.cached else "")


class Contestant:
    """A method to measure.

    Args:
        variant: its name in tables.
        segmenter: with ``method`` attached, on ``device``.
        protocol: optimiser, loss, precision, batch size.
        task, num_classes: of the benchmark it stands for.
        clock: times the parts of a step.
    """

    def __init__(
        self,
        variant: str,
        *,
        segmenter: nn.Module,
        method: Method,
        protocol: Protocol,
        task: Task,
        num_classes: int,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.variant = variant
        self.segmenter: Any = segmenter
        self.method = method
        self.protocol = protocol
        self.device = device
        self.clock = clock
        self.optimisers = build_optimisers(method.parameter_groups(), protocol)
        self._loss = build_loss(protocol, task=task, num_classes=num_classes)
        self._scaler = torch.amp.GradScaler(device.type, enabled=protocol.precision == "fp16")
        batches = 2 if method.architecture_holdout() else 1
        images = RandomImages(
            batches * protocol.batch_size,
            image_size=protocol.image_size,
            num_classes=num_classes,
            labels=task == "classification",
        )
        self._plan = UpdatePlan(indices=range(len(images)), batch_size=protocol.batch_size)
        caching = not method.config.trains_encoder and protocol.cache_embeddings
        self._cache = EmbeddingCache(count=len(images), key="cost") if caching else None
        feed = {"plan": self._plan, "protocol": protocol, "device": device, "workers": ALONE}
        self._feeder = Feeder(segmenter, images, embeddings=None, **feed)  # type: ignore[arg-type]
        self._cached_feeder = Feeder(segmenter, images, embeddings=self._cache, **feed)  # type: ignore[arg-type]
        self._prepared: set[Feeder] = set()
        self._steps = 0

    def shares(self) -> dict[StepKind, float]:
        """Every kind of pass with how many there are for a step, over the protocol's epochs; more than one in all where
        a step has several passes."""
        epochs = self.protocol.epochs
        roles = Counter(
            roles
            for epoch in range(epochs)
            for step in range(_NOMINAL_STEPS)
            for roles in self.method.passes_at(epoch=epoch, step=step)
        )
        shares = {StepKind(chosen): count / (epochs * _NOMINAL_STEPS) for chosen, count in roles.items()}
        if self._cache is None:
            return shares
        # Every image is encoded once for each of its two mirrorings, whatever the number of epochs.
        encoded = min((2 if self.protocol.flip else 1) / epochs, 1.0)
        return {
            **{phase: share * encoded for phase, share in shares.items()},
            **{StepKind(phase.roles, cached=True): share * (1 - encoded) for phase, share in shares.items()},
        }

    def epoch_fraction(self) -> float:
        """Part of the training split that an epoch of weight steps goes through."""
        kept, held = hold_out(1000, self.method.architecture_holdout(), seed=0)
        return len(kept) / (len(kept) + len(held))

    def step(self, phase: StepKind) -> dict[str, float]:
        """One update; part -> seconds, with ``total`` and ``untracked``."""
        feeder, parameters = self._begin(phase)
        begun = self.clock()
        batches, _ = feeder.take()
        taken = self.clock()
        self._prepare(feeder)  # loads beside the computation, as in training
        started = self.clock()
        loss = self.loss_of(feeder, batches[0])
        computed = self.clock()
        with feeder.products():
            self._scaler.scale(loss).backward(inputs=parameters)
        differentiated = self.clock()
        update([self.optimisers[role] for role in phase.roles], clip=self.protocol.clip, scaler=self._scaler)
        updated = self.clock()
        seconds = {
            "data": taken - begun,
            "forward": computed - started,
            "backward": differentiated - computed,
            "optimiser": updated - differentiated,
        }
        total = self.clock() - begun
        return {**seconds, "total": total, "untracked": total - sum(seconds.values())}

    def _begin(self, phase: StepKind) -> tuple[Feeder, list[nn.Parameter]]:
        """Modes as in training; the feeder and the parameters of a kind of step."""
        self.segmenter.train()
        if not self.method.config.trains_encoder:
            self.segmenter.encoder.eval()
        feeder = self._cached_feeder if phase.cached else self._feeder
        if feeder not in self._prepared:
            self._prepare(feeder)
        return feeder, [parameter for role in phase.roles for parameter in parameters_of(self.optimisers[role])]

    def _prepare(self, feeder: Feeder) -> None:
        feeder.prepare(0, self._steps % self._plan.updates_per_epoch)
        self._prepared.add(feeder)
        self._steps += 1

    def loss_of(self, feeder: Feeder, batch: Batch) -> Tensor:
        """The forward pass down to the loss, the method's own term included."""
        with feeder.autocast():
            prediction = feeder.predict(batch)
        loss = task_loss(self._loss, prediction, batch, workers=ALONE)
        extra = self.method.auxiliary_loss()
        return loss if extra is None else loss + extra

    def resident(self) -> dict[str, list[Tensor]]:
        """Tensors that stay between steps: ``weights`` (and buffers) and ``optimiser`` state."""
        states = (
            value
            for optimiser in self.optimisers.values()
            for state in optimiser.state.values()
            for value in state.values()
        )
        return {
            "weights": [*self.segmenter.parameters(), *self.segmenter.buffers()],
            "optimiser": [value for value in states if isinstance(value, Tensor)],
        }

    def step_watched(self, phase: StepKind, *, live: Callable[[], int]) -> tuple[int, int]:
        """An update during which ``live`` tells bytes: (kept from forward to backward, gradients)."""
        feeder, parameters = self._begin(phase)
        batches, _ = feeder.take()
        self._prepare(feeder)
        before = live()
        loss = self.loss_of(feeder, batches[0])
        kept = live() - before
        with feeder.products():
            self._scaler.scale(loss).backward(inputs=parameters)
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
        update([self.optimisers[role] for role in phase.roles], clip=self.protocol.clip, scaler=self._scaler)
        return kept, gradients

    def count_flops(self, phase: StepKind) -> tuple[FlopCount, FlopCount]:
        """FLOPs of an update's forward and backward pass."""
        feeder, parameters = self._begin(phase)
        batches, _ = feeder.take()
        self._prepare(feeder)
        forward, backward = FlopCount(), FlopCount()
        with forward:
            loss = self.loss_of(feeder, batches[0])
        with backward, feeder.products():
            loss.backward(inputs=parameters)
        self.segmenter.zero_grad(set_to_none=True)
        return forward, backward

    def count_encoder_flops(self) -> int:
        """FLOPs of the encoder's forward pass for a batch, the method's parts in it included."""
        protocol = self.protocol
        images = torch.zeros(protocol.batch_size, 3, protocol.image_size, protocol.image_size, device=self.device)
        with torch.no_grad(), FlopCount() as count:
            self.segmenter.encode(images)
        return count.total

    def close(self) -> None:
        for feeder in (self._feeder, self._cached_feeder):
            feeder.__exit__(None, None, None)
