"""Rows that are complete on every benchmark, with their scores: what ranks over benchmarks are made of."""

from __future__ import annotations

from collections.abc import Mapping

from harness.comparison import names
from harness.comparison.complete import without_gaps
from harness.report.figures.material import Material, NothingToDrawError

Scores = Mapping[str, list[list[float]]]
"""label -> one list of scores (one a seed, higher is better) a benchmark"""


def complete_scores(material: Material, *, least: int) -> tuple[list[str], Scores]:
    """(benchmarks, scores). Of the benchmarks, the largest set that ``least`` rows are complete on.

    Raises:
        NothingToDrawError: fewer than two such benchmarks.
    """
    grid, columns = material.grid, material.first_columns()
    done = {
        benchmark: {index for index, _ in material.rows() if grid.cells[index, place].complete}
        for benchmark, place in columns.items()
    }
    chosen, common = without_gaps(done, least=least)
    if len(chosen) < 2:
        raise NothingToDrawError(
            f"ranks need at least {least} rows that are complete on the same two benchmarks; {len(columns)} benchmark"
            f"{'s have' if len(columns) != 1 else ' has'} records here"
        )
    scores: dict[str, list[list[float]]] = {}
    for index, row in material.rows():
        if index in common:
            scores[row.label] = [_signed(material, index, columns[name]) for name in chosen]
    return chosen, scores


def benchmark_words(benchmarks: list[str]) -> str:
    return f"{len(benchmarks)} benchmarks ({', '.join(map(names.benchmark_title, benchmarks))})"


def _signed(material: Material, index: int, place: int) -> list[float]:
    sign = -1 if names.metric(material.grid.columns[place].metric).lower_is_better else 1
    values = material.grid.cells[index, place].values
    return [sign * values[seed] for seed in sorted(values)]
