"""Many readings of one method against a baseline: specification curve, main effects, and what becomes of each claim.

The specification curve (Simonsohn, Simmons and Nelson, 2020) shows every reading's difference, sorted, above the choices
behind it. A main effect is the mean score of the screening design's runs at a field's other level less that at its
default. Its interval is over replicates (benchmark and seed) where there are several; for a single one it is the margin
of error by Lenth's method (1989), which takes most effects to be noise.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.comparison import names
from harness.comparison.grid import Grid, build_grid, sheets
from harness.comparison.paired import Difference, ImagesOf, paired_difference
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.judging import judge_claims
from harness.records.schema import Record
from harness.reporting.page import Block, Page, Text
from harness.statistics import t_interval
from harness.studies import Readings, Study
from harness.studies.design import Point, aliases, options_of


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Of a field's other level, in points of a benchmark's first metric; positive is better.

    Args:
        low, high: 95 %.
        replicates: how many estimates it is the mean of.
    """

    field: str
    estimate: float
    low: float
    high: float
    replicates: int


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A reading and its difference to the baseline, by benchmark."""

    point: Point
    differences: Mapping[str, Difference]

    @property
    def mean(self) -> float:
        """Over benchmarks."""
        return statistics.fmean(one.mean for one in self.differences.values())


def reading_page(
    records: Iterable[Record], study: Study, *, claims: Sequence[Claim] = (), images_of: ImagesOf, protocol: str
) -> Page:
    """The page of a study with readings.

    Args:
        records: any; those of the study's rows under ``protocol`` count.
        claims: score differences that name the method without options are judged under every reading.
    """
    blocks = []
    for grid, members, here in with_readings(records, study, protocol=protocol):
        blocks += [
            _curve(grid, here, images_of),
            _effects(grid, here),
            _claims(claims, members, here, images_of),
        ]
    if not blocks:
        blocks = [Block(heading=study.name, above=[f"No record of these readings under protocol {protocol} yet."])]
    return Page(title=study.title, blocks=blocks)


def with_readings(records: Iterable[Record], study: Study, *, protocol: str) -> list[tuple[Grid, list[Record], Study]]:
    """Each sheet of ``protocol`` that has a run of a reading: its grid, its records, the study on its benchmarks."""
    found = []
    for sheet, members in sheets(record for record in records if record.run.protocol == protocol).items():
        there = {record.run.benchmark for record in members}
        here = replace(study, benchmarks=tuple(name for name in study.benchmarks if name in there))
        grid = build_grid(sheet, members, study=here, metrics=())
        if any(grid.members[row] for row in _rows(grid, here)):
            found.append((grid, members, here))
    return found


def _rows(grid: Grid, study: Study) -> dict[int, Point]:
    """Row of the grid -> reading."""
    assert study.readings is not None
    labels = {entry.label: point for entry, point in zip(study.readings.entries(), study.readings.points, strict=True)}
    return {index: labels[row.label] for index, row in enumerate(grid.rows) if row.label in labels}


def _first_columns(grid: Grid) -> list[int]:
    """One column a benchmark: its first metric."""
    first: dict[tuple[str, str], int] = {}
    for place, column in enumerate(grid.columns):
        first.setdefault((column.benchmark, column.manifest), place)
    return list(first.values())


def specification_curve(grid: Grid, study: Study, images_of: ImagesOf) -> list[Specification]:
    """Every reading with a run, the one that says least for the method first; empty where the baseline has none."""
    rows, places = _rows(grid, study), _first_columns(grid)
    base = next((i for i, row in enumerate(grid.rows) if row.label == study.table.baseline), None)
    found = []
    for row, point in rows.items():
        if base is None:
            break
        differences = {}
        for place in places:
            difference = paired_difference(
                grid.cells[row, place], grid.cells[base, place], grid.columns[place],
                scored=(grid.rows[row].score, grid.rows[base].score), images_of=images_of,
            )  # fmt: skip
            if difference is not None:
                differences[grid.columns[place].benchmark] = difference
        if differences:
            found.append(Specification(point=point, differences=differences))
    return sorted(found, key=lambda one: one.mean)


def _curve(grid: Grid, study: Study, images_of: ImagesOf) -> Block:
    readings = study.readings
    assert readings is not None
    places, found = _first_columns(grid), specification_curve(grid, study, images_of)
    table = []
    for one in found:
        cells = [f"{one.mean:+.1f}"]
        cells += [_interval(one.differences.get(grid.columns[place].benchmark)) for place in places]
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
            "Default: " + ", ".join(_words(field.levels[0]) for field in readings.fields),
        ],
        columns=["mean", *titles, *(field.name for field in readings.fields)],
        rows=table,
        below=[
            "Differences in points, first the mean over benchmarks; [95 % over seeds and images] (seeds). · is the default.",
            "Sorted: a reading at the top says least for the method, one at the bottom most.",
        ],
    )


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    text = f"{difference.mean:+.1f}"
    if difference.interval is not None:
        text += f" {difference.interval:+.1f}"
    return f"{text} ({len(difference.by_seed)})"


def choice(level: int, levels: Sequence[Mapping[str, object]]) -> str:
    """What differs from the default, in few words."""
    return "·" if level == 0 else _words({k: v for k, v in levels[level].items() if levels[0].get(k) != v}, short=True)


def _words(options: Mapping[str, object], *, short: bool = False) -> str:
    if short and len(options) == 1:
        return str(next(iter(options.values())))
    return ", ".join(f"{name}={value}" for name, value in options.items())


def main_effects(grid: Grid, study: Study) -> list[Effect]:
    """Of every field, from the replicates that have all runs of the design; empty where there is none."""
    readings = study.readings
    assert readings is not None
    rows = {index: point for index, point in _rows(grid, study).items() if point.screening}
    replicates: list[list[float]] = []
    for place in _first_columns(grid):
        sign = -1 if names.metric(grid.columns[place].metric).lower_is_better else 1
        for seed in grid.seeds:
            scores = {row: grid.cells[row, place].values.get(seed) for row in rows}
            if None in scores.values() or not scores:
                continue
            known = {row: 100 * sign * value for row, value in scores.items() if value is not None}
            replicates.append([_contrast(known, rows, place=at) for at in range(len(readings.fields))])
    if not replicates:
        return []
    effects = [[one[at] for one in replicates] for at in range(len(readings.fields))]
    margin = lenth_margin([statistics.fmean(values) for values in effects])
    found = []
    for field, values in zip(readings.fields, effects, strict=True):
        estimate = statistics.fmean(values)
        interval = t_interval(values)
        low, high = (interval.low, interval.high) if interval else (estimate - margin, estimate + margin)
        found.append(Effect(field=field.name, estimate=estimate, low=low, high=high, replicates=len(values)))
    return found


def _contrast(scores: Mapping[int, float], rows: Mapping[int, Point], *, place: int) -> float:
    level = {high: [scores[row] for row, point in rows.items() if point.levels[place] == high] for high in (0, 1)}
    return statistics.fmean(level[1]) - statistics.fmean(level[0])


def lenth_margin(effects: Sequence[float], *, confidence: float = 0.95) -> float:
    """The margin of error of each of ``effects`` that share one design without replicates (Lenth, 1989)."""
    sizes = [abs(value) for value in effects]
    first = 1.5 * statistics.median(sizes)
    kept = [size for size in sizes if size < 2.5 * first] or sizes
    from scipy import stats  # a second, which --help need not wait for

    return 1.5 * statistics.median(kept) * float(stats.t.ppf((1 + confidence) / 2, len(effects) / 3))


def _effects(grid: Grid, study: Study) -> Block:
    readings = study.readings
    assert readings is not None
    effects = main_effects(grid, study)
    wanted = sum(point.screening for point in readings.points)
    have = sum(bool(grid.members[row]) for row, point in _rows(grid, study).items() if point.screening)
    fields = {field.name: field for field in readings.fields}
    rows = [
        [
            Text(text=text)
            for text in (
                effect.field,
                " → ".join(_words(level, short=True) for level in fields[effect.field].levels[:2]),
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


def _claims(claims: Sequence[Claim], members: Sequence[Record], study: Study, images_of: ImagesOf) -> Block:
    readings = study.readings
    assert readings is not None
    protocol = members[0].run.protocol
    sources = Sources(images_of=images_of, setups=None)  # of these runs, whatever their set-up: the page says which
    rows = []
    for claim in claims:
        if not _general(claim, readings.method, study.benchmarks):
            continue
        here = replace(claim, benchmarks=tuple(name for name in claim.benchmarks if name in study.benchmarks))
        verdicts: Counter[str] = Counter()
        for point in readings.points:
            options = options_of(point, readings.fields)
            read = replace(here, numerator=replace(here.numerator, options=options))
            finding = judge_claims([read], members, (), protocol=protocol, sources=sources)[0]
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
