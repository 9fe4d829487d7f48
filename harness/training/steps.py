"""How many steps a run has: those of its epochs, or as many as the weights need for their updates."""

from __future__ import annotations

from harness.methods.base import WEIGHTS, Method
from harness.methods.parts.placement import MethodError
from harness.protocols.card import Protocol
from harness.training.batches import UpdatePlan

MOST_STEPS = 1000
"""Steps for an update of the weights; a method that takes more than this never gives them one."""


def planned_steps(method: Method, plan: UpdatePlan, protocol: Protocol, *, images: int) -> int:
    """Steps of the whole run.

    ``budget=epochs``: those of the protocol's epochs. ``budget=updates``: as many as the weights need for the updates
    that they would get in the protocol's epochs over all ``images`` if every step were theirs. None where nothing trains.
    """
    if not method.config.trains:
        return 0
    if protocol.budget == "epochs" or not method.config.spares_weight_updates:
        return plan.updates_per_epoch * protocol.epochs
    updates = -(-(protocol.epoch_images or images) // (plan.batch_size * plan.accumulate)) * protocol.epochs
    total = done = 0
    while done < updates:
        epoch, step = divmod(total, plan.updates_per_epoch)
        done += sum(WEIGHTS in roles for roles in method.passes_at(epoch=epoch, step=step))
        total += 1
        if total > MOST_STEPS * updates:
            raise MethodError(f"{method.name} gives its weights no {updates} updates within {total} steps")
    return total
