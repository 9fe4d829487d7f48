"""What figures are drawn from: one sheet of records (protocol hash, backbone, checkpoint), its costs, its images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.archive.cost import CostRecord, CostStore
from harness.archive.schema import Record, content_hash
from harness.archive.store import RecordStore
from harness.comparison import names
from harness.comparison.evidence import EvidenceOf, evidence_below, no_evidence
from harness.comparison.grid import Column, Grid, Row, first_columns
from harness.comparison.paired import ImagesOf
from harness.comparison.rules import CardOf, no_card
from harness.report.pages import images_below
from harness.report.tables import grids
from harness.studies import Study
from harness.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PictureOf = Callable[[Record, str, str], Any]
"""(a record, split, stem) -> image (S, S, 3) uint8 at the network's input size, None where it is not at hand."""


_NUMBERED = re.compile(r"… \[(\d+)\]")


class NothingToDrawError(UsageError):
    """The records do not hold what a figure shows; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure.

    Args:
        part: what tells it from the other figures of its kind (a benchmark), empty where there is one.
        figure: drawn.
        caption: what is shown, with n, protocol hash and what bars and lines are.
    """

    part: str
    figure: Figure
    caption: str


@dataclass(frozen=True, kw_only=True)
class Material:
    """Args:
    name: of its files: study or protocol, then the protocol's hash.
    grid: rows, columns and cells.
    whole: a record with its history and its α history.
    images_of: per-image scores.
    costs: every cost session of the results folder.
    baseline: label of the row that others are compared with.
    masks: a record -> the file of its kept masks, which need not be there.
    picture_of: images for `masks`.
    evidence_of: what a run's model does inside, None where it was not measured.
    everywhere: the records of every sheet, for figures that compare rules.
    study: whose rows they are, None for the card's.
    """

    name: str
    grid: Grid
    whole: Callable[[str], Record]
    images_of: ImagesOf
    costs: Sequence[CostRecord]
    baseline: str
    masks: Callable[[Record], Path]
    picture_of: PictureOf = field(default=lambda record, split, stem: None)
    evidence_of: EvidenceOf = no_evidence
    everywhere: Sequence[Record] = ()
    study: Study | None = None

    @property
    def benchmarks(self) -> list[str]:
        return list(dict.fromkeys(column.benchmark for column in self.grid.columns))

    @property
    def caption(self) -> str:
        """What every caption ends with."""
        return self._caption(self.grid.seeds, [self.grid.protocol_hash])

    def caption_of(self, runs: Iterable[Record]) -> str:
        """What the caption of a figure of these runs, of other sheets too, ends with."""
        shown = [record.run for record in runs]
        return self._caption(sorted({run.seed for run in shown}), sorted({run.protocol_hash for run in shown}))

    def _caption(self, seeds: Sequence[int], hashes: Sequence[str]) -> str:
        n = f"n = {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} ({', '.join(map(str, seeds))})"
        rules = f"{'hash' if len(hashes) == 1 else 'hashes'} {', '.join(hashes)}"
        return f"{n}; protocol {self.grid.protocol}, {rules}; backbone {self.grid.backbone}."

    def short(self, label: str, *, most: int = 36) -> str:
        """A row's label that fits where it stands; one that reads like another's when cut has its number behind it, which
        the figure's caption spells out."""
        labels = [row.label for row in self.grid.rows]
        cut = _cut(label, most)
        if label not in labels or [_cut(one, most) for one in labels].count(cut) < 2:
            return cut
        number = f" [{labels.index(label) + 1}]"
        return _cut(label, most - len(number)) + number

    def spelt_out(self, texts: Iterable[str]) -> str:
        """What a caption says of the rows that `short` gave a number in these texts."""
        numbers = sorted({int(found[1]) for text in texts for found in _NUMBERED.finditer(text)})
        rows = [f"[{number}] {self.grid.rows[number - 1].label}" for number in numbers]
        return f" Rows cut short: {'; '.join(rows)}." if rows else ""

    def members(self, index: int, benchmark: str) -> list[Record]:
        """The finished runs of a row on one benchmark, by seed."""
        mine = [one for one in self.grid.members[index] if one.run.benchmark == benchmark and one.code == "OK"]
        return sorted(mine, key=lambda one: (one.run.seed, one.key))

    def rows(self) -> list[tuple[int, Row]]:
        """One a method configuration: where several of its models are scored, the first stands for it."""
        unique: dict[tuple[str, ...], tuple[int, Row]] = {}
        for index, row in enumerate(self.grid.rows):
            unique.setdefault(tuple(one.key for one in self.grid.members[index]) or (row.label,), (index, row))
        return list(unique.values())

    def first_columns(self) -> dict[str, int]:
        """benchmark -> the column by which it is reported first, see `harness.comparison.grid.first_columns`."""
        return {self.grid.columns[place].benchmark: place for place in first_columns(self.grid)}


