"""Claims on cost: ratios of training cost, and inference after a merge, by session."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace

from harness.archive.cost import CostRecord, MethodCost
from harness.comparison.setups import departures_of_session
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim, Subject
from harness.judging.reading import Reading, exact, without_data
from harness.judging.verdicts import judge
from harness.statistics import Interval, t_interval


def cost_readings(claim: Claim, sessions: Sequence[CostRecord], sources: Sources) -> list[Reading]:
    """One for every cost, denominator and session that measured both sides."""
    setup = (sources.setups or {}).get(claim.paper)
    readings = []
    for cost in claim.costs:
        for other in claim.denominator:
            what = f"{cost.replace('_', ' ')}, {claim.numerator.text} / {other.text}"
            here = []
            for session in sessions:
                first, second = _method(session, claim.numerator), _method(session, other)
                if first is None or second is None:
                    continue
                where = _place(session)
                reading = _cost(claim, cost, other, first, second, what=what, where=where)
                if reading is None:
                    continue
                differs: tuple[str, ...] = (f"what {claim.paper} used is not known here",)
                if setup is not None:
                    differs = tuple(departures_of_session(session, setup, sources.card_of))
                here.append(replace(reading, verdict="not judged", differs=differs) if differs else reading)
            readings += here or [without_data(what, "not measured")]
    return readings


def _place(session: CostRecord) -> str:
    shown = session.comparability
    where = f"{shown.device} · {shown.backbone} · {shown.image_size} px · batch {shown.batch} · {shown.precision}"
    return where + (" · device shared" if session.shared else "")


def _method(session: CostRecord, subject: Subject) -> MethodCost | None:
    """The entry of the session that has these options and changes nothing else; None where there is none."""
    fitting = [
        entry
        for entry in session.methods
        if entry.method == subject.method
        and (changed := _changed(entry)) is not None
        and changed <= subject.options.keys()
        and all(entry.config.get(name) == value for name, value in subject.options.items())
    ]
    return min(fitting, key=lambda entry: (entry.variant != entry.method, entry.variant), default=None)


def _changed(entry: MethodCost) -> set[str] | None:
    """The options that its name says were set, ``method[rank=12,sites=qkv]``, since a session keeps no card to compare
    with; None where the name does not say."""
    found = re.fullmatch(rf"{re.escape(entry.method)}(?:\[(.*)\])?", entry.variant)
    return None if found is None else set(re.findall(r"(?:^|,)\s*(\w+)=", found[1] or ""))


def _cost(
    claim: Claim, cost: str, other: Subject, first: MethodCost, second: MethodCost, *, what: str, where: str
) -> Reading | None:
    if claim.quantity == "cost change":
        ratio = first.ratios.get(second.variant, {}).get(cost)
        if ratio is None:
            return None
        change = 100 * (ratio.value - 1)
        if ratio.low is None or ratio.high is None:
            if cost in ("flops", "memory"):
                return exact(claim, what, where, change)
            return Reading(
                what=what, where=where, estimate=change, interval=None, n=ratio.rounds, verdict="inconclusive"
            )
        interval = Interval(estimate=change, low=100 * (ratio.low - 1), high=100 * (ratio.high - 1), n=ratio.rounds)
        verdict = judge(interval, low=claim.low, high=claim.high)
        return Reading(what=what, where=where, estimate=change, interval=interval, n=ratio.rounds, verdict=verdict)
    mine = "unmerged" if claim.numerator.score == "best" else claim.numerator.score
    theirs = "unmerged" if other.score == "best" else other.score
    if cost == "time":
        ours, base = first.inference_seconds.get(mine), second.inference_seconds.get(theirs)
        if not ours or not base or len(ours) != len(base):
            return None
        logs = [math.log(a / b) for a, b in zip(ours, base, strict=True)]
        center, interval_of_logs = statistics.fmean(logs), t_interval(logs)
        change = 100 * math.expm1(center)
        interval_or_none = interval_of_logs and Interval(
            estimate=change,
            low=100 * math.expm1(interval_of_logs.low),
            high=100 * math.expm1(interval_of_logs.high),
            n=len(logs),
        )
        verdict = judge(interval_or_none, low=claim.low, high=claim.high)
        return Reading(what=what, where=where, estimate=change, interval=interval_or_none, n=len(logs), verdict=verdict)
    kind = "inference_memory_bytes" if cost == "memory" else "inference_parameters"
    numerator, denominator = getattr(first, kind).get(mine), getattr(second, kind).get(theirs)
    if not numerator or not denominator:
        return None
    return exact(claim, what, where, 100 * (numerator / denominator - 1))
