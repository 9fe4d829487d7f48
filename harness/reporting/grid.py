"""Records to a grid of cells: which runs stand behind each number, without deciding yet how it looks.

One grid holds records of one protocol hash, one backbone and one checkpoint, so no column can mix two protocols. Inside
it a column is also bound to one split manifest, and a row to one method configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from harness.records.schema import OPTIONS_ADDED_LATER, Code, Record, Run, content_hash, first_names, hashed_options
from harness.registry import label_note
from harness.reporting.names import PAPER_METRICS, SCORE_TITLES, benchmark_rank, method_rank
from harness.reporting.statistics import sd
from harness.studies import Entry, Study

MISSING = "MISSING"
"""The code of a run that has no record."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """benchmark, test split and metric; ``manifest`` is the hash of the split, or "" where no record tells."""

    benchmark: str
    split: str
    metric: str
    manifest: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method configuration, and which of its models is scored (``best``, ``merged-exact``, …)."""

    label: str
    method: str
    score: str = "best"
    note: str = ""
    """What is printed behind the label: what its configuration says of itself, and how it was tuned."""

    @property
    def shown(self) -> str:
        """The label as it is printed."""
        return self.label + self.note


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of one number.

    Args:
        values: seed -> score of runs that ended well.
        codes: seed -> reason why there is no score.
        records: the records behind it, by seed.
    """

    values: Mapping[int, float]
    codes: Mapping[int, str]
    records: tuple[Record, ...] = ()

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.codes

    @property
    def mean(self) -> float:
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def sd(self) -> float | None:
        """SD with ddof = 1, None for a single run."""
        return sd([self.values[seed] for seed in sorted(self.values)])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table's content; ``cells`` is keyed by (row, column) indices."""

    protocol: str
    protocol_hash: str
    backbone: str
    checkpoint: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[int, int], Cell]
    members: Mapping[int, tuple[Record, ...]] = field(default_factory=dict)
    """row index -> its records, of all columns."""

    @property
    def records(self) -> list[Record]:
        """Everything that was run; a placeholder of a planned run is not."""
        unique = {record.key: record for members in self.members.values() for record in members if is_run(record)}
        return [unique[key] for key in sorted(unique)]


Sheet = tuple[str, str, str, str]
"""protocol, its hash, backbone, checkpoint"""


def placeholder(run: Run) -> Record:
    """Stands for a planned run that has no record, so that its cell says so."""
    return Record(run=run, key=run.key, code=cast(Code, MISSING))


def is_run(record: Record) -> bool:
    return record.code != MISSING


def sheets(records: Iterable[Record]) -> dict[Sheet, list[Record]]:
    """Records that may share a table, by (protocol, hash, backbone, checkpoint), in that order."""
    found: dict[Sheet, list[Record]] = {}
    for record in records:
        run = record.run
        found.setdefault((run.protocol, run.protocol_hash, run.backbone, run.checkpoint), []).append(record)
    return {key: sorted(found[key], key=lambda record: record.key) for key in sorted(found)}