def score_label(column: Column) -> str:
    """``Kvasir-SEG Sα (%)``, with the split where it is not the test split."""
    split = f" {column.split}" if column.split != "test" else ""
    return f"{column.benchmark_title}{split} {names.metric(column.metric).title} (%)"


def _cut(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def materials(
    root: Path,
    *,
    study: Study | None = None,
    baseline: str = "",
    picture_of: PictureOf | None = None,
    card_of: CardOf = no_card,
) -> list[Material]:
    """One for each sheet that has a finished run.

    Args:
        root: results folder.
        study: only its rows, benchmarks and seeds.
        baseline: label of a row; that of the study, else LoRA, else the mask decoder alone, else the first row.
        card_of: the harness's own cards, to know the decoder of a study that names none.

    Raises:
        UsageError: there is no folder of records, no finished run in it, or no row of that label.
    """
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(
            f"{store.folder} does not exist; run something first (python -m harness.run …), or give --results DIR"
        )
    sheets = grids(store.summaries()[0], study=study, card_of=card_of)
    found = [grid for grid in sheets if any(one.code == "OK" for one in grid.records)]
    if not found:
        what = f"of study {study.name} " if study else ""
        raise UsageError(f"{store.folder} holds no finished run {what}to draw")
    labels = {row.label for grid in found for row in grid.rows}
    if baseline and baseline not in labels:
        raise UsageError(f"no row is called {baseline!r}; choose from {', '.join(sorted(labels))}")
    known: Mapping[str, str] = _names(found, study)

    evidence = evidence_below(root)
    everywhere = list({one.key: one for grid in found for one in grid.records}.values())

    @cache
    def whole(key: str) -> Record:
        record = store.read(key)
        assert record is not None  # it was listed
        return record

    return [
        Material(
            name=known[_identity(grid)],
            grid=grid,
            whole=whole,
            images_of=images_below(root),
            costs=sorted(CostStore(root), key=lambda one: (one.key, one.session)),
            baseline=baseline_of(grid, study, baseline),
            masks=lambda record: store.masks_path(record.key),
            picture_of=picture_of or (lambda record, split, stem: None),
            evidence_of=evidence,
            everywhere=everywhere,
            study=study,
        )
        for grid in found
    ]


def _identity(grid: Grid) -> str:
    return content_hash([grid.protocol, grid.protocol_hash, grid.backbone, grid.checkpoint])


def _names(found: Sequence[Grid], study: Study | None) -> dict[str, str]:
    """Names of files; backbone and checkpoint as a hash behind where one protocol was run with several."""
    plain = {_identity(grid): f"{study.name if study else grid.protocol}-{grid.protocol_hash}" for grid in found}
    twice = {name for name in plain.values() if list(plain.values()).count(name) > 1}
    return {one: f"{name}-{one[:6]}" if name in twice else name for one, name in plain.items()}


def baseline_of(grid: Grid, study: Study | None, asked: str) -> str:
    labels = [row.label for row in grid.rows]
    wanted = [asked, study.table.baseline if study else ""]
    for method in ("lora", "decoder"):
        wanted += [row.label for row in grid.rows if row.method == method]
    return next((label for label in wanted if label in labels), labels[0])
