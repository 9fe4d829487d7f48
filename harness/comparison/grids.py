"""From records to grids: which records share a table, which of these tables a study has, and what columns they have; and every row of a
grid against a baseline: differences with the p-values of sign flips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.archive.schema import Record, Run, content_hash
from harness.comparison.cells import Cell, Column, Difference, Grid
from harness.comparison.names import benchmark_rank, benchmark_title, shown_metrics
from harness.comparison.rows import (
    Row,
    Sheet,
    by_benchmark,
    grouped,
    is_run,
    rows_of_records,
    rows_of_study,
    stale_versions,
)
from harness.comparison.rules import card, from_card
from harness.protocols.keys import hashed_rules, with_later
from harness.studies import Study

Place = TypeVar("Place", bound=Hashable)
Entry = TypeVar("Entry", bound=Hashable)


def sheets(records: Iterable[Record]) -> dict[Sheet, list[Record]]:
    """Records that may share a table, by (protocol, hash, backbone, checkpoint), in that order."""
    members = grouped(records, lambda record: Sheet.of(record.run))
    return {sheet: sorted(members[sheet], key=lambda record: record.key) for sheet in sorted(members)}


def grids(
    records: Iterable[Record], archive: Archive, *, study: Study | None = None, metrics: Sequence[str] = ()
) -> list[Grid]:
    """A grid a sheet. With a study: the sheet of its own rules, and others where at least half of its rows were run and that
    keep to what it sets itself; a row that it shares with another study was not run for it under that study's rules. Where
    none is such, what there is.

    Args:
        archive: what lies beside the records.
        metrics: see `build_grid`.
    """
    chosen, rest = [], []
    for sheet, members in sheets(records if study is None else _under_one_hash(records, study)).items():
        if study is None:
            chosen.append(build_grid(sheet, members, archive, metrics=metrics))
            continue
        run = members[0].run
        if (study.backbones and sheet.backbone not in study.backbones) or not _is_model(study, run):
            continue
        here = study
        if sheet.protocol != study.protocol:  # what another protocol has not run of the study is no gap
            there = {record.run.benchmark for record in members}
            here = replace(study, benchmarks=tuple(name for name in study.benchmarks if name in there))
        grid = build_grid(sheet, members, archive, study=here, metrics=metrics)
        filled = sum(bool(row.runs) for row in grid.rows)
        keeps_to_it = not from_card(run.rules, {**run.rules, **_set(study, run)})
        if (2 * filled >= len(grid.rows) and keeps_to_it) or (filled and _has_rules_of(study, run)):
            chosen.append(grid)
        elif filled and sheet.protocol == study.protocol:
            rest.append(grid)
    return chosen or rest


def _under_one_hash(records: Iterable[Record], study: Study) -> list[Record]:
    """A study's records, with one hash of their card where one command set what another tuned or set for one benchmark alone: a hash is
    of a whole card, before its rates are tuned. A hash is replaced by another where its rules are among the other's on every benchmark
    of the study that both have, trials aside; the other then has its benchmarks, too."""
    records = list(records)
    ours = [record for record in records if record.run.protocol == study.protocol]
    renamed: dict[tuple[str, str, str], str] = {}
    for model, members in grouped(ours, lambda record: (record.run.backbone, record.run.checkpoint)).items():
        count = Counter(record.run.protocol_hash for record in members)
        rules: dict[str, dict[str, set[str]]] = {digest: {} for digest in count}
        for run in (record.run for record in members if len(count) > 1):
            if run.benchmark in study.benchmarks and run.seed not in {*study.tune_seeds} - {*study.seeds}:
                rules[run.protocol_hash].setdefault(run.benchmark, set()).add(content_hash(hashed_rules(run.rules)))
        for rarer in sorted(count, key=lambda digest: (count[digest], digest)):
            for common, _ in count.most_common():
                shared = rules[rarer].keys() & rules[common].keys()
                is_free = rarer != common and (*model, common) not in renamed
                if is_free and shared and all(rules[rarer][name] <= rules[common][name] for name in shared):
                    renamed[(*model, rarer)] = common
                    rules[common] = {**rules[rarer], **rules[common]}
                    break

    def of_table(run: Run) -> str:
        digest = run.protocol_hash
        while (place := (run.backbone, run.checkpoint, digest)) in renamed:
            digest = renamed[place]
        return digest

    return [
        replace(record, run=replace(record.run, protocol_hash=of_table(record.run)))
        if record.run.protocol == study.protocol and of_table(record.run) != record.run.protocol_hash
        else record
        for record in records
    ]


def _set(study: Study, run: Run) -> dict[str, Any]:
    """What a study sets for a run's benchmark, by the names that rules of a run have."""
    own = f"benchmarks.{run.benchmark}."
    others = {name for name in study.set if name.startswith("benchmarks.") and not name.startswith(own)}
    return {name.removeprefix(own): value for name, value in study.set.items() if name not in others}