def build(sheet: Sheet, records: Sequence[Record], *, study: Study | None = None, metrics: Sequence[str] = ()) -> Grid:
    """The grid of one sheet; with a study, all its rows, benchmarks and seeds, records or not.

    Args:
        metrics: what to show a benchmark by, where its records hold it; the study's or the papers' choice if empty.
    """
    if study is None:
        groups = _groups_of_records(records)
        benchmarks = sorted({record.run.benchmark for record in records}, key=benchmark_rank)
        seeds = tuple(sorted({record.run.seed for record in records}))
    else:
        groups = _groups_of_study(study, records)
        benchmarks = list(study.benchmarks)
        seeds = study.seeds
    chosen = [
        record
        for _, _, members, _ in groups
        for record in members
        if record.run.benchmark in benchmarks and record.run.seed in seeds
    ]
    chosen_keys = {record.key for record in chosen}
    columns = [column for name in benchmarks for column in _columns(name, chosen, study=study, metrics=metrics)]
    rows: list[Row] = []
    cells: dict[tuple[int, int], Cell] = {}
    kept: dict[int, tuple[Record, ...]] = {}
    for label, method, members, scores in groups:
        for score in scores:
            index = len(rows)
            suffix = (
                f" ({SCORE_TITLES.get(score, score)})" if SCORE_TITLES.get(score, score) and len(scores) > 1 else ""
            )
            kept[index] = tuple(record for record in members if record.key in chosen_keys)
            rows.append(
                Row(label=label + suffix, method=method, score=score, note=_note(members) + tuned_words(kept[index]))
            )
            for position, column in enumerate(columns):
                cells[index, position] = cell_of(column, score, members, seeds)
    protocol, protocol_hash, backbone, checkpoint = sheet
    return Grid(
        protocol=protocol, protocol_hash=protocol_hash, backbone=backbone, checkpoint=checkpoint, seeds=seeds,
        rows=tuple(rows), columns=tuple(columns), cells=cells, members=kept,
    )  # fmt: skip


Group = tuple[str, str, list[Record], tuple[str, ...]]
"""label, method, records, models that are scored"""


def _groups_of_records(records: Sequence[Record]) -> list[Group]:
    """A row a method configuration, whatever the sweeps that made its records called it.

    Two configurations of one name get their hash behind it rather than share a cell.
    """
    members: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if is_result(record.run):
            members.setdefault((record.run.method, _identity(record.run)), []).append(record)
    labels = {place: _label(mine) for place, mine in members.items()}
    groups: list[Group] = []
    for place in sorted(members, key=lambda place: (method_rank(place[0]), labels[place], place[1])):
        label = labels[place]
        if list(labels.values()).count(label) > 1:
            label += f" #{place[1][:6]}"
        groups.append((label, place[0], members[place], ("best",)))
    return groups


def _identity(run: Run) -> str:
    """Of a row: its configuration, with what was tuned in place of what was chosen."""
    tuned = run.tuning.get("grid", {})
    options = {name: value for name, value in hashed_options(run.method_config).items() if name not in tuned}
    return content_hash([options, sorted(tuned)] if tuned else options)


def tuned_words(records: Iterable[Record]) -> str:
    """``, tuned, 4 trials``; empty for rows that were not."""
    counts = sorted({len(record.run.tuning.get("trials", ())) for record in records} - {0})
    return f", tuned, {'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} trials" if counts else ""


def is_result(run: Run) -> bool:
    """Whether a table shows the run by itself: not where it was a trial that was not chosen."""
    return not run.tuning or "chosen" in run.tuning


def _label(records: Sequence[Record]) -> str:
    """What the sweeps called it if they agree; else the method with what is changed in it."""
    variants = {record.run.variant for record in records}
    if len(variants) == 1:
        return variants.pop()
    run = records[0].run
    names = sorted(run.changed.keys() - run.tuning.get("grid", {}).keys())
    changed = ",".join(f"{name}={run.changed[name]}" for name in names)
    return f"{run.method}[{changed}]" if changed else run.method


def _note(records: Sequence[Record]) -> str:
    """What the configuration behind a row says of itself (`methods.configs.MethodConfig.label_note`); nothing where its
    runs do not agree or the method is not known here."""
    notes = {label_note(record.run.method, record.run.method_config) for record in records}
    return f" ({note})" if len(notes) == 1 and (note := notes.pop()) else ""


def _groups_of_study(study: Study, records: Sequence[Record]) -> list[Group]:
    by_method: dict[str, list[Record]] = {}
    for record in records:
        by_method.setdefault(record.run.method, []).append(record)
    groups = []
    for entry in study.entries:
        found = [record for record in by_method.get(entry.method, []) if is_entry(record, entry.options)]
        tuned = [record for record in found if record.run.tuning]
        untuned = [record for record in found if not record.run.tuning]
        members = tuned if _tunes(study, entry) or not untuned else untuned
        groups.append((entry.label, entry.method, members, entry.scores or study.table.scores))
    return groups


