"""What figures are drawn from: one sheet of records (protocol hash, backbone, checkpoint), and what lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.comparison.cells import Cell, Column, Grid
from harness.comparison.grids import grids, without_gaps
from harness.comparison.rows import Row
from harness.report.pages import require_records
from harness.studies import Study
from harness.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Callable[[Record, str, str], Any]
"""(a record, split, stem) -> image (S, S, 3) uint8 at the network's input size, None where it is not at hand."""


class NothingToDrawError(UsageError):
    """The records do not hold what a figure shows; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure.

    Args:
        part: what tells it from the other figures of its kind (a benchmark), empty where there is one.
        benchmark: whose it is, empty where it shows several.
        figure: drawn.
        caption: what is shown, with n, protocol hash and what bars and lines are.
    """

    part: str = ""
    benchmark: str = ""
    figure: Figure
    caption: str


@dataclass(frozen=True, kw_only=True)
class Material:
    """One sheet of records as figures are drawn from it.

    Args:
        name: of its files: study or protocol, then the protocol's hash.
        grid: rows, columns and cells.
        baseline: the row that others are compared with.
        pictures: images for masks.
        seed: whose masks are shown, None for a usual one that most rows have.
        everywhere: the records of every sheet, for figures that compare rules.
        study: whose rows they are, None for the card's.
        numbered: rows that `short` gave a number since the last figure.
    """

    name: str
    grid: Grid
    baseline: Row
    pictures: Pictures = field(default=lambda record, split, stem: None)
    seed: int | None = None
    everywhere: Sequence[Record] = ()
    study: Study | None = None
    numbered: dict[int, Row] = field(default_factory=dict)

    @property
    def archive(self) -> Archive:
        return self.grid.archive

    @property
    def caption(self) -> str:
        """What every caption ends with."""
        return self._caption(self.grid.seeds, [self.grid.sheet.protocol_hash])

    def caption_of(self, runs: Iterable[Record]) -> str:
        """What the caption of a figure of these runs, of other sheets too, ends with."""
        shown = [record.run for record in runs]
        return self._caption(sorted({run.seed for run in shown}), sorted({run.protocol_hash for run in shown}))

    def _caption(self, seeds: Sequence[int], hashes: Sequence[str]) -> str:
        n = f"n = {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))})"
        rules = f"{'hash' if len(hashes) == 1 else 'hashes'} {', '.join(hashes)}"
        return f"{n}; protocol {self.grid.sheet.protocol}, {rules}; backbone {self.grid.sheet.backbone}."

    def short(self, row: Row, *, most: int = 36) -> str:
        """A row's label that fits where it stands; one that reads like another's when cut has its number behind it, which
        the figure's caption spells out."""
        cut = _cut(row.label, most)
        if [_cut(other.label, most) for other in self.grid.rows].count(cut) < 2:
            return cut
        number = self.grid.rows.index(row) + 1
        self.numbered[number] = row
        behind = f" [{number}]"
        return _cut(row.label, most - len(behind)) + behind

    def spelt_out(self) -> str:
        """What a caption says of the rows that have a number."""
        rows = [f"[{number}] {row.label}" for number, row in sorted(self.numbered.items())]
        return f" Rows cut short: {'; '.join(rows)}." if rows else ""

    def rows(self) -> list[Row]:
        """One a method configuration: where several of its models are scored, the first stands for it."""
        unique: dict[tuple[str, ...], Row] = {}
        for row in self.grid.rows:
            unique.setdefault(tuple(record.key for record in row.records) or (row.label,), row)
        return list(unique.values())

    def complete_cells(self, *, least: int) -> dict[Row, list[Cell]]:
        """What ranks over benchmarks are made of: of the benchmarks the largest set that ``least`` rows are complete on, and
        these rows' cells on each. Raises NothingToDrawError: fewer than two such benchmarks."""
        cells, columns = self.grid.cells, list(self.grid.first_columns.values())
        done = {column: {row for row in self.rows() if cells[row, column].complete} for column in columns}
        chosen, common = without_gaps(done, least=least)
        if len(chosen) < 2:
            raise NothingToDrawError(
                f"ranks need at least {least} rows that are complete on the same two benchmarks; {len(columns)} benchmark"
                f"{'s have' if len(columns) != 1 else ' has'} records here"
            )
        return {row: [cells[row, column] for column in chosen] for row in self.rows() if row in common}


def on_each_benchmark(material: Material, draw: Callable[[Column], Drawing | None], *, lacking: str) -> list[Drawing]:
    """What ``draw`` makes of the first column of each benchmark; None of one is no drawing. Raises NothingToDrawError: there is
    none at all, which ``lacking`` explains."""
    drawings = [
        replace(drawing, part=column.benchmark, benchmark=column.benchmark)
        for column in material.grid.first_columns.values()
        if (drawing := draw(column)) is not None
    ]
    if not drawings:
        raise NothingToDrawError(lacking)
    return drawings


def _cut(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def score_label(column: Column) -> str:
    """``Kvasir-SEG Sα (%)``, with the split where it is not the test split."""
    return f"{column.short} (%)"


def materials(
    archive: Archive,
    *,
    study: Study | None = None,
    baseline: str = "",
    pictures: Pictures | None = None,
    seed: int | None = None,
) -> list[Material]:
    """One for each sheet that has a finished run.

    Args:
        study: only its rows, benchmarks and seeds.
        baseline: label of a row; that of the study, else LoRA, else the mask decoder alone, else the first row.

    Raises:
        UsageError: there is no folder of records, no finished run in it, or no row of that label.
    """
    require_records(archive)
    made = grids(archive.records, archive, study=study)
    with_runs = [grid for grid in made if any(record.code == "OK" for record in grid.records)]
    if not with_runs:
        what = f"of study {study.name} " if study else ""
        raise UsageError(f"{archive.store.folder} holds no finished run {what}to draw")
    require_row(baseline, with_runs)
    names = _names(with_runs, study)
    everywhere = list({record.key: record for grid in with_runs for record in grid.records}.values())
    return [
        Material(
            name=names[grid],
            grid=grid,
            baseline=baseline_of(grid, study, baseline),
            pictures=pictures or (lambda record, split, stem: None),
            seed=seed,
            everywhere=everywhere,
            study=study,
        )
        for grid in with_runs
    ]


def require_row(label: str, among: Iterable[Grid]) -> None:
    """Raises UsageError where a label was asked for and no row has it."""
    labels = {row.label for grid in among for row in grid.rows}
    if label and label not in labels:
        raise UsageError(f"no row is called {label!r}; choose from {', '.join(sorted(labels))}")


def _names(made: Sequence[Grid], study: Study | None) -> Mapping[Grid, str]:
    """Names of files; backbone and checkpoint as a hash behind where one protocol was run with several."""
    plain = {grid: f"{study.name if study else grid.sheet.protocol}-{grid.sheet.protocol_hash}" for grid in made}
    several = [name for name in plain.values() if list(plain.values()).count(name) > 1]
    return {grid: f"{name}-{grid.sheet.digest[:6]}" if name in several else name for grid, name in plain.items()}


def baseline_of(grid: Grid, study: Study | None, asked: str) -> Row:
    labels = [asked, study.table.baseline if study else ""]
    for method in ("lora", "decoder"):
        labels += [row.label for row in grid.rows if row.method == method]
    return next((row for label in labels if (row := grid.row(label))), grid.rows[0])
