"""Verdicts in the style of an equivalence test: reproduced only when the whole interval says so."""

from __future__ import annotations

import math
from typing import Literal

from harness.reporting.statistics import Interval, seeds_needed

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "ambiguous"]


def judge(interval: Interval | None, *, low: float, high: float) -> Verdict:
    """Reproduced where the interval lies inside [low, high], not reproduced where wholly outside, else inconclusive.

    Args:
        interval: ours; None where n is too small to have one.
        low, high: published value ± tolerance; infinite on one side for "greater than".
    """
    if interval is None:
        return "inconclusive"
    if low <= interval.low and interval.high <= high:
        return "reproduced"
    if interval.high < low or interval.low > high:
        return "not reproduced"
    return "inconclusive"


def seeds_to_settle(estimate: float, spread: float | None, *, low: float, high: float, rest: float = 0.0) -> int | None:
    """Seeds at which the interval around ``estimate`` would no longer cross an edge, if mean and SD stay as they are.

    Args:
        spread: SD over seeds.
        rest: the half-width that no seed narrows, that of the images.

    None where the SD is unknown, where the estimate is on an edge, or where it would take over a thousand.
    """
    if spread is None:
        return None
    distance = min(abs(estimate - edge) for edge in (low, high) if math.isfinite(edge))
    return seeds_needed(spread, distance, rest=rest)
