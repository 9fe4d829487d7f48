"""Forgetting records as a table: what training on one benchmark does to others, against the frozen encoder.

Every run is compared with the run that trained the decoder alone, on the same benchmark and with the same seed: its decoder
had the same rules, images and initial weights, so that the difference elsewhere is what training the encoder did. Whatever else
leaves the encoder as it was (adapters in the decoder, further rates of the decoder) is a row like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from harness.archive.measured import ForgettingRecord
from harness.archive.schema import Record
from harness.comparison.grids import sheets
from harness.comparison.names import PAPER_METRICS, USUAL_METRICS, benchmark_rank, benchmark_title, method_rank, metric
from harness.comparison.rows import Sheet, rows_of_records
from harness.report.page import Head, Line, Page, Table, Told, heads
from harness.report.titles import weights_in_words
from harness.statistics import sd

TITLE = "forgetting"
FROZEN = "decoder"
"""The method that leaves the encoder as it was, and the decoder whole."""
NOTES = (
    "Difference to the row with the frozen encoder (same training benchmark, rules and seed), in points, positive is better:"
    " mean over training benchmarks and seeds, elsewhere over tested benchmarks too, ± SD (ddof = 1), (n). The frozen row"
    " shows its scores in %.",
    "At home: on the benchmark that the model was trained on. Elsewhere: a benchmark that it was not, mean of the columns' pairs.",
    "The first metric of each benchmark's table, best checkpoint. Both models keep the decoder that they were trained with.",
)
Elsewhere = Mapping[str, ForgettingRecord]
"""Key of a run -> what it scored on benchmarks that it was not trained on."""


@dataclass(frozen=True, kw_only=True)
class AgainstFrozen:
    """One trained model against the frozen encoder on one benchmark, by one metric."""

    trained_on: str
    tested_on: str
    seed: int
    metric: str
    score: float
    frozen: float

    @property
    def difference(self) -> float:
        """Positive is better."""
        return metric(self.metric).sign * (self.score - self.frozen)

    @property
    def at_home(self) -> bool:
        return self.tested_on == self.trained_on


def _runs(keys: Sequence[str]) -> list[str]:
    """The runs behind a line."""
    return [f"  run {key}: records/{key}.json and forgetting/{key}.json" for key in dict.fromkeys(keys)]


def forgetting_page(records: Iterable[Record], measured: Iterable[ForgettingRecord]) -> Page:
    """A table for each protocol hash, backbone and checkpoint that has forgetting records."""
    elsewhere = {measured_method.key: measured_method for measured_method in measured}
    tables, numbers = [], []
    for sheet, members in sheets(
        record for record in records if record.code == "OK" and record.key in elsewhere
    ).items():
        table, tidy = _table(sheet, members, elsewhere)
        tables.append(table)
        numbers += tidy
    nothing = Table(heading=TITLE, above=["No forgetting record yet; sam-peft forgetting measures."])
    return Page(title=TITLE, tables=tables or [nothing], foot=NOTES if tables else (), numbers=numbers)


def _table(sheet: Sheet, records: Sequence[Record], elsewhere: Elsewhere) -> tuple[Table, list[dict[str, str]]]:
    frozen = _baselines(records)
    tested = sorted({name for record in records for name in elsewhere[record.key].elsewhere}, key=benchmark_rank)
    pairs: dict[str, list[AgainstFrozen]] = {}
    behind: dict[str, list[str]] = {}
    alone: set[str] = set()
    labels = {record.key: row.label for row in rows_of_records(sheet, records) for record in row.records}
    for record in sorted(
        records, key=lambda record: (method_rank(record.run.method), labels.get(record.key, ""), record.key)
    ):
        base, label = frozen.get((record.run.benchmark, record.run.seed)), labels.get(record.key, record.run.variant)
        if base is None:
            alone.add(f"{record.run.benchmark} seed {record.run.seed}")
        elif record is not base:
            pairs.setdefault(label, []).extend(_pairs(record, base, elsewhere))
            behind.setdefault(label, []).extend((record.key, base.key))
    lines = [_frozen_line(frozen, tested, elsewhere)] if frozen else []
    for variant, of_variant in pairs.items():
        away = [pair for pair in of_variant if not pair.at_home]
        groups = [[pair for pair in of_variant if pair.at_home], away]
        groups += [[pair for pair in away if pair.tested_on == name] for name in tested]
        texts = [_difference([pair.difference for pair in group]) for group in groups]
        lines.append(Line.of([variant, *texts], Told(lines=partial(_runs, behind[variant])), method=variant))
    columns = [
        Head(
            title=f"{benchmark_title(name, [record.run for record in records])} {metric(_metric(name, records, elsewhere)).title}",
            benchmark=name,
            metric="elsewhere",
        )
        for name in tested
    ]
    weights = weights_in_words(sheet.checkpoint)
    rules = f"Protocol: {sheet.protocol}, hash {sheet.protocol_hash}; backbone {sheet.backbone}, weights {weights}"
    table = Table(
        heading=f"forgetting · {sheet.protocol} · {sheet.backbone}",
        above=[rules],
        columns=[*heads("method", "at home", "elsewhere"), *columns],
        rows=lines,
        below=[f"Left out, as there is no run of the decoder alone: {', '.join(sorted(alone))}."] if alone else [],
    )
    tidy = [
        {
            **vars(sheet),
            "row": variant,
            "trained_on": pair.trained_on,
            "tested_on": pair.tested_on,
            "metric": pair.metric,
            **{name: repr(getattr(pair, name)) for name in ("seed", "score", "frozen", "difference")},
        }
        for variant, of_variant in pairs.items()
        for pair in of_variant
    ]
    return table, tidy


def _baselines(records: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """By benchmark and seed the run of the decoder alone: at the rate that tuning chose, else with the card's own options."""
    ordered = sorted(
        (record for record in records if record.run.method == FROZEN),
        key=lambda record: (
            "chosen" not in record.run.tuning,
            bool(record.run.changed),
            record.run.variant,
            record.key,
        ),
    )
    chosen: dict[tuple[str, int], Record] = {}
    for record in ordered:
        chosen.setdefault((record.run.benchmark, record.run.seed), record)
    return chosen


