"""Typed cells: every score of a comparison with what stands behind it, and the paired difference of two.

A grid holds the cells of one sheet (protocol hash, backbone, checkpoint). A column is bound to one split manifest as well,
and a row to one method configuration. Whoever shows a number (a page, a figure, a claim, the report) takes it from here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from harness import statistics as stats
from harness.archive.archive import Archive, PerImage
from harness.archive.files import rounding
from harness.archive.schema import Record, Run, content_hash
from harness.comparison.names import Metric, benchmark_title, metric
from harness.comparison.rows import MISSING, Row, Sheet, begun_by, is_run, version_of
from harness.protocols.keys import hashed_options

if TYPE_CHECKING:
    from collections.abc import Iterable

Mark = Literal["", "best", "tied", "second"]
"""Best of its column, not significantly different from the best, or the best of the rest."""

GENERATED = "generated sample"
"""How the data note of a benchmark begins whose images are made up."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """benchmark, test split and metric; ``manifest`` is the hash of the split, or "" where no record tells; ``title`` is what
    the benchmark is called."""

    benchmark: str
    split: str
    metric: str
    manifest: str
    note: str = ""
    title: str = ""

    @property
    def benchmark_title(self) -> str:
        return self.title or benchmark_title(self.benchmark)

    @cached_property
    def measure(self) -> Metric:
        return metric(self.metric)

    @cached_property
    def sign(self) -> int:
        """What a score is multiplied by so that higher is better."""
        return self.measure.sign

    def holds(self, run: Run) -> bool:
        """Whether a run was scored on this benchmark and this split."""
        return run.benchmark == self.benchmark and run.manifest in (self.manifest, "")

    @property
    def short(self) -> str:
        """``Trans10K-v1 easy mIoU``: without the notes that tell it from others of a table."""
        return f"{self.benchmark_title} {self.within}"

    @property
    def within(self) -> str:
        """``easy mIoU``: what it is of its benchmark."""
        return (f"{self.split} " if self.split != "test" else "") + self.measure.title

    def heading(self, beside: Sequence[Column]) -> str:
        """Benchmark, split where there are several, metric; ``beside``: all of the table."""
        title = self.benchmark_title
        notes = {other.note for other in beside}
        if self.note and len(self.note) <= 24 and len(notes) > 1:
            title += f" ({self.note})"
        if self.split != "test":
            title += f" {self.split}"
        if len({other.manifest for other in beside if other.benchmark == self.benchmark}) > 1:
            title += f" #{self.manifest[:6]}"
        return f"{title} {self.measure.heading}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """What is known of one number: the scores of a row on a column.

    Args:
        values: seed -> score in [0, 1] of runs that ended well.
        codes: seed -> reason why there is no score, or why it counts for nothing.
        records: the records behind it.
        stale: versions of the code that are not the latest of the table.
    """

    row: Row
    column: Column
    values: Mapping[int, float]
    codes: Mapping[int, str]
    records: tuple[Record, ...] = ()
    stale: frozenset[str] = frozenset()

    @classmethod
    def of(cls, row: Row, column: Column, seeds: Sequence[int], *, stale: frozenset[str] = frozenset()) -> Cell:
        """What the row's records say; of ``seeds`` without a record the cell says that they are missing."""
        values: dict[int, float] = {}
        codes: dict[int, str] = {}
        behind = []
        for record in row.on.get(column.benchmark, ()):
            seed = record.run.seed
            if not column.holds(record.run):
                continue
            behind.append(record)
            scores = record.scores.get(row.score, {}).get(column.split, {}) if record.code == "OK" else {}
            value = scores.get(column.metric)
            if value is None or not math.isfinite(value):
                if seed not in values:
                    codes[seed] = str(record.code) if record.code != "OK" else "NO_SCORE"
                continue
            if values.setdefault(seed, value) != value:
                codes[seed] = "CONFLICT"
            elif codes.get(seed) != "CONFLICT":
                codes.pop(seed, None)
        for seed in seeds:
            if seed not in values and seed not in codes:
                codes[seed] = MISSING
        return cls(row=row, column=column, values=values, codes=codes, records=tuple(behind), stale=stale)

    @property
    def planned(self) -> tuple[int, ...]:
        """The seeds that were asked for; empty where this row was not planned on this benchmark."""
        return tuple(sorted(self.values.keys() | self.codes.keys()))

    @property
    def seeds(self) -> list[int]:
        """Those that are in."""
        return sorted(self.values.keys() - self.codes.keys())

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.codes

    @property
    def ranks(self) -> bool:
        """Whether it can be best of its column: a single run says nothing of the next."""
        return self.complete and len(self.values) > 1

    @property
    def code(self) -> str:
        """The reasons of a gap."""
        return "/".join(sorted(set(self.codes.values())))

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def by_seed(self) -> list[float]:
        return [self.values[seed] for seed in sorted(self.values)]

    @property
    def value(self) -> float:
        """Mean over seeds; nothing is shown of it where there is a gap."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def printed(self) -> float:
        """To the digit of a table."""
        return round(100 * self.value, 1)

    def prints_as(self, other: Cell) -> bool:
        """Whether both are the same to that digit, on the same seeds."""
        return self.printed == other.printed and self.values.keys() == other.values.keys()

    @property
    def spread(self) -> float | None:
        """SD with ddof = 1, None for a single run."""
        return stats.sd(self.by_seed)

    @cached_property
    def test_share(self) -> float:
        """Images tested over images trained on where every seed splits the images anew, else 0."""
        return _test_share(self.records, self.column.split)

    @property
    def interval(self) -> stats.Interval | None:
        """Student's, 95 %, over the seeds, that of folds where every seed splits the images anew; None for a single run."""
        return stats.of_folds(self.by_seed, test_share=self.test_share).interval() if self.values else None

    @property
    def signed(self) -> list[float]:
        """By seed, higher is better."""
        return [self.column.sign * value for value in self.by_seed]

    def why(self, archive: Archive) -> list[str]:
        """Runs, seeds, hashes, files, and what was left out with the reason."""
        row, column = self.row, self.column
        lines = [
            *row.sheet.why(),
            f"  benchmark {column.benchmark}, split {column.split}, metric {column.metric}, scored model {row.score}",
            f"  split manifest {column.manifest or 'unknown'}" + (f", data note: {column.note}" if column.note else ""),
            f"  seeds planned: {', '.join(map(str, self.planned)) or 'none (this row was not planned on this benchmark)'}",
        ]
        runs = [record for record in self.records if is_run(record)]
        for record in sorted(runs, key=lambda record: (record.run.seed, record.key)):
            lines += self._run(record, archive)
        lines += [f"  seed {seed}: no record" for seed, code in sorted(self.codes.items()) if code == MISSING]
        return lines + self._left_out(archive.records)

    def _run(self, record: Record, archive: Archive) -> list[str]:
        seed, store = record.run.seed, archive.store
        if seed in self.values and seed not in self.codes:
            outcome = f"{100 * self.values[seed]:.4f}"
        else:
            outcome = self.codes.get(seed, record.code) + (f": {record.message}" if record.message else "")
        epoch = f", epoch {record.selected_epoch} selected" if record.selected_epoch is not None else ""
        where = ", ".join(record.environment[name] for name in ("device", "host") if record.environment.get(name))
        stale = " (not the latest of this table)" if version_of(record) in self.stale else ""
        files = (store.path(record.key), store.images_path(record.key), store.architecture_path(record.key))
        return [
            f"  seed {seed}: {outcome}{epoch}",
            f"    key {record.key}, configuration {_configuration(record)}"
            + (f" (changed: {_pairs(record.run.changed)})" if record.run.changed else ""),
            f"    code {version_of(record)}{stale}{begun_by(record)}, attempts {record.attempts}"
            + (f", finished {record.finished}" if record.finished else "")
            + (f", on {where}" if where else ""),
            *(f"    {path}" for path in files if path.is_file()),
        ]

    def _left_out(self, records: Iterable[Record]) -> list[str]:
        """Records of this method on this benchmark that are not in the cell."""
        keys = {record.key for record in self.records}
        sheet, lines = self.row.sheet, []
        for record in records:
            run = record.run
            if run.method != self.row.method or run.benchmark != self.column.benchmark or record.key in keys:
                continue
            reasons = []
            if run.protocol_hash != sheet.protocol_hash:
                reasons.append(f"protocol {run.protocol} {run.protocol_hash}")
            if run.backbone != sheet.backbone:
                reasons.append(f"backbone {run.backbone}")
            if run.checkpoint != sheet.checkpoint:
                reasons.append(f"checkpoint {run.checkpoint or 'none'}")
            if run.manifest not in (self.column.manifest, ""):
                reasons.append(f"split manifest {run.manifest}")
            if self.planned and run.seed not in self.planned:
                reasons.append(f"seed {run.seed}")
            if not reasons:
                reasons.append(f"configuration {_configuration(record)} ({_pairs(run.changed) or 'as the protocol'})")
            lines.append(f"  left out: {record.key} ({run.variant}, seed {run.seed}): {', '.join(reasons)}")
        return lines


