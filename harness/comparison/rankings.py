"""Rankings of one study's rows under several models (decoders, backbones), compared pair by pair, or with one made elsewhere.

``harness/data/rankings/NAME.csv`` holds such a ranking: ``label`` (of the study's row), ``correct`` of ``trials``, and the
``source`` and ``commit`` where that was read; what else it says is for readers.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.comparison.cells import Cell, Column, Grid, ImageScores
from harness.comparison.grids import without_gaps
from harness.comparison.rows import Row
from harness.comparison.rules import told_apart
from harness.system.errors import UsageError, did_you_mean

FOLDER = Path(__file__).parents[1] / "data" / "rankings"

MODEL_RULES = {"decoder", "decoder_lr"}
"""Rules that make another model; in all others the two must be alike."""

FEWEST = 4
"""Rows that a benchmark may not push a comparison below: of three, one order in six agrees fully by chance."""


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """Two models and how they agree.

    Args:
        models: their names.
        rows: labels of the rows that are ranked.
        of_rows: how many rows the two have in common, complete or not.
        columns: what they are ranked by, one a benchmark.
        left_out: columns of begun benchmarks that would have cost the others their rows.
        seeds: the fewest that a benchmark's runs share.
        keys: of the runs behind it.
    """

    models: tuple[str, str]
    rows: tuple[str, ...]
    of_rows: int
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    agreement: stats.Agreement
    seeds: int
    keys: tuple[str, ...]

    def why(self, archive: Archive) -> list[str]:
        by_benchmark = zip(self.columns, self.agreement.by_benchmark, strict=True)
        lines = [f"  {column}: τ {value:+.4f}" for column, value in by_benchmark]
        share = f"{self.agreement.p:.4f} of {math.factorial(self.agreement.methods)} orders"
        return [*lines, f"  {share} agree at least so well; {self.seeds} seeds", f"  {', '.join(self.keys)}"]


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """How often methods were right in another project's comparison.

    Args:
        name: of its file.
        correct: label of a row here -> right answers.
        trials: of how many.
        commit: of the repository that its records lie in.
    """

    name: str
    correct: dict[str, int]
    trials: int
    commit: str

    def in_words(self) -> str:
        """``HiRA 51.3 %, LoRA 47.8 %``, the best first"""
        ordered = sorted(self.correct.items(), key=lambda item: -item[1])
        return ", ".join(f"{label} {100 * right / self.trials:.1f} %" for label, right in ordered)


def read_elsewhere(name: str) -> Elsewhere:
    """A ranking by its file's name. Raises UsageError: there is none of that name."""
    known = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if name not in known:
        raise UsageError(
            f"table.ranking={name!r}: no such ranking{did_you_mean(name, known)}; there is {', '.join(known)}"
        )
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (trials,), (commit,) = {int(row["trials"]) for row in rows}, {row["commit"] for row in rows}
    return Elsewhere(
        name=name, correct={row["label"]: int(row["correct"]) for row in rows}, trials=trials, commit=commit
    )


def pair_with(elsewhere: Elsewhere, grid: Grid) -> ModelPair | None:
    """How the rows that both have rank here and there; None while fewer than two are complete on a benchmark."""
    rows = [row for row in grid.rows if row.label in elsewhere.correct and row.score == "best"]
    columns = [column for column in grid.columns if column in grid.one_each]
    cells = {row: {column: (grid.cells[row, column],) for column in columns} for row in rows}
    return _pair((grid.model_name, elsewhere.name), cells, grid.archive, elsewhere=elsewhere)


def model_pairs(grids: Sequence[Grid]) -> list[ModelPair]:
    """Every two grids that differ in the model alone and have two rows on a benchmark in common."""
    pairs = []
    for first, second in itertools.combinations(sorted(grids, key=_order), 2):
        if _differ_in_model_alone(first, second) and (pair := _pair_of_grids(first, second)):
            pairs.append(pair)
    return pairs


def chance_in_words(agreement: stats.Agreement) -> str:
    """``5 of 24 orders``, or ``12 % of orders`` where they are too many to try."""
    orders = math.factorial(agreement.methods)
    if orders > stats.MOST_ORDERS:
        return f"{100 * agreement.p:.2g} % of orders"
    return f"{round(agreement.p * orders)} of {orders} orders"


