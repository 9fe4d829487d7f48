"""Claims on scores: differences of two methods by benchmark, and their mean over the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.columns import Column
from harness.comparison.grid import GridCell, Sheet, cell_of
from harness.comparison.paired import Difference, paired_difference
from harness.comparison.rows import is_entry, is_result
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim, Subject
from harness.judging.reading import Reading, by_seeds, departures_of, without_data

RATES = ("lr", "alpha_lr", "encoder_lr")
"""Options in which two rows of one method may both differ from the card, if they do alike."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A difference with how its runs depart from the published set-up, and the rate that both were given."""

    difference: Difference
    differs: tuple[str, ...]
    rates: Mapping[str, Any]


def score_readings(
    claim: Claim, found: Mapping[Sheet, Sequence[Record]], sources: Sources
) -> tuple[list[Reading], list[Reading]]:
    """(by benchmark, means over the benchmarks), each once for every denominator and sheet of records."""
    readings, averages = [], []
    by_mean: dict[tuple[str, Sheet], dict[str, _Found]] = {}
    for benchmark in claim.benchmarks:
        for other in claim.denominator:
            what = f"{names.benchmark_title(benchmark)}, {claim.numerator.text} − {other.text}"
            here = []
            for sheet, members in found.items():
                differences = _differences(claim, other, benchmark, members, sources)
                for manifest in sorted(differences):
                    where = _where(sheet) + (f" · split {manifest[:6]}" if len(differences) > 1 else "")
                    one = differences[manifest]
                    where += "".join(f" · {name} {value:g}" for name, value in one.rates.items())
                    here.append(by_seeds(claim, what, where, one.difference.estimate, one.differs))
                if differences:  # one split a benchmark enters the mean: that of most seeds
                    best = max(differences.values(), key=lambda one: one.difference.estimate.n)
                    by_mean.setdefault((other.text, sheet), {})[benchmark] = best
            readings += here or [without_data(what, "no run")]
    for (text, sheet), each in by_mean.items():
        if len(each) < 2:
            continue
        what = f"mean over {len(each)} of {len(claim.benchmarks)} benchmarks, {claim.numerator.text} − {text}"
        differs = tuple(dict.fromkeys(word for one in each.values() for word in one.differs))
        if len(each) < len(claim.benchmarks):
            differs = (*differs, "not all benchmarks")
        mean = stats.average_of([one.difference.estimate for one in each.values()])
        averages.append(by_seeds(claim, what, _where(sheet), mean, differs))
    return readings, averages


def _where(sheet: Sheet) -> str:
    protocol, digest, backbone, _ = sheet
    return f"{protocol} {digest} · {backbone}"


def _differences(
    claim: Claim, other: Subject, benchmark: str, records: Sequence[Record], sources: Sources
) -> dict[str, _Found]:
    """Split manifest -> difference, for the manifests on which both have a seed.

    Tuned rows with tuned ones where both were, else untuned with untuned at the card's rate, else, of one method, both at
    another one.
    """
    mine = [record for record in records if record.run.benchmark == benchmark]
    split = "all" if any("all" in scored for record in mine for scored in record.scores.values()) else "test"
    metric = claim.metric or names.PAPER_METRICS[benchmark][0]
    ways: list[tuple[bool, dict[str, Any]]] = [(True, {}), (False, {})]
    if claim.numerator.method == other.method:
        given = [{name: record.run.changed[name] for name in RATES if name in record.run.changed} for record in mine]
        ways += [(False, rates) for rates in sorted({str(one): one for one in given if one}.values(), key=str)]
    found: dict[str, _Found] = {}
    for manifest in sorted({record.run.manifest for record in mine}):
        column = Column(benchmark=benchmark, split=split, metric=metric, manifest=manifest)
        for tuned, rates in ways:
            members = [record for record in mine if is_result(record.run) and bool(record.run.tuning) == tuned]
            cells = [_cell(subject, rates, column, members) for subject in (claim.numerator, other)]
            difference = paired_difference(
                cells[0],
                cells[1],
                column,
                scored=(claim.numerator.score, other.score),
                images_of=sources.images_of,
            )
            if difference is not None:
                behind = [record for cell in cells for record in cell.records]
                found[manifest] = _Found(
                    difference=difference, differs=departures_of(claim, behind, sources), rates=rates
                )
                break
    return found


def _cell(subject: Subject, rates: Mapping[str, Any], column: Column, members: Sequence[Record]) -> GridCell:
    fitting = [
        record
        for record in members
        if record.run.method == subject.method
        and record.run.manifest == column.manifest
        and is_entry(record, {**rates, **subject.options})
    ]
    return cell_of(column, subject.score, fitting, sorted({record.run.seed for record in fitting}))
