"""Claims on α: whether benchmarks choose different mixtures, judged by a permutation test and not by an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.alpha import Shares, alpha_code, domains
from harness.comparison.grid import Sheet
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.of_evidence import runs_by_seed
from harness.judging.reading import Reading, departures_of, without_data
from harness.judging.verdicts import Verdict
from harness.statistics import ALPHA


def prior_readings(claim: Claim, found: Mapping[Sheet, Sequence[Record]], sources: Sources) -> list[Reading]:
    """One a sheet: distance of mixtures between benchmarks minus that between seeds, over the benchmarks that have runs;
    reproduced only where these are all of the claim's."""
    readings = []
    for (protocol, digest, backbone, _), members in found.items():
        for tuned in (True, False):
            runs = [
                record
                for name in claim.benchmarks
                for record in runs_by_seed(
                    claim.numerator, [one for one in members if one.run.benchmark == name], tuned=tuned
                ).values()
            ]
            reading = _reading(claim, f"{protocol} {digest} · {backbone}", runs, sources)
            if reading is not None:
                readings.append(reading)
                break
    return readings or [
        without_data(f"{claim.numerator.text}, between benchmarks − between seeds", "no two benchmarks")
    ]


def _reading(claim: Claim, where: str, runs: Sequence[Record], sources: Sources) -> Reading | None:
    ends: dict[str, dict[int, Shares]] = {}
    for record in runs:
        if end := sources.end_of(record):
            ends.setdefault(record.run.benchmark, {})[record.run.seed] = end
    compared = (
        domains(ends) if len({frozenset(end) for seeds in ends.values() for end in seeds.values()}) == 1 else None
    )
    if compared is None:
        return None
    titles = ", ".join(names.benchmark_title(name) for name in ends)
    differs = departures_of(claim, runs, sources)
    flags = sorted({code for record in runs if (end := sources.end_of(record)) and (code := alpha_code(record, end))})
    p = compared.test.p
    shown = p is not None and p < ALPHA and compared.between > compared.within
    verdict: Verdict = "not judged" if differs else "reproduced" if shown else "inconclusive"
    partial = len(ends) < len(claim.benchmarks)
    if (partial or flags) and verdict == "reproduced":  # the sentence speaks of them all, and of what α would choose
        verdict = "inconclusive"
    settle = "not all benchmarks; " if partial else ""
    settle += "".join(f"{flag} under some runs; " for flag in flags)
    settle += f"{compared.test.text}; {compared.between:.4f} between, {compared.within:.4f} within"
    return Reading(
        what=f"{claim.numerator.text}, between benchmarks − between seeds, {len(ends)} of {len(claim.benchmarks)} benchmarks ({titles})",
        where=where,
        estimate=compared.between - compared.within,
        interval=None,
        n=compared.test.n,
        verdict=verdict,
        settle=settle,
        differs=differs,
    )
