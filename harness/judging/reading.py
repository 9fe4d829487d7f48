"""One way to read a claim, judged on one set of runs or one session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.archive.schema import Record
from harness.comparison.setups import departures_from, shortly
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.verdicts import Verdict, judge, seeds_in_words, seeds_to_settle
from harness.statistics import Estimate, Interval


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a claim, judged.

    Args:
        what: benchmark, cost and denominator of this reading.
        where: protocol, backbone and hash, or the device of a cost session.
        estimate: in the claim's unit, None without data.
        interval: None where n is too small.
        n: seeds or rounds.
        verdict: of this reading alone.
        settle: what an inconclusive one needs, in words; empty where that cannot be told.
        differs: how it was measured otherwise than what the claim speaks of; it is then not judged.
    """

    what: str
    where: str
    estimate: float | None
    interval: Interval | None
    n: int
    verdict: Verdict
    settle: str = ""
    differs: tuple[str, ...] = ()

    @property
    def verdict_in_words(self) -> str:
        return f"{self.verdict}: {shortly(self.differs)}" if self.differs else self.verdict


def without_data(what: str, where: str) -> Reading:
    return Reading(what=what, where=where, estimate=None, interval=None, n=0, verdict="inconclusive")


def exact(claim: Claim, what: str, where: str, value: float) -> Reading:
    """A count has no spread."""
    interval = Interval(estimate=value, low=value, high=value, n=1)
    verdict = judge(interval, low=claim.low, high=claim.high)
    return Reading(what=what, where=where, estimate=value, interval=interval, n=1, verdict=verdict)


def by_seeds(claim: Claim, what: str, where: str, estimate: Estimate, differs: tuple[str, ...]) -> Reading:
    """Judged by the interval over seeds; what was made otherwise than the paper's is not judged."""
    interval = estimate.interval()
    verdict: Verdict = "unknown" if claim.is_unknown else "not judged"
    if not claim.is_unknown and not differs:
        verdict = judge(interval, low=claim.low, high=claim.high)
    settle = "at least 2 seeds are needed" if verdict == "inconclusive" and interval is None else ""
    if verdict == "inconclusive" and interval is not None:
        settle = seeds_in_words(seeds_to_settle(estimate, low=claim.low, high=claim.high))
    return Reading(
        what=what, where=where, estimate=estimate.mean, interval=interval, n=estimate.n, verdict=verdict, settle=settle,
        differs=differs,
    )  # fmt: skip


def departures_of(claim: Claim, behind: Sequence[Record], sources: Sources) -> tuple[str, ...]:
    """How the runs behind a reading are made otherwise than the claim's paper made its own."""
    if sources.setups is None:
        return ()
    return departures_from(claim.paper, behind, sources.setups, sources.card_of)
