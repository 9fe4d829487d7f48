"""How much a run was trained: what two rows must share before their scores can be compared. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def update_budget(history: Sequence[Mapping[str, Any]], *, alpha_lr_sum: float, operations: int) -> dict[str, float]:
    """``weight_updates``, and where there is an architecture ``alpha_updates``, ``alpha_lr_sum``, ``share_cap``.

    Args:
        history: of a record; ``updates`` holds an epoch's by roles (``weights``, ``architecture``, both with a plus).
        alpha_lr_sum: the architecture's rate summed over its updates.
        operations: how many a cell mixes.
    """
    budget = {"weight_updates": 0.0} | counted_updates(history)
    if operations > 1:
        budget = {"alpha_updates": 0.0} | budget
        budget["alpha_lr_sum"] = alpha_lr_sum
        budget["share_cap"] = share_cap(alpha_lr_sum, operations=operations)
    return budget


def counted_updates(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a history tells by itself: ``weight_updates`` and ``alpha_updates``, as far as there were any."""
    counts: dict[str, float] = {}
    for entry in history:
        for roles, updates in entry.get("updates", {}).items():
            for role in roles.split("+"):
                name = "alpha_updates" if role == "architecture" else "weight_updates"
                counts[name] = counts.get(name, 0.0) + updates
    return counts


def share_cap(shift: float, *, operations: int) -> float:
    """The largest share of softmax(α) within reach: one entry moved up from 0 by ``shift``, all others down by as much.

    Adam's steps are about the rate, whatever the gradient, so the rate summed over α's updates is how far α can go.
    """
    return 1 / (1 + (operations - 1) * math.exp(-2 * shift))
