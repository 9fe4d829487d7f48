"""Paired ratios: rounds of one session pair, so that what slows one method slows its baseline too and cancels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

from harness.archive.cost import MethodCost, Ratio


def paired_ratio(values: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Geometric mean of the per-round ratios, with a t interval of their logarithms (none for a single round)."""
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(value=math.exp(mean), rounds=len(logs))
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    half = float(student.ppf((1 + confidence) / 2, len(logs) - 1)) * error
    return Ratio(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), rounds=len(logs))


def ratios_to(method: MethodCost, baseline: MethodCost, *, images: dict[str, float]) -> dict[str, Ratio]:
    """``time``, ``memory``, ``flops`` and ``device_hours`` of a method over a baseline of the same session.

    Args:
        images: variant -> fraction of the training split that an epoch goes through; a stage-wise method that holds
            images out for α has shorter epochs, and ``device_hours``, of a whole training, counts them.
    """
    time = paired_ratio(method.step_seconds["total"], baseline.step_seconds["total"])
    shorter = images[method.variant] / images[baseline.variant]
    hours = Ratio(
        value=time.value * shorter,
        low=None if time.low is None else time.low * shorter,
        high=None if time.high is None else time.high * shorter,
        rounds=time.rounds,
    )
    return {
        "time": time,
        "memory": Ratio(value=method.memory_bytes["allocated"] / baseline.memory_bytes["allocated"]),
        "flops": Ratio(value=_flops(method) / _flops(baseline)),
        "device_hours": hours,
    }


def _flops(method: MethodCost) -> float:
    return method.flops["forward"] + method.flops["backward"]
