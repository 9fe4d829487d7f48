"""Published numbers next to ours: values of tables, and claims such as "NAS-LoRA is better than LoRA".

``results/paper/<paper>.csv`` has the values, one row per cell, each with its source and how sure that is (`MARKS`); an unknown cell is
empty. ``results/paper/setups.yaml`` has the published set-ups. ``results/claims.yaml`` has the claims as differences of two rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness import statistics as stats
from harness.archive.schema import Record
from harness.check import from_mapping
from harness.comparison.differences import Difference
from harness.comparison.grid import Cell, Column, Grid
from harness.comparison.rows import is_row
from harness.protocols.compare import from_protocol
from harness.protocols.load import protocol_rules
from harness.registry import recorded_option
from harness.studies import Row
from harness.system.yaml_files import read_yaml

PAPERS_FOLDER = Path(__file__).parents[1] / "data" / "paper"
CLAIMS = PAPERS_FOLDER.parent / "claims.yaml"
MARKS = {
    "P": "stated on a public page about the paper",
    "S": "quoted by third parties that had the paper; a typo is possible",
}
"""Of sources that have a number so far."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of a paper's table, as printed: scores in percent, parameters in millions.

    Args:
        benchmark, split: empty where the metric is ``parameters_m``, trained parameters with the mask decoder.
        options: the changes of an ablation to the method's configuration: ``rank=6``, several joined by ``;``.
        spread: the number after ±, of the kind ``se`` or ``sd``; runs: how many the paper averaged.
    """

    paper: str
    table: str
    method: str
    benchmark: str
    split: str
    metric: str
    options: str = ""
    value: str = ""
    spread: str = ""
    spread_kind: Literal["", "se", "sd"] = ""
    runs: str = ""
    source: str = ""
    mark: str = "?"

    @property
    def settings(self) -> dict[str, Any]:
        """``options`` as values of the method's configuration."""
        assigned = dict(item.strip().split("=", 1) for item in self.options.split(";") if item)
        return {name: recorded_option(self.method, name, value) for name, value in assigned.items()}

    def against(self, ours: Sequence[float]) -> Difference:
        """Ours (one score per seed, in percent) minus the paper's, with the variance of both."""
        spread, is_sd = float(self.spread) if self.spread else None, self.spread_kind == "sd"
        return Difference.of(
            stats.to_printed(ours, float(self.value), spread=spread, is_sd=is_sd, runs=int(self.runs or 0))
        )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The set-up of one paper's numbers apart from its protocol; ``test_images``: benchmark -> images in its test splits, where known."""

    backbone: str
    checkpoint: str
    test_images: dict[str, int] = field(default_factory=dict)

    def departures(self, record: Record, *, protocol: str) -> list[str]:
        """How a run differs from the published set-up: backbone, weights, test images, rules."""
        run, published = record.run, self.test_images.get(record.run.benchmark)
        is_published = run.split == "published" and not run.data_note
        same = {
            "backbone": run.backbone == self.backbone,
            "weights": run.checkpoint == self.checkpoint,
            "test images": is_published and published is not None and sum(record.tested.values()) in (0, published),
            "rules": not from_protocol(run.rules, protocol_rules(protocol, run.benchmark) or {}),
        }
        return [name for name, is_same in same.items() if not is_same]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper: ``first`` minus ``second`` on each benchmark in points, or with ``cost`` the additional cost of a step in
    percent.

    Args:
        expected: ``> 0``, ``< 2`` or a number.
    """

    text: str
    source: str
    mark: str
    first: Row
    second: Row
    expected: str
    benchmarks: tuple[str, ...] = ()
    cost: str = ""


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Published values, claims, and set-ups; a paper's set-up has the name of its protocol."""

    published: Sequence[Published] = ()
    setups: Mapping[str, Setup] = field(default_factory=dict)
    claims: Sequence[Claim] = ()

    @classmethod
    def read(cls, folder: Path = PAPERS_FOLDER, claims: Path = CLAIMS) -> Papers:
        """The published numbers that come with the harness."""
        setups = read_yaml(folder / "setups.yaml", what="published set-ups")
        cells = [
            Published(paper=paper, **{name: text.strip() for name, text in row.items()})  # type: ignore[arg-type]
            for paper in sorted(setups)
            for row in csv.DictReader((folder / f"{paper}.csv").read_text(encoding="utf-8").splitlines())
        ]
        return cls(
            published=[cell for cell in cells if cell.value],
            setups={name: from_mapping(Setup, values, where=name) for name, values in setups.items()},
            claims=[from_mapping(Claim, item, where=str(claims)) for item in read_yaml(claims, what="claims")],
        )

    def paired_values(self, grid: Grid) -> Iterator[tuple[Published, Cell, Difference, list[str]]]:
        """Value, our cell, ours minus the paper's, and how our runs differ from the published set-up."""
        for (row, column), cell in grid.cells.items():
            here = (grid.rows[row].method, column.benchmark, column.split, column.metric)
            records = grid.records_of(row, column.benchmark)
            for value in self.published if cell.complete and grid.rows[row].scores == ("best",) else ():
                if here != (value.method, value.benchmark, value.split, value.metric):
                    continue
                if not any(is_row(record.run, value.settings) for record in records):
                    continue
                setup = self.setups[value.paper]
                words = dict.fromkeys(word for r in records for word in setup.departures(r, protocol=value.paper))
                yield value, cell, value.against([100 * score for score in cell.scores]), list(words)

    def paired_claims(self, grid: Grid) -> Iterator[tuple[Claim, Column, Difference]]:
        """Claim, column and our difference, where the grid has both rows."""
        for claim in self.claims:
            rows = [_row_of(grid, row) for row in (claim.first, claim.second)]
            for name in claim.benchmarks if all(rows) else ():
                column = grid.first_columns.get(name)
                difference = column and grid.difference(rows[0], rows[1], column)
                if column and difference:
                    yield claim, column, difference


def _row_of(grid: Grid, wanted: Row) -> str:
    """The name of a claim's row, empty where it is not there."""
    which = (wanted.method, *(wanted.scores or ("best",)))
    names = (name for name, row in grid.rows.items() if (row.method, *row.scores) == which)
    return next((name for name in names if any(is_row(r.run, wanted.options) for r in grid.records_of(name))), "")
