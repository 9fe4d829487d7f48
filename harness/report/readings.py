"""The page of many readings: specification curve, main effects, and what becomes of each claim.

The specification curve (Simonsohn, Simmons and Nelson, 2020) shows every reading's difference, sorted, above the choices
behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.grid import Grid, first_columns
from harness.comparison.paired import Difference, ImagesOf
from harness.comparison.readings import (
    Specification,
    main_effects,
    rows_of_readings,
    specification_curve,
    with_readings,
)
from harness.comparison.rules import CardOf, no_card
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.judging import judge_claims
from harness.report.page import Block, Page, Text
from harness.studies import Readings, Study
from harness.studies.design import aliases, label_of, options_of


def reading_page(
    records: Iterable[Record],
    study: Study,
    *,
    claims: Sequence[Claim] = (),
    images_of: ImagesOf,
    protocol: str,
    card_of: CardOf = no_card,
) -> Page:
    """The page of a study with readings.

    Args:
        records: any; those of the study's rows under ``protocol`` count.
        claims: score differences that name the method without options are judged under every reading.
    """
    blocks = []
    for grid, here in with_readings(records, study, protocol=protocol, card_of=card_of):
        blocks += [
            _curve(grid, here, images_of),
            _effects(grid, here),
            _claims(claims, grid, here, images_of),
        ]
    if not blocks:
        blocks = [Block(heading=study.name, above=[f"No record of these readings under protocol {protocol} yet."])]
    return Page(title=study.title, blocks=blocks, verb="readings")


def _curve(grid: Grid, study: Study, images_of: ImagesOf) -> Block:
    readings = study.readings
    assert readings is not None
    places, found = first_columns(grid), specification_curve(grid, study, images_of, baseline=study.table.baseline)
    table = []
    for one in found:
        cells = [f"{one.mean:+.1f}"]
        cells += [_interval(one.differences.get(grid.columns[place].benchmark)) for place in places]
        cells.append("–" if one.validation is None else f"{one.validation:.1f}")
        cells += [choice(level, field.levels) for level, field in zip(one.point.levels, readings.fields, strict=True)]
        table.append([Text(text=cell) for cell in cells])
    titles = [
        grid.columns[place].benchmark_title + f" {names.metric(grid.columns[place].metric).heading}" for place in places
    ]
    missing = len(readings.points) - len(found)
    return Block(
        heading=f"{grid.protocol} · {grid.backbone}: every reading against {study.table.baseline}",
        above=[
            f"Protocol: {grid.protocol}, hash {grid.protocol_hash}; {len(found)} of {len(readings.points)} readings have a run"
            + (f", {missing} have none yet" if missing else ""),
            "Default: " + ", ".join(level_in_words(field.levels[0], short=False) for field in readings.fields),
        ],
        columns=["mean", *titles, "validation", *(field.name for field in readings.fields)],
        rows=table,
        below=[
            "Differences in points, first the mean over benchmarks; [95 % over seeds and images] (seeds). · is the default.",
            "Sorted: a reading at the top says least for the method, one at the bottom most.",
            *_best(found, readings),
        ],
    )


def _best(found: Sequence[Specification], readings: Readings) -> list[str]:
    """The reading that validation chooses, as it chooses rates: the best on test would be one by luck, too."""
    known = [(one.validation, one) for one in found if one.validation is not None]
    if not known:
        return []
    score, best = max(known, key=lambda one: one[0])
    return [
        f"Best on validation of {len(known)} with a run on each benchmark: {label_of(best.point, readings.fields)} "
        f"({score:.1f} points, mean over benchmarks)."
    ]


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{difference.mean:+.1f}"
    if difference.interval is not None:
        text += f" {difference.interval:+.1f}"
    return f"{text} ({len(difference.by_seed)})"


def choice(level: int, levels: Sequence[Mapping[str, object]]) -> str:
    """What differs from the default, in few words."""
    return "·" if level == 0 else level_in_words({k: v for k, v in levels[level].items() if levels[0].get(k) != v})


def level_in_words(options: Mapping[str, object], *, short: bool = True) -> str:
    """``norm=none, scale=1``; of one option the value alone, unless ``short`` is False."""
    if short and len(options) == 1:
        return str(next(iter(options.values())))
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _effects(grid: Grid, study: Study) -> Block:
    readings = study.readings
    assert readings is not None
    effects = main_effects(grid, study)
    wanted = sum(point.screening for point in readings.points)
    have = sum(bool(grid.members[row]) for row, point in rows_of_readings(grid, study).items() if point.screening)
    fields = {field.name: field for field in readings.fields}
    rows = [
        [
            Text(text=text)
            for text in (
                effect.field,
                " → ".join(level_in_words(level) for level in fields[effect.field].levels[:2]),
                f"{effect.estimate:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]",
                str(effect.replicates),
            )
        ]
        for effect in sorted(effects, key=lambda one: -abs(one.estimate))
    ]
    above = [] if effects else [f"{have} of the {wanted} runs of the design are in; effects need all of one seed."]
    return Block(
        heading=f"{grid.protocol} · {grid.backbone}: main effects",
        above=above,
        columns=["field", "from → to", "points", "replicates"] if rows else [],
        rows=rows,
        below=[
            "95 % over replicates (benchmark and seed); of a single one, Lenth's margin of error, which takes most effects to be noise.",
            *_aliasing(readings),
        ],
    )


def _aliasing(readings: Readings) -> list[str]:
    """What the design cannot tell apart, in words."""
    carried = aliases(readings.fields)
    lines = ["Main effects are not aliased with one another."]
    for field, shares in carried.items():
        if shares:
            sizes = Counter(round(abs(share), 2) for share in shares.values())
            parts = ", ".join(f"{count} at ±{size:g}" for size, count in sorted(sizes.items(), reverse=True))
            lines.append(f"{field} carries parts of interactions of two other fields: {parts}.")
    return lines


def _claims(claims: Sequence[Claim], grid: Grid, study: Study, images_of: ImagesOf) -> Block:
    readings = study.readings
    assert readings is not None
    members = list(grid.records)
    if not study.tune:  # the study sets every row's rate, whatever another study chose: its rows are like with like
        members = [replace(record, run=replace(record.run, tuning={})) for record in members]
    fixed = {entry.method: entry.options for entry in study.entries if entry.label == study.table.baseline}
    sources = Sources(images_of=images_of, setups=None)  # of these runs, whatever their set-up: the page says which
    rows = []
    for claim in claims:
        if not _general(claim, readings.method, study.benchmarks):
            continue
        here = replace(claim, benchmarks=tuple(name for name in claim.benchmarks if name in study.benchmarks))
        verdicts: Counter[str] = Counter()
        for point in readings.points:
            options = options_of(point, readings.fields)
            read = replace(
                here,
                numerator=replace(here.numerator, options=options),
                denominator=tuple(
                    replace(one, options={**fixed.get(one.method, {}), **one.options}) for one in here.denominator
                ),
            )
            finding = judge_claims([read], members, (), protocol=grid.protocol, sources=sources)[0]
            judged = [one for one in finding.readings if one.estimate is not None]
            verdicts[finding.verdict if judged else "no run"] += 1
        total = len(readings.points) - verdicts["no run"]
        parts = (f"{verdicts[name]} of {total}" for name in ("reproduced", "not reproduced", "inconclusive"))
        rows.append([Text(text=text) for text in (claim.text, *parts)])
    return Block(
        heading="claims under these readings",
        columns=["claim", "reproduced", "not reproduced", "undecided"] if rows else [],
        rows=rows,
        below=[
            "Of the readings with a run. Reproduced: on every benchmark that has one; not reproduced: not on one of them.",
            "Benchmarks: " + ", ".join(map(names.benchmark_title, study.benchmarks)) + ".",
            "Claims that compare two configurations of the method are not part of the design.",
        ],
    )


def _general(claim: Claim, method: str, benchmarks: Sequence[str]) -> bool:
    """Whether a claim compares the method as such with another one."""
    others = all(subject.method != method for subject in claim.denominator)
    praised = claim.numerator.method == method and not claim.numerator.options
    return claim.quantity == "score difference" and praised and others and bool(set(claim.benchmarks) & set(benchmarks))