def _has_rules_of(study: Study, run: Run) -> bool:
    """Whether nothing was set on the command line; yes where the card is not known."""
    if run.protocol != study.protocol:
        return False
    rules = card(run.protocol, run.benchmark)
    set_by_study = {"budget", "decoder", "decoder_lr"}
    return rules is None or from_card(run.rules, {**rules, **_set(study, run)}).keys() <= set_by_study


def _is_model(study: Study, run: Run) -> bool:
    """Whether a run's decoder is one of the study's, with its rate; what the study leaves to a card that is not known may be any."""
    ours = with_later(run.rules)
    of_card = card(run.protocol, run.benchmark)
    asked = {**(ours if of_card is None else with_later(of_card)), **_set(study, run)}
    if not study.decoders:
        return bool(ours["decoder"] == asked["decoder"])
    if ours["decoder"] not in study.decoders:
        return False
    return bool(ours["decoder_lr"] == {**asked, **study.decoders[ours["decoder"]]}["decoder_lr"])


def build_grid(
    sheet: Sheet,
    records: Sequence[Record],
    archive: Archive,
    *,
    study: Study | None = None,
    metrics: Sequence[str] = (),
) -> Grid:
    """The grid of one sheet; with a study, all its rows, benchmarks and seeds, records or not.

    Without a study, a cell's seeds are those that its sweeps planned (`Run.planned_seeds`), and a row has a cell on the
    benchmarks that they planned it for.

    Args:
        metrics: what to show a benchmark by, where its records hold it; the study's or the papers' choice if empty.
    """
    if study is None:
        rows = rows_of_records(sheet, records)
        benchmarks = sorted({record.run.benchmark for record in records}, key=benchmark_rank)
    else:
        rows = rows_of_study(sheet, study, records)
        benchmarks = list(study.benchmarks)
    chosen = {id(record): record for row in rows for record in row.records}.values()
    on = by_benchmark(chosen)
    columns = [
        column for name in benchmarks for column in _columns(name, on.get(name, []), study=study, metrics=metrics)
    ]
    usual = {column: () if study else _usual_seeds(column, rows) for column in columns}
    stale = stale_versions({record.key: record for record in chosen if is_run(record)}.values())
    cells = {}
    for row in rows:
        for column in columns:
            seeds = study.seeds if study else _planned_seeds(column, row, usual=usual[column])
            cells[row, column] = Cell.of(row, column, seeds, stale=stale)
    return Grid(sheet=sheet, rows=tuple(rows), columns=tuple(columns), cells=cells, archive=archive)


def _columns(benchmark: str, records: Sequence[Record], *, study: Study | None, metrics: Sequence[str]) -> list[Column]:
    """The columns of one benchmark: a manifest after the other, of each its splits, of each its metrics."""
    title = benchmark_title(benchmark, [record.run for record in records])
    manifests = sorted({record.run.manifest for record in records if record.run.manifest}) or [""]
    columns = []
    for manifest in manifests:
        here = [record for record in records if record.run.manifest in (manifest, "")]
        scored: dict[str, set[str]] = {}
        for record in here:
            for split, scores in record.scores.get("best", {}).items():
                if split != "val":
                    scored.setdefault(split, set()).update(scores)
        names = _metrics(benchmark, here, set().union(*scored.values()), study=study, metrics=metrics)
        notes = sorted({record.run.data_note for record in here if record.run.data_note})
        columns += [
            Column(benchmark=benchmark, split=split, metric=name, manifest=manifest, note=", ".join(notes), title=title)
            for split in _splits(benchmark, scored, study=study)
            for name in names
        ]
    return columns


def _metrics(
    benchmark: str, records: Sequence[Record], scored: set[str], *, study: Study | None, metrics: Sequence[str]
) -> tuple[str, ...]:
    if metrics:
        return tuple(name for name in metrics if name in scored or not scored)
    if study is not None and study.table.metrics != "paper":
        return tuple(study.table.metrics)
    return shown_metrics(benchmark, [record.run for record in records], scored=scored)


def _splits(benchmark: str, scored: Mapping[str, object], *, study: Study | None) -> tuple[str, ...]:
    if study is not None and benchmark in study.table.splits:
        return study.table.splits[benchmark]
    if "all" in scored or (not scored and benchmark == "trans10k_v1"):
        return ("all",)
    return tuple(sorted(scored)) or ("test",)


