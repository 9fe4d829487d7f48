"""The cells of a table: rows of runs under the same rules, columns of benchmarks, splits and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.archive.archive import Archive
from harness.archive.schema import Record, Run
from harness.comparison.frames import SAME_RULES, rows, rows_of_study, study_lines
from harness.comparison.names import benchmark_rank, benchmark_title, shown_metrics
from harness.comparison.rules import HEADED, card, from_card, headed, overrides, overrides_in_words, shared
from harness.comparison.scores import MISSING, Cell, Column, Difference, Mark, Sample, of_samples
from harness.protocols.keys import with_later

if TYPE_CHECKING:
    import pandas as pd

    from harness.studies import Study

GENERATED = "generated sample"
"""How the data note of a benchmark with generated images begins."""


class Row(NamedTuple):
    """A method with the changes to its configuration, and which of its models is scored."""

    method: str
    options: Mapping[str, Any]
    model: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """One table of scores.

    Args:
        title: protocol, backbone, and how its rules differ from the card's and from those of other tables of the page.
        protocol, protocol_hash, backbone, checkpoint: what its runs share; for a study the hash of most of them.
        overrides: how its rules differ from the card's, in words; None where the card is not known.
        rows: by name, in order; a row of a study may have no run.
        columns: in order.
        cells: (row, column) -> its scores.
        runs: its runs, as `harness.comparison.frames.rows` gives them.
    """

    title: str
    protocol: str
    protocol_hash: str
    backbone: str
    checkpoint: str
    overrides: str | None
    rows: Mapping[str, Row]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], Cell]
    runs: pd.DataFrame
    archive: Archive
    _samples: dict[tuple[str, Column], Sample] = field(default_factory=dict)
    _differences: dict[tuple[str, str, Column], Difference | None] = field(default_factory=dict)

    @cached_property
    def records(self) -> list[Record]:
        """All records in the order of their keys, without placeholders of planned runs."""
        unique = {record.key: record for record in self.runs["record"] if record.code != MISSING}
        return [unique[key] for key in sorted(unique)]

    def records_of(self, row: str) -> list[Record]:
        """The runs of one row, without placeholders."""
        return self._by_row.get(row, [])

    @cached_property
    def _by_row(self) -> dict[str, list[Record]]:
        there = self.runs[self.runs["code"] != MISSING]
        return {str(row): list(here) for row, here in there.groupby("row")["record"]}

    @property
    def rules(self) -> Mapping[str, Any]:
        """Those of its first run; the runs of a table share them, except for rules that a card has for one benchmark."""
        return self.records[0].run.rules if self.records else {}

    @cached_property
    def is_generated(self) -> bool:
        """Whether all of its images are generated, so that nothing is ranked."""
        notes = [record.run.data_note for record in self.records]
        return bool(notes) and all(note.startswith(GENERATED) for note in notes)

    @property
    def is_own(self) -> bool:
        """Whether its images are a user's own."""
        return bool(self.records) and all(record.run.rules.get("own_classes") for record in self.records)

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(column.benchmark for column in self.columns))

    @cached_property
    def first_columns(self) -> dict[str, Column]:
        """Benchmark -> its leading column: the first metric, on all test images where there are several splits, of the manifest that
        most rows have."""

        def fitness(column: Column) -> tuple[bool, int, int]:
            filled = sum(bool(self.cells[row, column].values) for row in self.rows)
            return (column.split in ("all", "test"), filled, -self.columns.index(column))

        first: dict[tuple[str, str, str], Column] = {}
        for column in self.columns:
            first.setdefault((column.benchmark, column.split, column.manifest), column)
        return {
            name: max((column for column in first.values() if column.benchmark == name), key=fitness)
            for name in self.benchmarks
        }

    def sample(self, row: str, column: Column) -> Sample:
        """The scores of a row on a column by seed and image, read once."""
        if (row, column) not in self._samples:
            self._samples[row, column] = self.cells[row, column].sample(self.archive)
        return self._samples[row, column]

    def difference(self, row: str, baseline: str, column: Column) -> Difference | None:
        """Row minus baseline, paired by seed and image, computed once; None where they have no seed in common."""
        pair = (row, baseline, column)
        if pair not in self._differences:
            self._differences[pair] = of_samples(self.sample(row, column), self.sample(baseline, column))
        return self._differences[pair]

    def best_first(self, column: Column) -> list[str]:
        """The rows that rank, best first: those with two seeds or more, all planned ones in, and no empty masks.

        They are ordered by how many others each is ahead of on common seeds, then by mean. By the mean alone, a row that misses a
        seed which is bad for all would lead.
        """
        cells = {row: self.cells[row, column] for row in self.rows}
        cells = {row: cell for row, cell in cells.items() if cell.complete and cell.n > 1 and not cell.blank}

        def rank(row: str) -> tuple[int, float]:
            cell, ahead = cells[row], 0
            for other in cells.values():
                common = cell.values.keys() & other.values.keys()
                ahead += math.fsum(column.sign * (cell.values[seed] - other.values[seed]) for seed in common) > 0
            return -ahead, -column.sign * cell.mean

        return sorted(cells, key=rank)

    @cached_property
    def marks(self) -> dict[tuple[str, Column], Mark]:
        """Marks of the best row of each column, and of rows that are not significantly different from it. Rows of the same seeds that
        tie in the printed digit are both best. A row with a collapsed run has no interval, so it is not compared. A column has no
        marks where fewer than two rows rank, where a row with a gap leads or ties, and for generated images."""
        marks: dict[tuple[str, Column], Mark] = {}
        for column in () if self.is_generated else self.columns:
            order = self.best_first(column)
            if len(order) < 2 or self._is_open(order, column):
                continue
            first = self.cells[order[0], column]
            for row in order:
                cell = self.cells[row, column]
                if cell.values.keys() == first.values.keys() and round(100 * cell.mean, 1) == round(
                    100 * first.mean, 1
                ):
                    marks[row, column] = "best"
                elif cell.collapsed or first.collapsed:
                    continue
                elif (difference := self.difference(row, order[0], column)) is None or difference.is_none:
                    marks[row, column] = "tied"
        return marks

    def _is_open(self, order: Sequence[str], column: Column) -> bool:
        """Whether a row that does not rank, such as for a missing seed, leads or ties with the first that does, on two common seeds or
        more."""
        first = self.cells[order[0], column]
        for row in self.rows:
            cell = self.cells[row, column]
            if row in order or cell.blank or len(cell.values.keys() & first.values.keys()) < 2:
                continue
            difference = self.difference(row, order[0], column)
            if difference and (difference.is_none or difference.mean > 0):
                return True
        return False

    def tidy(self) -> pd.DataFrame:
        """Its runs as a tidy frame: method, options, row, benchmark, split, seed, metric, value in [0, 1]. No two lines of frames that are
        put together are alike but for their value: the rules, the checkpoint and the split of the data are in them."""
        import pandas as pd

        lines = [
            {
                "row": cell.row, "method": self.rows[cell.row].method, "model": cell.model,
                "options": ", ".join(f"{name}={value}" for name, value in sorted(self.rows[cell.row].options.items())),
                "backbone": self.backbone, "protocol": self.protocol, "benchmark": column.benchmark, "split": column.split, "seed": seed,
                "metric": column.metric, "value": cell.values.get(seed), "code": cell.codes.get(seed, "BLANK" if cell.blank else "OK"),
                "protocol_hash": cell.hash_of(seed), "checkpoint": self.checkpoint, "manifest": column.manifest,
            }
            for (_, column), cell in self.cells.items()
            for seed in cell.planned
        ]  # fmt: skip
        return pd.DataFrame(lines)