def is_entry(record: Record, options: Mapping[str, Any]) -> bool:
    """Whether a run's configuration is the protocol's with ``options`` and nothing else changed; labels may differ."""
    config = {**OPTIONS_ADDED_LATER, **first_names(record.run.method_config)}
    wanted = first_names(options)
    asked = all(name in config and _plain(value) == _plain(config[name]) for name, value in wanted.items())
    known = options.keys() | record.run.tuning.get("grid", {}).keys()
    return asked and is_result(record.run) and record.run.changed.keys() <= known


def _tunes(study: Study, entry: Entry) -> bool:
    """Whether a study tunes a row: some field of its method, or of all methods, that the row does not set itself."""
    tuned = (name.rpartition(".") for name in study.tune)
    return any(option not in entry.options and method in ("", entry.method) for method, _, option in tuned)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _columns(benchmark: str, records: Sequence[Record], *, study: Study | None, metrics: Sequence[str]) -> list[Column]:
    mine = [record for record in records if record.run.benchmark == benchmark]
    manifests = sorted({record.run.manifest for record in mine if record.run.manifest}) or [""]
    columns = []
    for manifest in manifests:
        here = [record for record in mine if record.run.manifest in (manifest, "")]
        seen: dict[str, set[str]] = {}
        for record in here:
            for split, scores in record.scores.get("best", {}).items():
                if split != "val":
                    seen.setdefault(split, set()).update(scores)
        names = _metrics(benchmark, set().union(*seen.values()), study=study, metrics=metrics)
        notes = sorted({record.run.data_note for record in here if record.run.data_note})
        for split in _splits(benchmark, seen, study=study):
            columns += [
                Column(benchmark=benchmark, split=split, metric=m, manifest=manifest, note=", ".join(notes))
                for m in names
            ]
    return columns


def _metrics(benchmark: str, seen: set[str], *, study: Study | None, metrics: Sequence[str]) -> tuple[str, ...]:
    if metrics:
        return tuple(name for name in metrics if name in seen or not seen)
    if study is not None and study.table.metrics != "paper":
        return tuple(study.table.metrics)
    return PAPER_METRICS.get(benchmark) or tuple(sorted(seen)) or ("iou",)


def _splits(benchmark: str, seen: Mapping[str, object], *, study: Study | None) -> tuple[str, ...]:
    if study is not None and benchmark in study.table.splits:
        return study.table.splits[benchmark]
    if "all" in seen or (not seen and benchmark == "trans10k_v1"):
        return ("all",)
    return tuple(sorted(seen)) or ("test",)


def cell_of(column: Column, score: str, members: Sequence[Record], seeds: Sequence[int]) -> Cell:
    """What ``members``, records of one method configuration, say of one number."""
    values: dict[int, float] = {}
    codes: dict[int, str] = {}
    behind = []
    for record in members:
        run = record.run
        if run.benchmark != column.benchmark or run.seed not in seeds or run.manifest not in (column.manifest, ""):
            continue
        behind.append(record)
        value = record.scores.get(score, {}).get(column.split, {}).get(column.metric) if record.code == "OK" else None
        if value is None or not math.isfinite(value):
            if run.seed not in values:
                codes[run.seed] = str(record.code) if record.code != "OK" else "NO_SCORE"
            continue
        if values.setdefault(run.seed, value) != value:
            codes[run.seed] = "CONFLICT"
        elif codes.get(run.seed) != "CONFLICT":
            codes.pop(run.seed, None)
    for seed in seeds:
        if seed not in values and seed not in codes:
            codes[seed] = MISSING
    return Cell(values=values, codes=codes, records=tuple(behind))