def _seeds_of(column: Column, row: Row) -> set[int]:
    """The seeds that a row's records have on a column, and those that their sweeps planned besides."""
    here = [record.run for record in row.on.get(column.benchmark, ()) if column.holds(record.run)]
    return {run.seed for run in here} | {seed for run in here for seed in run.planned_seeds}


def _usual_seeds(column: Column, rows: Sequence[Row]) -> tuple[int, ...]:
    """The seeds of most rows: what older records, which do not say what was planned, are held against."""
    sets = [seeds for row in rows if (seeds := _seeds_of(column, row))]
    return tuple(seed for seed in sorted(set().union(*sets)) if 2 * sum(seed in seeds for seeds in sets) > len(sets))


def _planned_seeds(column: Column, row: Row, *, usual: Sequence[int]) -> tuple[int, ...]:
    """The seeds that a row should have on a column; none where it was not planned on this benchmark at all."""
    own = _seeds_of(column, row)
    here = [record.run for record in row.on.get(column.benchmark, ()) if column.holds(record.run)]
    if not here and not any(column.benchmark in record.run.planned_benchmarks for record in row.records):
        return ()
    if here and all(run.planned_seeds for run in here):
        return tuple(sorted(own))
    return tuple(sorted(own | set(usual)))


def without_gaps(done: Mapping[Place, Set[Entry]], *, least: int) -> tuple[list[Place], set[Entry]]:
    """Which rows and places (columns, benchmarks) of a table with gaps make one without any: (places in the order of
    ``done``, rows that are complete in all of them), at least ``least`` rows.

    From every place as a start the others are added greedily, those with the most rows first, so that a barely begun one
    costs no other its rows; the start that gathers the most places wins, of several the one that keeps the most rows.

    Args:
        done: place -> the rows that are complete there.
    """
    order = sorted((place for place in done if len(done[place]) >= least), key=lambda place: -len(done[place]))
    best: tuple[list[Place], set[Entry]] = [], set()
    for start in order:
        chosen, common = [start], set(done[start])
        for place in order:
            if place != start and len(common & done[place]) >= least:
                common &= done[place]
                chosen.append(place)
        best = max(best, (chosen, common), key=lambda kept: (len(kept[0]), len(kept[1])))
    return [place for place in done if place in best[0]], best[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """A row's difference to the baseline on one column.

    Args:
        p_seeds, p_images: of sign flips, adjusted after Holm over the rows of the column; None where n is too small, and
            where seeds are folds, whose differences depend on each other through the images that they share.
    """

    difference: Difference
    p_seeds: float | None
    p_images: float | None

    @property
    def row(self) -> Row:
        return self.difference.first.row

    @property
    def column(self) -> Column:
        return self.difference.first.column

    @property
    def p_in_words(self) -> tuple[str, str]:
        """Over seeds, over images."""
        few = "– (folds)" if self.difference.folds else f"n too small ({len(self.difference.by_seed)})"
        return (
            few if self.p_seeds is None else f"{self.p_seeds:.2g}",
            "–" if self.p_images is None else f"{self.p_images:.2g}",
        )

    def why(self, archive: Archive) -> list[str]:
        difference, (seeds, images) = self.difference, self.p_in_words
        return [
            *difference.why(archive),
            f"  p over seeds {seeds}, over images {images} (Holm over the rows of this benchmark)",
            *(
                line
                for cell in (difference.first, difference.second)
                for line in (f"  {cell.row.label}:", *(f"  {told}" for told in cell.why(archive)[2:]))
            ),
        ]


def contrasts(grid: Grid, base: Row) -> list[Contrast]:
    """A grid against one of its rows: every other row that has a seed in common with it, by column."""
    return [contrast for column in grid.first_metrics for contrast in on_column(grid, base, column)]


def on_column(grid: Grid, base: Row, column: Column) -> list[Contrast]:
    """Every other row's difference to ``base`` on one column."""
    differences = {
        row.label: difference
        for row in grid.rows
        if row is not base and (difference := grid.difference(row, base, column)) is not None
    }
    within = stats.ALPHA / max(len(differences), 1)  # what the best of so many must reach to pass after Holm
    by_seed = {
        label: None if difference.folds else stats.sign_flip(difference.by_seed, alpha=within).p
        for label, difference in differences.items()
    }
    by_image = {
        label: stats.sign_flip(difference.by_image, alpha=within).p
        for label, difference in differences.items()
        if difference.by_image is not None
    }
    seeds_p = stats.holm({label: p for label, p in by_seed.items() if p is not None})
    images_p = stats.holm({label: p for label, p in by_image.items() if p is not None})
    return [
        Contrast(difference=difference, p_seeds=seeds_p.get(label), p_images=images_p.get(label))
        for label, difference in differences.items()
    ]
