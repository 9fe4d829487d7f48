"""Verdicts in the style of an equivalence test: reproduced only when the whole interval says so."""

from __future__ import annotations

import math
import operator
from typing import Literal

from harness.statistics import Estimate, Interval, seeds_for_power

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "ambiguous", "not judged", "unknown"]

POWER = 0.8


def judge(interval: Interval | None, *, low: float, high: float) -> Verdict:
    """Reproduced where the interval lies inside [low, high], not reproduced where wholly outside, else inconclusive.

    Args:
        interval: ours; None where n is too small to have one.
        low, high: published value ± tolerance, both included; infinite on one side for "greater than" and "less than",
            to which the other edge itself does not belong.
    """
    if interval is None:
        return "inconclusive"
    inside, outside = operator.le, operator.lt
    if math.isinf(low) or math.isinf(high):
        inside, outside = outside, inside
    if inside(low, interval.low) and inside(interval.high, high):
        return "reproduced"
    if outside(interval.high, low) or outside(high, interval.low):
        return "not reproduced"
    return "inconclusive"


def seeds_to_settle(estimate: Estimate, *, low: float, high: float) -> tuple[int, int | None] | None:
    """From how many to how many seeds an inconclusive interval needs to leave the nearest edge, with 80 % power, if the
    mean stays as it is; None where no number of seeds would do, or the SD is unknown."""
    distance = min(abs(estimate.mean - edge) for edge in (low, high) if math.isfinite(edge))
    return seeds_for_power(estimate, distance, power=POWER)


def seeds_in_words(seeds: tuple[int, int | None] | None) -> str:
    """What a page says about `seeds_to_settle`."""
    if seeds is None:
        return "more seeds alone would not settle it (or over a thousand)"
    fewest, most = seeds
    if fewest == most:
        return f"{fewest} seeds would settle it with {100 * POWER:.0f} % power"
    return f"{fewest} to {'over 1000' if most is None else most} seeds would settle it with {100 * POWER:.0f} % power"