def grids(
    archive: Archive,
    *,
    protocol: str = "",
    study: Study | None = None,
    runs: pd.DataFrame | None = None,
    metrics: Sequence[str] = (),
) -> list[Grid]:
    """The tables of a results folder, one for each set of rules, backbone and checkpoint. Real images come before generated ones, many
    rows before few. No two tables have the same title.

    Args:
        protocol: only tables of this protocol.
        study: its rows, benchmarks and seeds, with or without records. A table under other rules is there only if it has half of the
            study's rows and the rules that the study sets. If there is no such table, any table of its protocol is there.
        runs: only these, in place of all that are no trials (`Archive.frame`).
        metrics: the columns of every benchmark, in place of the study's or the papers' choice.
    """
    if runs is None:  # a row of a study that names a value also shows runs that were trials of a tuning
        runs = archive.frame("runs", trials=study is not None)
    runs = runs[runs["protocol"] == protocol] if protocol and len(runs) else runs
    if runs.empty:
        return []
    if study is None:
        tables = [_grid(here, archive, metrics=metrics) for _, here in rows(runs).groupby("table", sort=False)]
    else:
        tables = _of_study(runs, study, archive, metrics=metrics)
    tables.sort(key=lambda parts: (parts["generated"], -len(parts["rows"]), -len(parts["runs"])))
    return _titled(tables)


