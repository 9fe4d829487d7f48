"""Forgetting records as a table: what training on one benchmark does to others, against the frozen encoder.

Every run is compared with the run that trained the decoder alone, on the same benchmark and with the same seed: its decoder
had the same rules, images and initial weights, so that the difference elsewhere is what training the encoder did. Whatever else
leaves the encoder as it was (adapters in the decoder, further rates of the decoder) is a row like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from harness.archive.measured import ForgettingRecord
from harness.archive.schema import Record
from harness.comparison.names import PAPER_METRICS, USUAL_METRICS, benchmark_rank, benchmark_title, method_rank, metric
from harness.report.headings import weights_in_words
from harness.report.page import Block, Page, Text, texts
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


@dataclass(frozen=True, kw_only=True)
class AgainstFrozen:
    """One trained model against the frozen encoder on one benchmark, scores turned so that higher is better.

    Args:
        trained_on, tested_on: benchmarks.
    """

    trained_on: str
    tested_on: str
    seed: int
    score: float
    frozen: float

    @property
    def difference(self) -> float:
        return self.score - self.frozen


def forgetting_page(records: Iterable[Record], found: Iterable[ForgettingRecord]) -> Page:
    """A table for each protocol hash, backbone and checkpoint that has forgetting records."""
    elsewhere = {one.key: one for one in found}
    sheets: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record.code == "OK" and record.key in elsewhere:
            run = record.run
            sheets.setdefault((run.protocol, run.protocol_hash, run.backbone, run.checkpoint), []).append(record)
    blocks, numbers = [], []
    for sheet in sorted(sheets):
        block, tidy = _sheet(sheet, sheets[sheet], elsewhere)
        blocks.append(block)
        numbers += tidy
    nothing = Block(heading=TITLE, above=["No forgetting record yet; sam-peft forgetting measures."])
    return Page(title=TITLE, blocks=blocks or [nothing], foot=NOTES if blocks else (), numbers=numbers)


def _sheet(
    sheet: tuple[str, str, str, str], records: Sequence[Record], elsewhere: Mapping[str, ForgettingRecord]
) -> tuple[Block, list[dict[str, str]]]:
    protocol, protocol_hash, backbone, checkpoint = sheet
    frozen = _baselines(records)
    tested = sorted({name for one in records for name in elsewhere[one.key].elsewhere}, key=benchmark_rank)
    pairs: dict[str, list[AgainstFrozen]] = {}
    behind: dict[str, list[str]] = {}
    alone: set[str] = set()
    for record in sorted(records, key=lambda one: (method_rank(one.run.method), one.run.variant, one.key)):
        base = frozen.get((record.run.benchmark, record.run.seed))
        if record is base:
            continue
        if base is None:
            alone.add(f"{record.run.benchmark} seed {record.run.seed}")
            continue
        pairs.setdefault(record.run.variant, []).extend(_pairs(record, base, elsewhere))
        behind.setdefault(record.run.variant, []).extend((record.key, base.key))
    headings = {name: f"{benchmark_title(name)} {metric(_metric(name, records, elsewhere)).title}" for name in tested}
    rows = []
    if frozen:
        rows.append(_explained(_frozen_row(frozen, tested, elsewhere), [one.key for one in frozen.values()]))
    rows += [_explained(_row(variant, mine, tested), behind[variant]) for variant, mine in pairs.items()]
    below = [f"Left out, as there is no run of the decoder alone: {', '.join(sorted(alone))}."] if alone else []
    block = Block(
        heading=f"forgetting · {protocol} · {backbone}",
        above=[
            f"Protocol: {protocol}, hash {protocol_hash}; backbone {backbone}, weights {weights_in_words(checkpoint)}"
        ],
        columns=["method", "at home", "elsewhere", *headings.values()],
        rows=rows,
        below=below,
        aliases={heading: (f"{name}.elsewhere",) for name, heading in headings.items()},
    )
    shown = {"protocol": protocol, "protocol_hash": protocol_hash, "backbone": backbone, "checkpoint": checkpoint}
    tidy = [
        {
            **shown,
            "row": variant,
            "trained_on": one.trained_on,
            "tested_on": one.tested_on,
            "seed": str(one.seed),
            "score": repr(one.score),
            "frozen": repr(one.frozen),
            "difference": repr(one.difference),
        }
        for variant, mine in pairs.items()
        for one in mine
    ]
    return block, tidy


def _explained(row: Sequence[Text], keys: Sequence[str]) -> list[Text]:
    """The cells with the runs behind them."""
    return [replace(cell, behind=partial(_files, keys=keys)) for cell in row]


def _files(_: object, *, keys: Sequence[str]) -> list[str]:
    return [f"  run {key}: records/{key}.json and forgetting/{key}.json" for key in dict.fromkeys(keys)]


def _baselines(records: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """By benchmark and seed the run of the decoder alone: at the rate that tuning chose, else with the card's own options."""
    ordered = sorted(
        (one for one in records if one.run.method == FROZEN),
        key=lambda one: ("chosen" not in one.run.tuning, bool(one.run.changed), one.run.variant, one.key),
    )
    found: dict[tuple[str, int], Record] = {}
    for one in ordered:
        found.setdefault((one.run.benchmark, one.run.seed), one)
    return found


