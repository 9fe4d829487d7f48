"""The page of many readings: specification curve, main effects, and what becomes of each claim.

The specification curve (Simonsohn, Simmons and Nelson, 2020) shows every reading's difference, sorted, above the choices
behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.comparison.cells import Difference, Grid
from harness.comparison.claims import Claim
from harness.comparison.grids import sheets
from harness.comparison.judging import Finding, score_readings
from harness.comparison.names import benchmark_title
from harness.comparison.papers import Papers
from harness.comparison.readings import (
    Specification,
    main_effects,
    rows_of_readings,
    specification_curve,
    with_readings,
)
from harness.report.page import Line, Page, Table, heads
from harness.studies import Readings, Study
from harness.studies.design import aliases, label_of, options_of


def reading_page(
    records: Iterable[Record], study: Study, archive: Archive, *, claims: Sequence[Claim] = (), protocol: str
) -> Page:
    """The page of a study with readings, from records of its rows under ``protocol``; score differences that name the method without
    options are judged under every reading."""
    tables = []
    for grid, here in with_readings(records, study, archive, protocol=protocol):
        tables += [_curve(grid, here), _effects(grid, here), _claims(claims, grid, here)]
    if not tables:
        tables = [Table(heading=study.name, above=[f"No record of these readings under protocol {protocol} yet."])]
    return Page(title=study.title, tables=tables, verb="tables --readings")


def design_text(study: Study) -> str:
    """The fields, the readings and what the design cannot tell apart."""
    readings = study.readings
    assert readings is not None
    lines = [f"{study.title}: {len(readings.points)} readings of {readings.method}", ""]
    for field in readings.fields:
        values = [", ".join(f"{name}={value}" for name, value in level.items()) for level in field.levels]
        lines.append(
            f"{field.name}: {values[0]} (default) | {values[1]}" + "".join(f" | alone: {v}" for v in values[2:])
        )
    lines += ["", *(f"  {entry.label}" for entry in readings.entries()), ""]
    for name, shares in aliases(readings.fields).items():
        strongest = max(shares.values(), key=abs, default=0.0)
        lines.append(
            f"{name} carries up to {abs(strongest):.2f} of each of {len(shares)} interactions of two other fields"
        )
    lines += ["", f"run them: python -m harness.run --study {study.name} --data DIR --checkpoint FILE"]
    return "\n".join(lines) + "\n"


def _curve(grid: Grid, study: Study) -> Table:
    readings = study.readings
    assert readings is not None
    curve = specification_curve(grid, study, baseline=study.table.baseline)
    lines = []
    for specification in curve:
        texts = [f"{specification.mean:+.1f}"]
        texts += [_interval(specification.differences.get(benchmark)) for benchmark in grid.first_columns]
        texts.append("–" if specification.validation is None else f"{specification.validation:.1f}")
        texts += [
            choice(level, field.levels)
            for level, field in zip(specification.point.levels, readings.fields, strict=True)
        ]
        lines.append(Line.of(texts))
    titles = [f"{column.benchmark_title} {column.measure.heading}" for column in grid.first_columns.values()]
    missing = len(readings.points) - len(curve)
    sheet = grid.sheet
    return Table(
        heading=f"{sheet.protocol} · {sheet.backbone}: every reading against {study.table.baseline}",
        above=[
            f"Protocol: {sheet.protocol}, hash {sheet.protocol_hash}; {len(curve)} of {len(readings.points)} readings have"
            " a run" + (f", {missing} have none yet" if missing else ""),
            "Default: " + ", ".join(level_in_words(field.levels[0], short=False) for field in readings.fields),
        ],
        columns=heads("mean", *titles, "validation", *(field.name for field in readings.fields)),
        rows=lines,
        below=[
            "Differences in points, first the mean over benchmarks; [95 % over seeds and images] (seeds). · is the default.",
            "Sorted: a reading at the top says least for the method, one at the bottom most.",
            *_best(curve, readings),
        ],
    )


def _best(curve: Sequence[Specification], readings: Readings) -> list[str]:
    """The reading that validation chooses, as it chooses rates: the best on test would be one by luck, too."""
    known = [
        (specification.validation, specification) for specification in curve if specification.validation is not None
    ]
    if not known:
        return []
    score, best = max(known, key=lambda scored: scored[0])
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


def _effects(grid: Grid, study: Study) -> Table:
    readings = study.readings
    assert readings is not None
    effects = main_effects(grid, study)
    of_design = [row for row, point in rows_of_readings(grid, study).items() if point.screening]
    planned = sum(point.screening for point in readings.points)
    have = sum(bool(row.records) for row in of_design)
    fields = {field.name: field for field in readings.fields}
    lines = [
        Line.of(
            [
                effect.field,
                " → ".join(level_in_words(level) for level in fields[effect.field].levels[:2]),
                f"{effect.estimate:+.1f} [{effect.low:+.1f}, {effect.high:+.1f}]",
                str(effect.replicates),
            ]
        )
        for effect in sorted(effects, key=lambda effect: -abs(effect.estimate))
    ]
    return Table(
        heading=f"{grid.sheet.protocol} · {grid.sheet.backbone}: main effects",
        above=[] if effects else [f"{have} of the {planned} runs of the design are in; effects need all of one seed."],
        columns=heads("field", "from → to", "points", "replicates") if lines else [],
        rows=lines,
        below=[
            "95 % over replicates (benchmark and seed); of a single one, Lenth's margin of error, which takes most effects to be noise.",
            *_aliasing(readings),
        ],
    )


def _aliasing(readings: Readings) -> list[str]:
    """What the design cannot tell apart, in words."""
    lines = ["Main effects are not aliased with one another."]
    for field, shares in aliases(readings.fields).items():
        if shares:
            sizes = Counter(round(abs(share), 2) for share in shares.values())
            parts = ", ".join(f"{count} at ±{size:g}" for size, count in sorted(sizes.items(), reverse=True))
            lines.append(f"{field} carries parts of interactions of two other fields: {parts}.")
    return lines


def _claims(claims: Sequence[Claim], grid: Grid, study: Study) -> Table:
    readings = study.readings
    assert readings is not None
    members = list(grid.records)
    if not study.tune:  # the study sets every row's rate, whatever another study chose: its rows are like with like
        members = [replace(record, run=replace(record.run, tuning={})) for record in members]
    fixed = {entry.method: entry.options for entry in study.entries if entry.label == study.table.baseline}
    by_sheet, papers = sheets(members), Papers(setups=None)  # whatever their set-up: the page says which
    lines = []
    for claim in claims:
        if not _general(claim, readings.method, study.benchmarks):
            continue
        benchmarks = tuple(name for name in claim.benchmarks if name in study.benchmarks)
        verdicts: Counter[str] = Counter()
        for point in readings.points:
            others = [
                replace(entry, options={**fixed.get(entry.method, {}), **entry.options}) for entry in claim.denominator
            ]
            read = replace(
                claim,
                benchmarks=benchmarks,
                numerator=replace(claim.numerator, options=options_of(point, readings.fields)),
                denominator=tuple(others),
            )
            judged, _ = score_readings(read, by_sheet, grid.archive, papers)
            has_run = any(reading.estimate is not None for reading in judged)
            verdicts[Finding(claim=read, readings=tuple(judged)).verdict if has_run else "no run"] += 1
        total = len(readings.points) - verdicts["no run"]
        parts = (
            f"{verdicts[name]} of {total}" for name in ("reproduced", "not reproduced", "inconclusive", "no interval")
        )
        lines.append(Line.of([claim.text, *parts]))
    return Table(
        heading="claims under these readings",
        columns=heads("claim", "reproduced", "not reproduced", "inconclusive", "one seed: no interval")
        if lines
        else [],
        rows=lines,
        below=[
            "Of the readings with a run. Reproduced: on every benchmark that has one; not reproduced: not on one of them.",
            "Benchmarks: " + ", ".join(map(benchmark_title, study.benchmarks)) + ".",
            "Claims that compare two configurations of the method are not part of the design.",
        ],
    )


def _general(claim: Claim, method: str, benchmarks: Sequence[str]) -> bool:
    """Whether a claim compares the method as such with another one."""
    others = all(subject.method != method for subject in claim.denominator)
    praised = claim.numerator.method == method and not claim.numerator.options
    return claim.quantity == "score difference" and praised and others and bool(set(claim.benchmarks) & set(benchmarks))