Parts = dict[str, Any]
"""The arguments of a `Grid` before it has a title, and ``generated``."""


def _of_study(runs: pd.DataFrame, study: Study, archive: Archive, *, metrics: Sequence[str]) -> list[Parts]:
    """A table of the runs under the study's own rules, whatever their protocol's hash, and one for each hash of the others."""
    of_study = rows_of_study(runs, study)
    if study.backbones:
        of_study = of_study[of_study["backbone"].isin({*study.backbones, *study.by_backbone})]
    if of_study.empty:
        return []
    rules = [_rules_for(record.run, study) for record in of_study["record"]]
    names = ["_own", "_keeps", "_decoder", "_fits", "_hash"]
    of_study = of_study.assign(**dict(zip(names, map(list, zip(*rules, strict=True)), strict=True)))
    of_study = of_study[of_study["_fits"]]
    if of_study.empty:
        return []
    chosen, other_rules = [], []
    for _, here in of_study.groupby(["_own", "protocol", "backbone", "checkpoint", "_decoder", "_hash"], sort=False):
        is_own, half = here["_own"].all(), 2 * here["row"].nunique() >= len(study.entries)
        parts = _grid(here, archive, study=study, metrics=metrics)
        if is_own or (half and here["_keeps"].all()):
            chosen.append(parts)
        elif here["protocol"].iloc[0] == study.protocol:
            other_rules.append(parts)
    return chosen or other_rules


def _rules_for(run: Run, study: Study) -> tuple[bool, bool, str, bool, str]:
    """By what runs of a study are put into tables; runs of equal values share one.

    Whether the run has the study's own rules; whether it has the rules that the study sets; its decoder; whether that is one of
    the study's. Last its protocol's hash, empty where the hash does not matter.
    """
    own = f"benchmarks.{run.benchmark}."
    set_here = {
        name.removeprefix(own): value
        for name, value in {**study.set, **study.by_backbone.get(run.backbone, {})}.items()
        if not name.startswith("benchmarks.") or name.startswith(own)
    }
    decoder = with_later(run.rules)["decoder"]
    set_here |= {"decoder": decoder, **study.decoders[decoder]} if decoder in study.decoders else {}
    keeps = not from_card(run.rules, {**run.rules, **set_here})
    of_card = card(study.card if study.card and run.protocol == study.protocol else run.protocol, run.benchmark)
    wanted = {**(run.rules if of_card is None else of_card), **set_here}
    tuned = {name for name in study.tune if "." not in name}
    left = from_card(run.rules, wanted).keys() - {"budget"} - tuned
    fits = decoder in study.decoders if study.decoders else decoder == with_later(wanted)["decoder"]
    own_rules = run.protocol == study.protocol and keeps and not left
    return own_rules, keeps, decoder, fits, "" if own_rules and of_card is not None else run.protocol_hash


def _grid(runs: pd.DataFrame, archive: Archive, *, study: Study | None = None, metrics: Sequence[str] = ()) -> Parts:
    """The arguments of one table. Without a study a cell's seeds, and whether a row has a cell, are as the sweeps planned them."""
    if study is None:
        benchmarks = sorted(runs["benchmark"].unique(), key=benchmark_rank)
        order = runs.drop_duplicates("row")
        table = {
            str(row): Row(record.run.method, record.run.changed, str(model))
            for row, record, model in zip(order["row"], order["record"], order["model"], strict=True)
        }
    else:
        here = set(runs["benchmark"])
        own = runs["protocol"].iloc[0] == study.protocol  # what another protocol has not run of the study is no gap
        benchmarks = [name for name in study.benchmarks if own or name in here]
        table = {row: Row(entry.method, entry.options, model) for row, entry, model in study_lines(study)}
    on = {(str(row), str(name)): list(part) for (row, name), part in runs.groupby(["row", "benchmark"])["record"]}
    by_benchmark = {
        str(name): list({r.key: r for r in part}.values()) for name, part in runs.groupby("benchmark")["record"]
    }
    columns = [
        column
        for name in benchmarks
        for column in _columns(name, by_benchmark.get(name, []), study=study, metrics=metrics)
    ]
    planned_on = {
        str(row): {name for record in part for name in record.run.planned_benchmarks}
        for row, part in runs.groupby("row")["record"]
    }
    cells = {}
    for column in columns:
        own_seeds = {row: _seeds_of(column, on.get((row, column.benchmark), [])) for row in table}
        sets = [seeds for seeds in own_seeds.values() if seeds]
        usual = {seed for seed in set().union(*sets) if 2 * sum(seed in seeds for seeds in sets) > len(sets)}
        for row in table:
            records = on.get((row, column.benchmark), [])
            if study is not None:
                seeds = set(study.seeds)
            elif not own_seeds[row] and column.benchmark not in planned_on.get(row, ()):
                seeds = set()
            elif own_seeds[row] and all(r.run.planned_seeds for r in records if column.holds(r.run)):
                seeds = own_seeds[row]
            else:  # older records do not say what was planned, and are compared with the seeds of most rows
                seeds = own_seeds[row] | usual
            cells[row, column] = Cell.of(row, column, table[row].model, records, seeds=sorted(seeds))
    rules = {name: str(runs[name].mode().iloc[0]) for name in SAME_RULES}
    notes = [record.run.data_note for record in runs["record"]]
    return {
        **rules, "rows": table, "columns": tuple(columns), "cells": cells, "runs": runs, "archive": archive,
        "generated": all(note.startswith(GENERATED) for note in notes),
    }  # fmt: skip