def _pairs(record: Record, base: Record, elsewhere: Mapping[str, ForgettingRecord]) -> list[AgainstFrozen]:
    home = record.run.benchmark
    found = [(home, record.scores.get("best", {}), base.scores.get("best", {}))]
    ours, theirs = elsewhere[record.key].elsewhere, elsewhere[base.key].elsewhere
    found += [(name, ours[name].scores, theirs[name].scores) for name in ours if name in theirs]
    pairs = []
    for name, scores, others in found:
        wanted = _first(name, _whole(scores))
        if wanted and wanted in _whole(others):
            sign = -1.0 if metric(wanted).lower_is_better else 1.0
            score, frozen = sign * _whole(scores)[wanted], sign * _whole(others)[wanted]
            pairs.append(
                AgainstFrozen(trained_on=home, tested_on=name, seed=record.run.seed, score=score, frozen=frozen)
            )
    return pairs


def _whole(scores: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Scores of every test split together."""
    tests = {split: one for split, one in scores.items() if split != "val"}
    return tests.get("all") or next(iter(tests.values()), {})


def _first(name: str, scores: Mapping[str, float]) -> str:
    return next((one for one in PAPER_METRICS.get(name, USUAL_METRICS) if one in scores), "")


def _metric(name: str, records: Sequence[Record], elsewhere: Mapping[str, ForgettingRecord]) -> str:
    found = (elsewhere[one.key].elsewhere.get(name) for one in records)
    return next((first for one in found if one and (first := _first(name, _whole(one.scores)))), "")


def _row(variant: str, pairs: Sequence[AgainstFrozen], tested: Sequence[str]) -> list[Text]:
    away = [one for one in pairs if one.tested_on != one.trained_on]
    groups = [[one for one in pairs if one.tested_on == one.trained_on], away]
    groups += [[one for one in away if one.tested_on == name] for name in tested]
    return [
        Text(text=variant, name=variant),
        *texts([_difference([one.difference for one in group]) for group in groups]),
    ]


def _frozen_row(
    frozen: Mapping[tuple[str, int], Record], tested: Sequence[str], elsewhere: Mapping[str, ForgettingRecord]
) -> list[Text]:
    variant = min(record.run.variant for record in frozen.values())
    home, away = [], {name: [] for name in tested}  # type: ignore[var-annotated]
    for record in frozen.values():
        scores = _whole(record.scores.get("best", {}))
        home += [scores[first] for first in [_first(record.run.benchmark, scores)] if first]
        for name, one in elsewhere[record.key].elsewhere.items():
            whole = _whole(one.scores)
            away[name] += [whole[first] for first in [_first(name, whole)] if first]
    every = [value for values in away.values() for value in values]
    columns = [home, every, *away.values()]
    return [Text(text=f"{variant} (frozen)", name=variant), *texts([_score(values) for values in columns])]


def _score(values: Sequence[float]) -> str:
    return f"{100 * math.fsum(values) / len(values):.1f} ({len(values)})" if values else "–"


def _difference(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = sd(values)
    told = "" if spread is None else f" ± {100 * spread:.1f}"
    return f"{100 * math.fsum(values) / len(values):+.1f}{told} ({len(values)})"
