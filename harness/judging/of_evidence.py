"""Claims on what models do inside: differences of two methods, each against its own frozen backbone, by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import statistics as stats
from harness.archive.measured import EvidenceRecord
from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.evidence import comparable, mean_change
from harness.comparison.grid import Sheet
from harness.comparison.rows import is_entry
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim, Subject
from harness.judging.reading import Reading, by_seeds, departures_of, without_data


def evidence_readings(claim: Claim, found: Mapping[Sheet, Sequence[Record]], sources: Sources) -> list[Reading]:
    """One for every benchmark, kind of blocks, denominator and sheet of records that has evidence of both sides."""
    readings = []
    for benchmark in claim.benchmarks:
        for kind in claim.blocks:
            for other in claim.denominator:
                sides = f"{claim.numerator.text} − {other.text}"
                what = f"{names.benchmark_title(benchmark)}, {claim.measure} of {kind} blocks, {sides}"
                here = []
                for (protocol, digest, backbone, _), members in found.items():
                    pairs = _pairs(claim, other, benchmark, members, sources)
                    changes = [_difference(claim, kind, *sources_of) for sources_of, _ in pairs]
                    values = [value for value in changes if value is not None]
                    if not values:
                        continue
                    behind = [record for _, records in pairs for record in records]
                    where = f"{protocol} {digest} · {backbone}"
                    here.append(
                        by_seeds(claim, what, where, stats.of_seeds(values), departures_of(claim, behind, sources))
                    )
                readings += here or [without_data(what, "no evidence")]
    return readings


def runs_by_seed(subject: Subject, members: Sequence[Record], *, tuned: bool) -> dict[int, Record]:
    """seed -> the finished run of these options; a seed with several is none."""
    fitting: dict[int, list[Record]] = {}
    for record in members:
        mine = record.code == "OK" and record.run.method == subject.method and bool(record.run.tuning) == tuned
        if mine and ("chosen" in record.run.tuning or not tuned) and is_entry(record, subject.options):
            fitting.setdefault(record.run.seed, []).append(record)
    return {seed: records[0] for seed, records in sorted(fitting.items()) if len(records) == 1}


_Pair = tuple[tuple[EvidenceRecord, EvidenceRecord], tuple[Record, Record]]


def _pairs(claim: Claim, other: Subject, benchmark: str, members: Sequence[Record], sources: Sources) -> list[_Pair]:
    """The two sides at every common seed, tuned with tuned where both were; only where both saw the same images."""
    mine = [record for record in members if record.run.benchmark == benchmark]
    for tuned in (True, False):
        first, second = (runs_by_seed(subject, mine, tuned=tuned) for subject in (claim.numerator, other))
        pairs = []
        for seed in sorted(first.keys() & second.keys()):
            one, another = first[seed], second[seed]
            evidence = sources.evidence_of(one), sources.evidence_of(another)
            if one.run.manifest == another.run.manifest and evidence[0] and evidence[1]:
                both = (evidence[0], evidence[1])
                pairs += [(both, (one, another))] if comparable(both) else []
        if pairs:
            return pairs
    return []


def _difference(claim: Claim, kind: str, one: EvidenceRecord, other: EvidenceRecord) -> float | None:
    first, second = (mean_change(each, claim.measure, kind) for each in (one, other))
    return None if first is None or second is None else first - second
