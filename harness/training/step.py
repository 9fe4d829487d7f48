"""One training step. The loop, `harness.costing` and `harness.contract.gpu` take the same one, so what is measured and examined is
what a run does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.methods.base import Method, Role
from harness.models.decoders import Task
from harness.models.segmenter import SegmenterOutput
from harness.protocols.protocol import Protocol
from harness.training.feeding import Batch
from harness.training.losses import Loss, build_loss
from harness.training.optimisers import build_optimisers, parameters_of, update

StepPart = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The steps of an attached method.

    Args:
        method: says which roles a step updates, and has a loss of its own.
        loss: loss of the task.
        optimisers: one per role (`harness.training.optimisers.build_optimisers`); none where nothing trains.
        scaler: scaler of fp16 autocast, disabled for other precisions.
        clip: largest norm of all gradients together, 0 for none.
    """

    method: Method
    loss: Loss
    optimisers: dict[Role, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    clip: float

    @classmethod
    def of(
        cls, method: Method, protocol: Protocol, *, task: Task, num_classes: int, device: torch.device
    ) -> TrainingStep:
        """The steps of an attached method under a protocol. Raises UsageError: no parameter to train, or a loss that does not fit the
        task."""
        return cls(
            method=method,
            loss=build_loss(protocol, task=task, num_classes=num_classes),
            optimisers=build_optimisers(method.parameter_groups(), protocol) if method.config.trains else {},
            scaler=torch.amp.GradScaler(device.type, enabled=protocol.precision == "fp16"),
            clip=protocol.clip,
        )

    def passes(self, *, epoch: int, step: int) -> tuple[tuple[Role, ...], ...]:
        """The passes of a step in order, each with the roles that it updates."""
        return self.method.passes_at(epoch=epoch, step=step)

    def parameters(self, roles: Iterable[Role]) -> list[nn.Parameter]:
        return [parameter for role in roles for parameter in parameters_of(self.optimisers[role])]

    def gradients(
        self,
        roles: Sequence[Role],
        batches: Iterable[Batch],
        *,
        predict: Callable[[Batch], SegmenterOutput],
        after: Callable[[StepPart], None] = lambda part: None,
    ) -> Tensor:
        """Forward and backward passes of one update, whose gradients replace those in the parameters of ``roles``.

        Args:
            batches: the batches of the update; its loss is their mean, weighted by images.
            predict: a forward pass in the protocol's precision (`harness.training.feeding.Feeder.predict`).
            after: called after each part of each batch, to measure it.

        Returns:
            The loss, a scalar in fp32 without gradient. Gradients are scaled by ``scaler``.
        """
        self.clear(roles)  # of an earlier pass of this step, or of an interrupted one
        parameters = self.parameters(roles)
        total: Tensor | float = 0.0
        for batch in batches:
            loss = self.loss(predict(batch), batch.targets)
            extra = self.method.auxiliary_loss()
            if extra is not None:
                loss = loss + extra
            loss = loss / batch.passes
            after("forward")
            # Only the gradients of these roles are computed; autograd skips whatever leads to none of them.
            self.scaler.scale(loss).backward(inputs=parameters)
            total = total + loss.detach()
            del loss, extra  # frees the rest of the graph before the time is taken
            after("backward")
        return torch.as_tensor(total)

    def update(self, roles: Iterable[Role]) -> Tensor:
        """The optimisers' step from these gradients, which stay for `Method.after_update`; returns their norm before clipping."""
        return update([self.optimisers[role] for role in roles], clip=self.clip, scaler=self.scaler)

    def clear(self, roles: Iterable[Role]) -> None:
        for role in roles:
            self.optimisers[role].zero_grad(set_to_none=True)
