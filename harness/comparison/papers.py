"""Published numbers with ours: values of tables, and claims such as "NAS-LoRA is better than LoRA".

``results/paper/<paper>.csv`` has the values, one row a cell, each with its source and how sure that is (`MARKS`); an unknown cell is
empty. ``results/paper/setups.yaml`` has the published set-ups. ``results/claims.yaml`` has the claims as differences of two rows.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness import statistics as stats
from harness.archive.schema import Record
from harness.check import from_mapping
from harness.comparison.frames import is_entry
from harness.comparison.grid import Grid
from harness.comparison.rules import card, each_in_words, from_card
from harness.comparison.scores import Cell, Column, Difference
from harness.registry import method_config
from harness.system.yaml_files import read_yaml

FOLDER = Path(__file__).parents[1] / "data" / "paper"
CLAIMS = FOLDER.parent / "claims.yaml"
PUBLISHED_SPLITS = ("official", "AutoGluon's", "PraNet's")
"""How split rules with published test images begin (`harness.datasets.base.Splits.rule`)."""
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
        config = method_config(self.method, assigned)
        return {name: getattr(config, name) for name in assigned}

    def against(self, ours: Sequence[float]) -> Difference:
        """Ours (one score a seed, in percent) minus the paper's, with the variance of both (Welch 1947). Without a printed spread the
        paper's runs are assumed to vary as ours, and to be one where their number is not given."""
        estimate, runs, value = stats.of_seeds(ours), int(self.runs or 0), float(self.value)
        if self.spread:
            error = float(self.spread) / (math.sqrt(max(runs, 1)) if self.spread_kind == "sd" else 1)
            return Difference.of(stats.differ(estimate, value, error=error, df=max(runs - 1, 1) if runs else 2))
        variance = (stats.sd(ours) or 0.0) ** 2 * (1 / len(ours) + 1 / max(runs, 1))
        both = stats.VarianceShare(variance=variance, df=len(ours) - 1) if len(ours) > 1 else None
        return Difference.of(stats.Estimate(mean=estimate.mean - value, n=len(ours), seeds=both))


@dataclass(frozen=True, kw_only=True)
class Side:
    """A row of a claim."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "best"


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
    first: Side
    second: Side
    expected: str
    benchmarks: tuple[str, ...] = ()
    cost: str = ""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The set-up of one paper's numbers; ``test_images``: benchmark -> images in its test splits, where known."""

    card: str
    backbone: str
    checkpoint: str
    test_images: dict[str, int] = field(default_factory=dict)

    def departures(self, record: Record) -> list[str]:
        """The differences of a run to the set-up in words."""
        run, published = record.run, self.test_images.get(record.run.benchmark)
        words = [] if run.backbone == self.backbone else [f"backbone {run.backbone} instead of {self.backbone}"]
        if run.checkpoint != self.checkpoint:
            words.append("other weights" if run.checkpoint else "random weights")
        tested = sum(record.tested.values())
        if run.data_note or published is None or not run.split_rule.startswith(PUBLISHED_SPLITS):
            words.append(run.data_note or "other test images")
        elif tested and tested != published:
            words.append(f"{tested} test images instead of {published}")
        rules = card(self.card, run.benchmark)
        return [
            *words,
            *(each_in_words(from_card(run.rules, rules)) if rules else [f"the protocol {self.card} is not known"]),
        ]


@dataclass(frozen=True, kw_only=True)
class Papers:
    """Published values, their set-ups, and claims."""

    published: Sequence[Published] = ()
    setups: Mapping[str, Setup] = field(default_factory=dict)
    claims: Sequence[Claim] = ()

    @classmethod
    def read(cls, folder: Path = FOLDER, claims: Path = CLAIMS) -> Papers:
        """Those that come with the harness."""
        cells = [
            Published(paper=path.stem, **{name: text.strip() for name, text in row.items()})  # type: ignore[arg-type]
            for path in sorted(folder.glob("*.csv"))
            for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        ]
        setups = read_yaml(folder / "setups.yaml", what="published set-ups")
        return cls(
            published=[cell for cell in cells if cell.value],
            setups={name: from_mapping(Setup, values, where=name) for name, values in setups.items()},
            claims=[from_mapping(Claim, item, where=str(claims)) for item in read_yaml(claims, what="claims")],
        )

    @cached_property
    def cards(self) -> set[str]:
        """The cards that hold a paper's rules."""
        return {setup.card for setup in self.setups.values()}

    def paired_values(self, grid: Grid) -> Iterator[tuple[Published, Cell, Difference, list[str]]]:
        """Value, our cell, ours minus the paper's, and how our runs differ from the published set-up."""
        for (row, column), cell in grid.cells.items():
            here = (grid.rows[row].method, column.benchmark, column.split, column.metric)
            for value in self.published if cell.complete and cell.model == "best" else ():
                if here != (value.method, value.benchmark, value.split, value.metric):
                    continue
                if not any(is_entry(record, value.settings) for record in cell.records):
                    continue
                setup = self.setups.get(value.paper)
                words = [w for r in cell.records for w in (setup.departures(r) if setup else ["set-up not known"])]
                difference = value.against([100 * score for score in cell.by_seed])
                yield value, cell, difference, list(dict.fromkeys(words))

    def paired_claims(self, grid: Grid) -> Iterator[tuple[Claim, Column, Difference]]:
        """Claim, column and our difference, where the grid has both rows."""
        for claim in self.claims:
            rows = [_row_of(grid, side) for side in (claim.first, claim.second)]
            for name in claim.benchmarks if all(rows) else ():
                column = grid.first_columns.get(name)
                difference = column and grid.difference(rows[0], rows[1], column)
                if column and difference:
                    yield claim, column, difference


def _row_of(grid: Grid, side: Side) -> str:
    """The row of a side, empty where there is none."""
    for name, row in grid.rows.items():
        same = (row.method, row.model) == (side.method, side.model)
        if same and any(is_entry(record, side.options) for record in grid.records_of(name)):
            return name
    return ""
