"""The columns of a table: benchmark, test split, metric and split manifest, and how they are headed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.archive.schema import Record, Run
from harness.comparison.names import benchmark_title, metric, shown_metrics
from harness.studies import Study


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

    def holds(self, run: Run) -> bool:
        """Whether a run was scored on this benchmark and this split."""
        return run.benchmark == self.benchmark and run.manifest in (self.manifest, "")

    @property
    def short(self) -> str:
        """``Trans10K-v1 easy mIoU``: without the notes that tell it from others of a table."""
        split = f" {self.split}" if self.split != "test" else ""
        return f"{self.benchmark_title}{split} {metric(self.metric).title}"


def columns_of(
    benchmark: str, records: Sequence[Record], *, study: Study | None, metrics: Sequence[str]
) -> list[Column]:
    """The columns of one benchmark: a manifest after the other, of each its splits, of each its metrics."""
    mine = [record for record in records if record.run.benchmark == benchmark]
    title = benchmark_title(benchmark, [record.run for record in mine])
    manifests = sorted({record.run.manifest for record in mine if record.run.manifest}) or [""]
    columns = []
    for manifest in manifests:
        here = [record for record in mine if record.run.manifest in (manifest, "")]
        seen: dict[str, set[str]] = {}
        for record in here:
            for split, scores in record.scores.get("best", {}).items():
                if split != "val":
                    seen.setdefault(split, set()).update(scores)
        names = _metrics(benchmark, here, set().union(*seen.values()), study=study, metrics=metrics)
        notes = sorted({record.run.data_note for record in here if record.run.data_note})
        for split in _splits(benchmark, seen, study=study):
            columns += [
                Column(
                    benchmark=benchmark, split=split, metric=m, manifest=manifest, note=", ".join(notes), title=title
                )
                for m in names
            ]
    return columns


def _metrics(
    benchmark: str, records: Sequence[Record], seen: set[str], *, study: Study | None, metrics: Sequence[str]
) -> tuple[str, ...]:
    if metrics:
        return tuple(name for name in metrics if name in seen or not seen)
    if study is not None and study.table.metrics != "paper":
        return tuple(study.table.metrics)
    return shown_metrics(benchmark, [record.run for record in records], scored=seen)


def _splits(benchmark: str, seen: Mapping[str, object], *, study: Study | None) -> tuple[str, ...]:
    if study is not None and benchmark in study.table.splits:
        return study.table.splits[benchmark]
    if "all" in seen or (not seen and benchmark == "trans10k_v1"):
        return ("all",)
    return tuple(sorted(seen)) or ("test",)


def column_title(column: Column, beside: Sequence[Column]) -> str:
    """The heading over a column: benchmark, split where there are several, metric; ``beside``: all of the table."""
    title = column.benchmark_title
    notes = {other.note for other in beside}
    if column.note and len(column.note) <= 24 and len(notes) > 1:
        title += f" ({column.note})"
    if column.split != "test":
        title += f" {column.split}"
    if len({other.manifest for other in beside if other.benchmark == column.benchmark}) > 1:
        title += f" #{column.manifest[:6]}"
    return f"{title} {metric(column.metric).heading}"


def column_names(column: Column) -> set[str]:
    """What a user may call it besides its title: ``kvasir.s_measure``, ``trans10k_v1.easy.miou``."""
    return {f"{column.benchmark}.{column.metric}", f"{column.benchmark}.{column.split}.{column.metric}"}