def _pairs(record: Record, base: Record, elsewhere: Elsewhere) -> list[AgainstFrozen]:
    home = record.run.benchmark
    both = [(home, record.scores.get("best", {}), base.scores.get("best", {}))]
    ours, theirs = elsewhere[record.key].elsewhere, elsewhere[base.key].elsewhere
    both += [(name, ours[name].scores, theirs[name].scores) for name in ours if name in theirs]
    pairs = []
    for name, scores, others in both:
        first = _first(name, _whole(scores))
        if first and first in _whole(others):
            pairs.append(
                AgainstFrozen(
                    trained_on=home,
                    tested_on=name,
                    seed=record.run.seed,
                    metric=first,
                    score=_whole(scores)[first],
                    frozen=_whole(others)[first],
                )
            )
    return pairs


def _whole(scores: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The scores on all test images: of the split that joins the others, else of the first."""
    tests = {split: of_split for split, of_split in scores.items() if split != "val"}
    return tests.get("all") or next(iter(tests.values()), {})


def _first(name: str, scores: Mapping[str, float]) -> str:
    return next((candidate for candidate in PAPER_METRICS.get(name, USUAL_METRICS) if candidate in scores), "")


def _metric(name: str, records: Sequence[Record], elsewhere: Elsewhere) -> str:
    told = (elsewhere[record.key].elsewhere.get(name) for record in records)
    return next((first for test in told if test and (first := _first(name, _whole(test.scores)))), "")


def _frozen_line(frozen: Mapping[tuple[str, int], Record], tested: Sequence[str], elsewhere: Elsewhere) -> Line:
    variant = min(record.run.variant for record in frozen.values())
    home: list[float] = []
    away: dict[str, list[float]] = {name: [] for name in tested}
    for record in frozen.values():
        scores = _whole(record.scores.get("best", {}))
        home += [scores[first] for first in [_first(record.run.benchmark, scores)] if first]
        for name, test in elsewhere[record.key].elsewhere.items():
            whole = _whole(test.scores)
            away[name] += [whole[first] for first in [_first(name, whole)] if first]
    every = [value for values in away.values() for value in values]
    texts = [_score(values) for values in (home, every, *away.values())]
    behind = Told(lines=partial(_runs, [record.key for record in frozen.values()]))
    return Line.of([f"{variant} (frozen)", *texts], behind, label=variant, method=variant)


def _score(values: Sequence[float]) -> str:
    return f"{100 * math.fsum(values) / len(values):.1f} ({len(values)})" if values else "–"


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = sd(values)
    told = "" if spread is None else f" ± {100 * spread:.1f}"
    return f"{100 * math.fsum(values) / len(values):+.1f}{told} ({len(values)})"