def _configuration(record: Record) -> str:
    return content_hash(hashed_options(record.run.method, record.run.method_config))[:8]


def _pairs(changed: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={changed[name]}" for name in sorted(changed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """First minus second, in points, positive is better.

    Args:
        by_seed: one difference a seed that both have.
        by_image: one difference an image, averaged over those seeds (one a cluster, summed over its images, where
            images are not independent); None where a score is not a mean over images.
        estimate: with the parts of its variance: seeds and images where there is ``by_image``, seeds else.
        clusters: how many clusters the images fall into; 0 where they are independent.
        folds: whether every seed split the images anew, so that the interval is Nadeau and Bengio's.
    """

    first: Cell
    second: Cell
    by_seed: tuple[float, ...]
    by_image: tuple[float, ...] | None
    estimate: stats.Estimate
    clusters: int = 0
    folds: bool = False

    @property
    def mean(self) -> float:
        return self.estimate.mean

    @property
    def interval(self) -> stats.Interval | None:
        """95 %; None for a single seed."""
        return self.estimate.interval()

    @property
    def is_none(self) -> bool:
        """Whether the two are not significantly different: 0 lies in the interval, or there is no interval."""
        return self.interval is None or self.interval.low <= 0 <= self.interval.high

    def why(self, archive: Archive) -> list[str]:
        """Its parts."""
        seeds = ", ".join(f"{value:+.4f}" for value in self.by_seed)
        lines = [f"  {self.first.row.label} − {self.second.row.label}, by seed: {seeds}", self._parts()]
        if self.folds:
            lines.append(
                "  every seed split the images anew: the variance is s² (1/k + tested/trained), Nadeau and Bengio 2003"
            )
        elif self.by_image is None:
            lines.append("  over seeds alone: no per-image scores that average to the runs' scores")
        elif self.clusters:
            lines.append(f"  images count by cluster: {self.clusters} of them")
        return lines

    def _parts(self) -> str:
        if self.interval is None or self.estimate.seeds is None:
            return f"  mean {self.mean:+.4f} of one seed: no interval"
        names = ("images", "taken back once: what both hold of seeds × images,")
        parts = [("seeds", self.estimate.seeds), *zip(names, self.estimate.rest, strict=False)]
        words = ", ".join(f"{name} SE {abs(part.variance) ** 0.5:.4f} (df {part.df:.4g})" for name, part in parts)
        return f"  mean {self.mean:+.4f}, 95 % interval {self.interval:+.4f}; its parts: {words}"


def paired_difference(first: Cell, second: Cell, archive: Archive) -> Difference | None:
    """Of two cells of one column; None where they have no seed in common. A seed whose records disagree is none."""
    seeds = sorted(set(first.seeds) & set(second.seeds))
    if not seeds:
        return None
    by_seed = tuple(100 * first.column.sign * (first.values[seed] - second.values[seed]) for seed in seeds)
    share = _test_share([*first.records, *second.records], first.column.split)
    images = None if share else image_differences(first, second, archive, seeds=seeds)
    if images is not None and len({frozenset(of_seed) for of_seed in images.scores.values()}) > 1:
        images = None  # seeds that score different images are not crossed with them
    estimate = stats.crossed(images.scores, clusters=images.clusters) if images else None
    if images is None or estimate is None:
        alone = stats.of_folds(by_seed, test_share=share) if share else stats.of_seeds(by_seed)
        return Difference(first=first, second=second, by_seed=by_seed, by_image=None, estimate=alone, folds=bool(share))
    sums: dict[str, float] = {}
    for stem in sorted(images.scores[seeds[0]]):
        name = images.clusters.get(stem, stem)
        sums[name] = sums.get(name, 0.0) + statistics.fmean(images.scores[seed][stem] for seed in seeds)
    return Difference(
        first=first, second=second, by_seed=by_seed, by_image=tuple(sums.values()), estimate=estimate,
        clusters=len(sums) if images.clusters else 0,
    )  # fmt: skip


def spread_over(differences: Iterable[Difference]) -> str:
    """What the intervals of some differences are over, as a caption says it."""
    folds = {difference.folds for difference in differences}
    if folds == {True}:
        return "splits, one a seed"
    return "seeds and images" + (", over splits where every seed has its own" if True in folds else "")


def _test_share(records: Sequence[Record], split: str) -> float:
    """Images tested over images trained on, where every seed splits the images anew; 0 where all seeds share one split."""
    of_folds = [
        record for record in records if record.run.rules.get("split_follows_seed") and record.counts.get("train")
    ]
    shares = [record.tested.get(split, 0) / record.counts["train"] for record in of_folds]
    return max(shares, default=0.0)


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """seed -> stem -> points, higher is better; and the clusters that all its runs agree on."""

    scores: Mapping[int, Mapping[str, float]]
    clusters: Mapping[str, str]

    @classmethod
    def of(cls, cell: Cell, archive: Archive, *, seeds: Sequence[int]) -> ImageScores | None:
        """None unless every run has per-image scores that average to its score."""
        scores: dict[int, dict[str, float]] = {}
        clusters: dict[str, str] = {}
        column = cell.column
        for record in cell.records:
            seed = record.run.seed
            if seed not in seeds or record.code != "OK":  # one that failed beside one that did not
                continue
            images: PerImage | None = archive.images(record, cell.row.score, column.split, column.metric)
            if images is None:
                return None
            values = [*images.scores.values()]
            if abs(math.fsum(values) / len(values) - cell.values[seed]) > rounding(values):
                return None
            scores[seed] = {stem: 100 * column.sign * value for stem, value in images.scores.items()}
            clusters.update(images.clusters)
        return cls(scores=scores, clusters=clusters)


def image_differences(first: Cell, second: Cell, archive: Archive, *, seeds: Sequence[int]) -> ImageScores | None:
    """First minus second by seed and image; None unless all these runs have scores by image, of the same images under one seed."""
    ours, theirs = (ImageScores.of(cell, archive, seeds=seeds) for cell in (first, second))
    if ours is None or theirs is None:
        return None
    try:
        differences = stats.paired(ours.scores, theirs.scores)
    except ValueError:
        return None
    return ImageScores(scores=differences, clusters={**theirs.clusters, **ours.clusters})


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The cells of one table."""

    sheet: Sheet
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[Row, Column], Cell]
    archive: Archive
    _differences: dict[tuple[Row, Row, Column], Difference | None] = field(default_factory=dict)
    _orders: dict[Column, list[Cell]] = field(default_factory=dict)

    @cached_property
    def records(self) -> list[Record]:
        """Everything that was run; a placeholder of a planned run is not."""
        unique = {record.key: record for row in self.rows for record in row.runs}
        return [unique[key] for key in sorted(unique)]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that was planned for some cell."""
        return tuple(sorted({seed for cell in self.cells.values() for seed in cell.planned}))

    def title_of(self, benchmark: str) -> str:
        """What its columns call a benchmark."""
        titles = (column.benchmark_title for column in self.columns if column.benchmark == benchmark)
        return next(titles, benchmark_title(benchmark))

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(column.benchmark for column in self.columns))

    @cached_property
    def is_generated(self) -> bool:
        """Whether all of its images are made up, so that nothing is ranked."""
        notes = [record.run.data_note for record in self.records]
        return bool(notes) and all(note.startswith(GENERATED) for note in notes)

    @property
    def rules(self) -> Mapping[str, object]:
        """Of its first run: those of one sheet share them but for what a card says of a benchmark."""
        return self.records[0].run.rules if self.records else {}

    @property
    def model_name(self) -> str:
        """``timm/vit_small_patch14_dinov2 + linear``"""
        return f"{self.sheet.backbone} + {self.rules.get('decoder', 'sam')}"

    def row(self, label: str) -> Row | None:
        return next((row for row in self.rows if row.label == label), None)

    def below(self, column: Column) -> list[Cell]:
        return [self.cells[row, column] for row in self.rows]

    def difference(self, first: Row, second: Row, column: Column) -> Difference | None:
        """The `paired_difference` of two rows, computed once."""
        place = (first, second, column)
        if place not in self._differences:
            cells = self.cells[first, column], self.cells[second, column]
            self._differences[place] = paired_difference(*cells, self.archive)
        return self._differences[place]

    def best_first(self, column: Column) -> list[Cell]:
        """The cells that rank, by how many others each is ahead of on the seeds that both have, then by mean. Where all have
        the same seeds that is by mean; else a row that misses one which is bad for all would lead by that.
        """
        if column not in self._orders:
            cells, sign = [cell for cell in self.below(column) if cell.ranks], column.sign

            def place(cell: Cell) -> tuple[int, float]:
                ahead = 0
                for other in cells:
                    common = cell.values.keys() & other.values.keys()
                    ahead += math.fsum(sign * (cell.values[seed] - other.values[seed]) for seed in common) > 0
                return -ahead, -sign * cell.value

            self._orders[column] = sorted(cells, key=place)
        return self._orders[column]

    @cached_property
    def marks(self) -> dict[Cell, Mark]:
        """Among cells that rank; rows of the same seeds that tie at the printed digit share one. None is marked where fewer than two
        rank, and none of generated images, of which none is better than another."""
        marks: dict[Cell, Mark] = {}
        for column in () if self.is_generated else self.columns:
            order = self.best_first(column)
            if len(order) < 2:
                continue
            first = order[0]
            if self.unranked(column):
                continue
            best = [cell for cell in order if cell.prints_as(first)]
            others = [cell for cell in order if cell not in best]
            differences = {cell: self.difference(cell.row, first.row, column) for cell in others}
            tied = [cell for cell, difference in differences.items() if difference is None or difference.is_none]
            rest = [cell for cell in others if cell not in tied]
            second = [cell for cell in rest if cell.prints_as(rest[0])]
            marks |= {**dict.fromkeys(best, "best"), **dict.fromkeys(tied, "tied"), **dict.fromkeys(second, "second")}
        return marks

    def unranked(self, column: Column) -> list[Cell]:
        """Those for whose sake none of the column is marked: cells that do not rank, such as for a seed that is missing, and are not
        behind the first of those that do on the two seeds or more that both have."""
        order = self.best_first(column)
        beside = {
            cell: self.difference(cell.row, order[0].row, column)
            for cell in (self.below(column) if order else ())
            if not cell.ranks and len(cell.values.keys() & order[0].values.keys()) > 1
        }
        return [
            cell for cell, difference in beside.items() if difference and (difference.is_none or difference.mean > 0)
        ]

    @cached_property
    def first_metrics(self) -> list[Column]:
        """The first column of every benchmark, split and manifest: one number each."""
        first: dict[tuple[str, str, str], Column] = {}
        for column in self.columns:
            first.setdefault((column.benchmark, column.split, column.manifest), column)
        return list(first.values())

    @cached_property
    def one_each(self) -> list[Column]:
        """Of these one a benchmark, so that none counts twice: all test images together, else what most rows have."""
        best: dict[str, Column] = {}
        for column in self.first_metrics:
            best[column.benchmark] = max(best.get(column.benchmark, column), column, key=self._fitness)
        return list(best.values())

    @cached_property
    def first_columns(self) -> dict[str, Column]:
        """Benchmark that has runs -> its first metric."""
        return {column.benchmark: column for column in self.one_each if any(cell.values for cell in self.below(column))}

    def _fitness(self, column: Column) -> tuple[bool, int, int, int]:
        cells = self.below(column)
        complete, filled = sum(cell.complete for cell in cells), sum(bool(cell.values) for cell in cells)
        return (column.split in ("all", "test"), complete, filled, -self.columns.index(column))
