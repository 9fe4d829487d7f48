"""The learning rate as a pure function of the update's index, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_factor(
    update: int, *, total: int, kind: Literal["linear", "cosine", "constant"], warmup: int = 0
) -> float:
    """Factor in [0, 1] on every group's learning rate at ``update`` (0-based, of ``total``).

    Warm-up: (update + 1) / warmup for the first ``warmup`` updates. Then, with t the fraction done of the rest: linear
    1 − t, cosine (1 + cos πt) / 2, constant 1. The first update after warm-up has factor 1; linear and cosine reach
    zero after the last update.
    """
    if update < warmup:
        return (update + 1) / warmup
    done = (update - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, 1 - done)
    if kind == "cosine":
        return (1 + math.cos(math.pi * min(1.0, done))) / 2
    return 1.0
