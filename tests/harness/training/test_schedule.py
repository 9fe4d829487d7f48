"""The learning rate's factor at the ends and the corners of each schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.training.loop import learning_rate_factor


@pytest.mark.parametrize(
    ("kind", "total", "warmup", "factors"),
    [
        ("linear", 100, 0, {0: 1, 50: 0.5, 99: 0.01, 100: 0}),
        ("cosine", 100, 0, {0: 1, 25: (1 + math.cos(math.pi / 4)) / 2, 50: 0.5, 100: 0}),
        ("constant", 100, 0, {0: 1, 50: 1, 100: 1}),
        ("linear", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 0}),
        ("cosine", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 0}),
        ("constant", 20, 4, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 20: 1}),
        ("linear", 3, 10, {2: 0.3}),  # all warm-up
    ],
)
def test_the_factor_of_an_update(kind: Any, total: int, warmup: int, factors: dict[int, float]) -> None:
    values = {update: learning_rate_factor(update, total=total, kind=kind, warmup=warmup) for update in factors}
    assert values == pytest.approx(factors)
