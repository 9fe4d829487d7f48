"""Rankings of one study's rows under several models (decoders, backbones), compared pair by pair."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import statistics as stats
from harness.comparison import names
from harness.comparison.complete import without_gaps
from harness.comparison.grid import Grid, first_metrics, one_each
from harness.comparison.paired import ImagesOf, runs_images
from harness.comparison.rules import told_apart

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


def pairs(grids: Sequence[Grid], *, images_of: ImagesOf) -> list[ModelPair]:
    """Every two grids that differ in the model alone and have two rows on a benchmark in common."""
    found = []
    for first, second in itertools.combinations(sorted(grids, key=_order), 2):
        if _differ_in_model_alone(first, second):
            one = _pair(first, second, images_of)
            found += [one] if one else []
    return found


def chance_in_words(agreement: stats.Agreement) -> str:
    """``5 of 24 orders``, or ``12 % of orders`` where they are too many to try."""
    orders = math.factorial(agreement.methods)
    if orders > stats.MOST_ORDERS:
        return f"{100 * agreement.p:.2g} % of orders"
    return f"{round(agreement.p * orders)} of {orders} orders"


def interval_bounds(interval: stats.Interval | None) -> str:
    return "– (one seed)" if interval is None else f"{interval:+.2f}"


def model_name(grid: Grid) -> str:
    """``timm/vit_small_patch14_dinov2 + linear``"""
    return f"{grid.backbone} + {_rules(grid).get('decoder', 'sam')}"


def _rules(grid: Grid) -> Mapping[str, object]:
    return grid.records[0].run.rules if grid.records else {}


def _order(grid: Grid) -> tuple[str, bool, str]:
    decoder = str(_rules(grid).get("decoder", "sam"))
    return (grid.backbone, decoder != "sam", decoder)


def _differ_in_model_alone(first: Grid, second: Grid) -> bool:
    same = first.backbone == second.backbone
    changed = told_apart(first.records, second.records).values()
    if not changed or (same and first.checkpoint != second.checkpoint):
        return False
    return all(MODEL_RULES.issuperset(one) for one in changed) and (not same or all(changed))


def _pair(first: Grid, second: Grid, images_of: ImagesOf) -> ModelPair | None:
    own = {first.columns[place]: place for place in one_each(first, first_metrics(first))}
    places = [(own[column], place) for place, column in enumerate(second.columns) if column in own]
    labels = {(row.label, row.score): index for index, row in enumerate(second.rows)}
    rows = [
        (index, labels[row.label, row.score])
        for index, row in enumerate(first.rows)
        if (row.label, row.score) in labels
    ]
    begun = {
        (a, b): {(i, j) for i, j in rows if first.cells[i, a].complete and second.cells[j, b].complete}
        for a, b in places
        if any(first.cells[i, a].values and second.cells[j, b].values for i, j in rows)
    }
    most = max(map(len, begun.values()), default=0)
    places, complete = without_gaps(begun, least=max(2, min(FEWEST, most)))
    of_rows, rows = len(rows), [row for row in rows if row in complete]
    if len(rows) < 2 or not places:
        return None
    sides = [_scores((first, second), rows, place, images_of) for place in places]
    if any(one is None for one in sides):
        return None
    scores = [one for one in sides if one is not None]
    behind = [first.cells[i, a].records + second.cells[j, b].records for i, j in rows for a, b in places]
    same = first.backbone == second.backbone
    models = [model_name(grid).removeprefix(f"{first.backbone} + " if same else "") for grid in (first, second)]
    return ModelPair(
        models=(models[0], models[1]),
        rows=tuple(first.rows[i].named for i, _ in rows),
        of_rows=of_rows,
        columns=tuple(first.columns[a].short for a, _ in places),
        left_out=tuple(first.columns[a].short for a, b in begun if (a, b) not in places),
        agreement=stats.agreement(scores),
        seeds=min(one.first.shape[1] for one in scores),
        keys=tuple(dict.fromkeys(record.key for records in behind for record in records)),
    )


def _scores(
    grids: tuple[Grid, Grid], rows: Sequence[tuple[int, int]], places: tuple[int, int], images_of: ImagesOf
) -> stats.ModelScores | None:
    """Of the seeds that all runs share; None where there is none. By image where every run tells its images."""
    import numpy as np

    sides = [[(grids[side], pair[side], places[side]) for pair in rows] for side in (0, 1)]
    cells = [
        [(grid.rows[row].score, grid.cells[row, place], grid.columns[place]) for grid, row, place in side]
        for side in sides
    ]
    every = [one for side in cells for one in side]
    seeds = sorted(set.intersection(*(set(cell.values) for _, cell, _ in every)))
    if not seeds:
        return None
    found = [runs_images(cell, column, score=score, images_of=images_of, seeds=seeds) for score, cell, column in every]
    told = [one for one in found if one is not None]
    stems = sorted(told[0].scores[seeds[0]]) if told else []
    if len(told) == len(every) and all(one.scores[seed].keys() == set(stems) for one in told for seed in seeds):
        clusters = {stem: name for one in told for stem, name in one.clusters.items()}
        _, groups = np.unique([clusters.get(stem, stem) for stem in stems], return_inverse=True)
        table = np.array([[[one.scores[seed][stem] for stem in stems] for seed in seeds] for one in told])
    else:
        signs = [-1 if names.metric(column.metric).lower_is_better else 1 for _, _, column in every]
        table = np.array(
            [[[sign * cell.values[seed]] for seed in seeds] for sign, (_, cell, _) in zip(signs, every, strict=True)]
        )
        groups = np.zeros(1, dtype=int)
    return stats.ModelScores(first=table[: len(rows)], second=table[len(rows) :], clusters=groups)
