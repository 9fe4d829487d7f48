"""Claims against records: every reading of a claim gets an estimate, an interval and a verdict of its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.records.cost import CostRecord, MethodCost
from harness.records.schema import Record
from harness.reporting import names
from harness.reporting.claims import Claim, Subject
from harness.reporting.grid import Cell, Column, cell_of, is_entry, sheets
from harness.reporting.paired import Difference, ImagesOf, paired_difference
from harness.reporting.statistics import Interval, sd, t_interval, t_quantile
from harness.reporting.verdicts import Verdict, judge, seeds_to_settle

CountOf = Callable[[Subject, str], int | None]
"""(subject, backbone) -> trained parameters in closed form, mask decoder included; None where that cannot be told."""


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
        settle: seeds that would settle an inconclusive one, None if unknown or over a thousand.
    """

    what: str
    where: str
    estimate: float | None
    interval: Interval | None
    n: int
    verdict: Verdict
    settle: int | None = None


def _without_data(what: str, where: str) -> Reading:
    return Reading(what=what, where=where, estimate=None, interval=None, n=0, verdict="inconclusive")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its readings."""

    claim: Claim
    readings: tuple[Reading, ...]

    @property
    def verdict(self) -> Verdict:
        """Ambiguous if the claim says so; reproduced if every reading is; not reproduced if one is not."""
        if self.claim.ambiguous:
            return "ambiguous"
        verdicts = {reading.verdict for reading in self.readings}
        if "not reproduced" in verdicts:
            return "not reproduced"
        return "reproduced" if verdicts == {"reproduced"} else "inconclusive"


def judge_claims(
    claims: Iterable[Claim],
    records: Iterable[Record],
    costs: Iterable[CostRecord],
    *,
    protocol: str,
    count_of: CountOf = lambda subject, backbone: None,
    images_of: ImagesOf = lambda record, score, split, metric: None,
) -> list[Finding]:
    """Judge every claim.

    Args:
        records: scores; only those under ``protocol`` count.
        costs: all sessions count, each on its own.
        count_of: closed-form parameters, for claims on them.
        images_of: per-image scores, for the intervals of score differences.
    """
    mine = sheets(record for record in records if record.run.protocol == protocol)
    sessions = sorted(costs, key=lambda session: (session.key, session.session))
    findings = []
    for claim in claims:
        if claim.quantity == "score difference":
            readings = _scores(claim, mine, images_of)
        elif claim.quantity == "trained parameters":
            readings = [_parameters(claim, count_of)]
        else:
            readings = _costs(claim, sessions)
        findings.append(Finding(claim=claim, readings=tuple(readings)))
    return findings


def _scores(claim: Claim, found: dict[tuple[str, str, str, str], list[Record]], images_of: ImagesOf) -> list[Reading]:
    readings = []
    for benchmark in claim.benchmarks:
        for other in claim.denominator:
            what = f"{names.benchmark_title(benchmark)}, {claim.numerator.text} − {other.text}"
            here = []
            for (protocol, digest, backbone, _), members in found.items():
                differences = _differences(claim, other, benchmark, members, images_of)
                for manifest in sorted(differences):
                    where = f"{protocol} {digest} · {backbone}"
                    where += f" · split {manifest[:6]}" if len(differences) > 1 else ""
                    here.append(_reading(claim, what, where, differences[manifest]))
            readings += here or [_without_data(what, "no run")]
    return readings


def _differences(
    claim: Claim, other: Subject, benchmark: str, members: Sequence[Record], images_of: ImagesOf
) -> dict[str, Difference]:
    """Split manifest -> difference, for the manifests on which both have a seed."""
    mine = [record for record in members if record.run.benchmark == benchmark]
    split = "all" if any("all" in scored for record in mine for scored in record.scores.values()) else "test"
    metric = claim.metric or names.PAPER_METRICS[benchmark][0]
    found = {}
    for manifest in {record.run.manifest for record in mine}:
        column = Column(benchmark=benchmark, split=split, metric=metric, manifest=manifest)
        scored = (claim.numerator.score, other.score)
        for tuned in (True, False):  # tuned with tuned where both were, else untuned with untuned
            members = [record for record in mine if bool(record.run.tuning) == tuned]
            cells = [_cell(subject, column, members) for subject in (claim.numerator, other)]
            difference = paired_difference(cells[0], cells[1], column, scored=scored, images_of=images_of)
            if difference is not None:
                found[manifest] = difference
                break
    return found


def _cell(subject: Subject, column: Column, members: Sequence[Record]) -> Cell:
    fitting = [
        record
        for record in members
        if record.run.method == subject.method
        and record.run.manifest == column.manifest
        and is_entry(record, subject.options)
    ]
    return cell_of(column, subject.score, fitting, sorted({record.run.seed for record in fitting}))


def _reading(claim: Claim, what: str, where: str, difference: Difference) -> Reading:
    interval, n = difference.interval, len(difference.by_seed)
    verdict = judge(interval, low=claim.low, high=claim.high)
    settle = None
    spread = sd(difference.by_seed)
    if verdict == "inconclusive" and interval is not None and spread is not None:
        seeds = t_quantile(n) * spread / math.sqrt(n)
        rest = math.sqrt(max(0.0, ((interval.high - interval.low) / 2) ** 2 - seeds**2))
        settle = seeds_to_settle(difference.mean, spread, low=claim.low, high=claim.high, rest=rest)
    return Reading(
        what=what, where=where, estimate=difference.mean, interval=interval, n=n, verdict=verdict, settle=settle
    )


def _parameters(claim: Claim, count_of: CountOf) -> Reading:
    count = count_of(claim.numerator, claim.backbone)
    what, where = f"{claim.numerator.text}, closed form", claim.backbone
    if count is None:
        return _without_data(what, where)
    return _exact(claim, what, where, count / 1e6)


def _exact(claim: Claim, what: str, where: str, value: float) -> Reading:
    """A count has no spread."""
    interval = Interval(estimate=value, low=value, high=value, n=1)
    verdict = judge(interval, low=claim.low, high=claim.high)
    return Reading(what=what, where=where, estimate=value, interval=interval, n=1, verdict=verdict)


def _costs(claim: Claim, sessions: Sequence[CostRecord]) -> list[Reading]:
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
                here += [reading] if reading else []
            readings += here or [_without_data(what, "not measured")]
    return readings


def _place(session: CostRecord) -> str:
    shown = session.comparability
    where = f"{shown.device} · {shown.backbone} · {shown.image_size} px · batch {shown.batch} · {shown.precision}"
    return where + (" · device shared" if session.shared else "")


def _method(session: CostRecord, subject: Subject) -> MethodCost | None:
    """The entry of the session with these options; among several the one that changes nothing else."""
    fitting = [
        entry
        for entry in session.methods
        if entry.method == subject.method
        and all(entry.config.get(name) == value for name, value in subject.options.items())
    ]
    return min(fitting, key=lambda entry: (entry.variant != entry.method, entry.variant), default=None)


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
                return _exact(claim, what, where, change)
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
    return _exact(claim, what, where, 100 * (numerator / denominator - 1))


def describe(findings: Sequence[Finding]) -> str:
    """The findings as text, ending in a newline."""
    lines = []
    for finding in findings:
        claim = finding.claim
        lines += [f"{claim.name}: {finding.verdict}", f"  {claim.text} [{claim.mark}: {claim.source}]"]
        lines.append(f"  holds for {claim.expected}")
        if claim.ambiguous:
            lines.append(f"  ambiguous: {claim.ambiguous}; every reading on its own:")
        lines += [f"    {_line(claim, reading)}" for reading in finding.readings]
        lines.append("")
    verdicts: list[str] = [finding.verdict for finding in findings]
    order = ("reproduced", "not reproduced", "inconclusive", "ambiguous")
    lines.append(f"claims: {len(verdicts)}; " + ", ".join(f"{verdicts.count(word)} {word}" for word in order))
    return "\n".join(lines).rstrip() + "\n"


def _line(claim: Claim, reading: Reading) -> str:
    if reading.estimate is None:
        return f"{reading.what}: {reading.verdict} ({reading.where})"
    digits = 3 if claim.unit == "millions" else 2
    sign = "" if claim.unit == "millions" else "+"
    number = f"{reading.estimate:{sign}.{digits}f}"
    interval = reading.interval
    if interval is None:
        number += f" {claim.unit}, n = {reading.n}, no interval"
    elif interval.n == 1:
        number += f" {claim.unit}, exact"
    else:
        bounds = f"[{interval.low:{sign}.{digits}f}, {interval.high:{sign}.{digits}f}]"
        number += f" {bounds} {claim.unit}, n = {reading.n}"
    settle = ""
    if reading.verdict == "inconclusive" and claim.quantity == "score difference":
        settle = (
            f", about {reading.settle} seeds would settle it"
            if reading.settle
            else ", more seeds would not (or over a thousand)"
        )
        settle = ", at least 2 seeds are needed" if interval is None else settle
    return f"{reading.what}: {number}: {reading.verdict}{settle} ({reading.where})"