def _order(grid: Grid) -> tuple[str, bool, str]:
    decoder = str(grid.rules.get("decoder", "sam"))
    return (grid.sheet.backbone, decoder != "sam", decoder)


def _differ_in_model_alone(first: Grid, second: Grid) -> bool:
    same = first.sheet.backbone == second.sheet.backbone
    changed = told_apart(first.records, second.records).values()
    if not changed or (same and first.sheet.checkpoint != second.sheet.checkpoint):
        return False
    return all(MODEL_RULES.issuperset(names) for names in changed) and (not same or all(changed))


Compared = Mapping[Row, Mapping[Column, Sequence[Cell]]]
"""Row -> column -> the cell of each model that has cells: of both, or of ours alone."""


def _pair_of_grids(first: Grid, second: Grid) -> ModelPair | None:
    columns = [column for column in second.columns if column in first.one_each]
    alike = {(row.label, row.score): row for row in second.rows}
    cells = {
        row: {column: (first.cells[row, column], second.cells[other, column]) for column in columns}
        for row in first.rows
        if (other := alike.get((row.label, row.score)))
    }
    same = first.sheet.backbone == second.sheet.backbone
    models = [grid.model_name.removeprefix(f"{first.sheet.backbone} + " if same else "") for grid in (first, second)]
    return _pair((models[0], models[1]), cells, first.archive)


def _pair(
    models: tuple[str, str], cells: Compared, archive: Archive, *, elsewhere: Elsewhere | None = None
) -> ModelPair | None:
    """None while no benchmark has two rows that are complete under each model and share a seed."""
    begun = {
        column: {row for row in cells if all(cell.complete for cell in cells[row][column])}
        for column in next(iter(cells.values()), {})
        if any(all(cell.values for cell in cells[row][column]) for row in cells)
    }
    places, complete = without_gaps(begun, least=min(FEWEST, max([2, *map(len, begun.values())])))
    ranked = [row for row in cells if row in complete]
    if len(ranked) < 2 or not places:
        return None
    tables = [_scores({row: cells[row][column] for row in ranked}, archive, elsewhere=elsewhere) for column in places]
    scores = [table for table in tables if table is not None]
    if len(scores) < len(places):
        return None
    behind = [cell.records for row in ranked for column in places for cell in cells[row][column]]
    return ModelPair(
        models=models,
        rows=tuple(row.named for row in ranked),
        of_rows=len(cells),
        columns=tuple(column.short for column in places),
        left_out=tuple(column.short for column in begun if column not in places),
        agreement=stats.agreement(scores),
        seeds=min(score.first.shape[1] for score in scores),
        keys=tuple(dict.fromkeys(record.key for records in behind for record in records)),
    )


def _scores(
    cells: Mapping[Row, Sequence[Cell]], archive: Archive, *, elsewhere: Elsewhere | None
) -> stats.ModelScores | None:
    """The rows on one column, higher is better, of the seeds that all runs share; None where there is none. By image where every
    run tells its images."""
    import numpy as np

    every = [cell for of_model in zip(*cells.values(), strict=True) for cell in of_model]
    seeds = sorted(set.intersection(*(set(cell.values) for cell in every)))
    if not seeds:
        return None
    by_image = [ImageScores.of(cell, archive, seeds=seeds) for cell in every]
    told = [images for images in by_image if images is not None]
    stems = sorted(told[0].scores[seeds[0]]) if told else []
    if len(told) == len(every) and all(images.scores[seed].keys() == set(stems) for images in told for seed in seeds):
        clusters = {stem: name for images in told for stem, name in images.clusters.items()}
        _, groups = np.unique([clusters.get(stem, stem) for stem in stems], return_inverse=True)
        table = np.array([[[images.scores[seed][stem] for stem in stems] for seed in seeds] for images in told])
    else:
        table = np.array([[[cell.column.sign * cell.values[seed]] for seed in seeds] for cell in every])
        groups = np.zeros(1, dtype=int)
    ours, theirs = table[: len(cells)], table[len(cells) :]
    if elsewhere is None:
        return stats.ModelScores(first=ours, second=theirs, clusters=groups)
    shares = np.array([elsewhere.correct[row.label] / elsewhere.trials for row in cells])
    there = np.broadcast_to(shares[:, None, None], ours.shape)
    return stats.ModelScores(first=ours, second=there, clusters=groups, trials=elsewhere.trials)
