"""The learning rate's factor at the ends and the corners of each schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.training.loop import learning_rate_factor


@pytest.mark.parametrize(("kind", "half_way"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_starts_at_one_and_passes_half_way(kind: Any, half_way: float) -> None:
    assert learning_rate_factor(0, total=100, kind=kind) == 1
    assert learning_rate_factor(50, total=100, kind=kind) == pytest.approx(half_way)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_reaches_zero_after_the_last_update(kind: Any) -> None:
    assert 0 < learning_rate_factor(99, total=100, kind=kind) < 0.011
    assert learning_rate_factor(100, total=100, kind=kind) == pytest.approx(0)


def test_cosine_follows_the_cosine() -> None:
    expected = (1 + math.cos(math.pi * 0.25)) / 2
    assert learning_rate_factor(25, total=100, kind="cosine") == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_warms_up_linearly_and_then_starts_at_one(kind: Any) -> None:
    factors = [learning_rate_factor(update, total=20, kind=kind, warmup=4) for update in range(5)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert learning_rate_factor(20, total=20, kind=kind, warmup=4) == pytest.approx(1.0 if kind == "constant" else 0.0)


def test_more_warmup_than_updates_is_all_warmup() -> None:
    assert learning_rate_factor(2, total=3, kind="linear", warmup=10) == pytest.approx(0.3)