def _columns(benchmark: str, records: Sequence[Record], *, study: Study | None, metrics: Sequence[str]) -> list[Column]:
    """The columns of one benchmark by manifest, split and metric."""
    runs = [record.run for record in records]
    title = benchmark_title(benchmark, runs)
    columns = []
    for manifest in sorted({run.manifest for run in runs if run.manifest}) or [""]:
        here = [record for record in records if record.run.manifest in (manifest, "")]
        scored: dict[str, set[str]] = {}
        for record in here:
            for split, scores in record.scores.get("best", {}).items():
                if split != "val":
                    scored.setdefault(split, set()).update(scores)
        known = set().union(*scored.values())
        if metrics:
            names = tuple(name for name in metrics if name in known or not known)
        elif study is not None and study.table.metrics != "paper":
            names = tuple(study.table.metrics)
        else:
            names = shown_metrics(benchmark, [record.run for record in here], scored=known)
        if study is not None and benchmark in study.table.splits:
            splits = study.table.splits[benchmark]
        else:
            splits = (
                ("all",)
                if "all" in scored or (not scored and benchmark == "trans10k_v1")
                else tuple(sorted(scored)) or ("test",)
            )
        note = ", ".join(sorted({record.run.data_note for record in here if record.run.data_note}))
        columns += [
            Column(benchmark=benchmark, split=split, metric=name, manifest=manifest, note=note, title=title)
            for split in splits
            for name in names
        ]
    return columns


def _seeds_of(column: Column, records: Sequence[Record]) -> set[int]:
    """The seeds of a row's records on a column, and those that their sweeps planned."""
    here = [record.run for record in records if column.holds(record.run)]
    return {run.seed for run in here} | {seed for run in here for seed in run.planned_seeds}


def _titled(tables: Sequence[Parts]) -> list[Grid]:
    """The tables with titles that name what differs from the card; equal titles also get their hash."""
    records = [sorted({r.key: r for r in parts["runs"]["record"]}.values(), key=lambda r: r.key) for parts in tables]
    changed = [overrides(here) for here in records]

    titles = []
    for parts, differing, here in zip(tables, changed, records, strict=True):
        everywhere = shared(list((differing or {}).values()))
        words = headed([name for name in HEADED if name in everywhere], here[0].run.rules) if everywhere else ""
        titles.append(f"{parts['protocol']} · {parts['backbone']}" + (f" · {words}" if words else ""))
    for same in {each for each in titles if titles.count(each) > 1}:
        for number, each in enumerate(titles):
            if each == same:
                parts = tables[number]
                weights = weights_in_words(parts["checkpoint"])
                titles[number] += f" · rules {parts['protocol_hash'][:8]}, weights {weights}"
    return [
        Grid(
            title=titles[number],
            overrides=None if changed[number] is None else overrides_in_words(changed[number] or {}),
            **{name: value for name, value in parts.items() if name != "generated"},
        )
        for number, parts in enumerate(tables)
    ]


def weights_in_words(checkpoint: str) -> str:
    """The name of a checkpoint on a page."""
    return checkpoint.removeprefix("sha256-")[:12] or "random"
