"""Claims against records: every reading of a claim gets an estimate, an interval and a verdict of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.archive.cost import CostRecord
from harness.archive.schema import Record
from harness.comparison.sheets import sheets
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.of_costs import cost_readings
from harness.judging.of_evidence import evidence_readings
from harness.judging.of_priors import prior_readings
from harness.judging.of_rankings import rank_readings
from harness.judging.of_scores import score_readings
from harness.judging.reading import Reading, exact, without_data
from harness.judging.verdicts import Verdict
from harness.system.errors import UsageError, did_you_mean

CountOf = Callable[[str, Mapping[str, Any], str], int | None]
"""(method, options, backbone) -> trained parameters in closed form, mask decoder included; None where that cannot be told."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its readings.

    Args:
        averages: where it speaks of several benchmarks, the mean over them, once for each denominator and set-up: a
            sentence that must hold on each of nine benchmarks can hardly ever be shown with few seeds.
    """

    claim: Claim
    readings: tuple[Reading, ...]
    averages: tuple[Reading, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Unknown where nobody here knows what the paper shows; ambiguous if the claim says so; reproduced if every reading
        is; not reproduced if one is not.

        A reading of another set-up than the published one is no evidence either way: what has no other (a benchmark, say)
        is open as if it had not been run, and with none at all the claim is not judged.
        """
        if self.claim.is_unknown:
            return "unknown"
        if self.claim.ambiguous:
            return "ambiguous"
        judged = [reading for reading in self.readings if reading.verdict != "not judged"]
        verdicts = {reading.verdict for reading in judged}
        if not judged:
            return "not judged" if self.readings else "inconclusive"
        if "not reproduced" in verdicts:
            return "not reproduced"
        everything = {reading.what for reading in judged} == {reading.what for reading in self.readings}
        return "reproduced" if verdicts == {"reproduced"} and everything else "inconclusive"


def require_protocol(name: str, records: Iterable[Record], *, cards: Iterable[str]) -> None:
    """Raises UsageError where neither a card nor a record has this name."""
    known = sorted({*cards, *(record.run.protocol for record in records)})
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}{did_you_mean(name, known)}")


def judge_claims(
    claims: Iterable[Claim],
    records: Iterable[Record],
    costs: Iterable[CostRecord],
    *,
    protocol: str,
    count_of: CountOf = lambda method, options, backbone: None,
    sources: Sources | None = None,
) -> list[Finding]:
    """Judge every claim.

    A reading from runs or sessions that are not the published set-up (card, every rule, backbone, checkpoint, data, kind
    of device) is shown and not judged.

    Args:
        records: scores; only those under ``protocol`` count.
        costs: all sessions count, each on its own.
        count_of: closed-form parameters, for claims on them.
        sources: per-image scores, cards, and what each paper's numbers were made with.
    """
    sources = sources or Sources()
    scored = [record for record in records if record.run.protocol == protocol]
    mine = sheets(scored)
    sessions = sorted(costs, key=lambda session: (session.key, session.session))
    findings = []
    for claim in claims:
        averages: list[Reading] = []
        if claim.quantity == "score difference":
            readings, averages = score_readings(claim, mine, sources)
        elif claim.quantity == "rank agreement":
            readings = rank_readings(claim, scored, sources, protocol=protocol)
        elif claim.quantity == "evidence difference":
            readings = evidence_readings(claim, mine, sources)
        elif claim.quantity == "prior distance":
            readings = prior_readings(claim, mine, sources)
        elif claim.quantity == "trained parameters":
            readings = [_parameters(claim, count_of)]
        else:
            readings = cost_readings(claim, sessions, sources)
        findings.append(Finding(claim=claim, readings=tuple(readings), averages=tuple(averages)))
    return findings


def _parameters(claim: Claim, count_of: CountOf) -> Reading:
    count = count_of(claim.numerator.method, claim.numerator.options, claim.backbone)
    what, where = f"{claim.numerator.text}, closed form", claim.backbone
    if count is None:
        return without_data(what, where)
    return exact(claim, what, where, count / 1e6)


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings as text, ending in a newline."""
    lines = []
    for finding in findings:
        lines += [f"{finding.claim.name}: {finding.verdict}", *details(finding), ""]
    return "\n".join([*lines, counted(findings)]).rstrip() + "\n"


def details(finding: Finding) -> list[str]:
    """The sentence, what it holds for, and every reading, a line each."""
    claim = finding.claim
    lines = [f"  {claim.text} [{claim.mark}: {claim.source}]", f"  holds for {claim.expected}"]
    if claim.ambiguous:
        lines.append(f"  ambiguous: {claim.ambiguous}; every reading on its own:")
    return [*lines, *(f"    {_line(claim, reading)}" for reading in (*finding.readings, *finding.averages))]


def counted(findings: Sequence[Finding]) -> str:
    """How many claims have which verdict."""
    verdicts: list[str] = [finding.verdict for finding in findings]
    order = ("reproduced", "not reproduced", "inconclusive", "not judged", "ambiguous", "unknown")
    return f"claims: {len(verdicts)}; " + ", ".join(f"{verdicts.count(word)} {word}" for word in order)


def _line(claim: Claim, reading: Reading) -> str:
    if reading.estimate is None:
        return f"{reading.what}: {reading.verdict} ({reading.where})"
    digits = {"millions": 3, "ln amplitude": 3, "total variation": 4}.get(claim.unit, 2)
    sign = "" if claim.unit == "millions" else "+"
    number = f"{reading.estimate:{sign}.{digits}f}"
    interval = reading.interval
    if interval is None:
        number += f" {claim.unit}, n = {reading.n}, no interval"
    elif interval.n == 1:
        number += f" {claim.unit}, exact"
    else:
        number += f" {interval:{sign}.{digits}f} {claim.unit}, n = {reading.n}"
    settle = f"; {reading.settle}" if reading.settle else ""
    return f"{reading.what}: {number}: {reading.verdict_in_words}{settle} ({reading.where})"
