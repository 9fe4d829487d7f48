"""Ranks over benchmarks: which rows they do not tell apart, and how stable they are when seeds are drawn again."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from harness.comparison.cells import Cell
from harness.comparison.rows import Row
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import COLUMN, looks, new_figure
from harness.statistics import average_ranks, friedman, nemenyi_critical_difference, rank_stability

RESAMPLES = 2_000


def ranks(material: Material) -> list[Drawing]:
    """Critical-difference diagram (Demšar 2006): mean ranks over benchmarks, and which rows they do not tell apart."""
    cells = material.complete_cells(least=3)
    benchmarks = len(next(iter(cells.values())))
    table = [[statistics.fmean(of_row[place].signed) for of_row in cells.values()] for place in range(benchmarks)]
    mean_rank = dict(zip(cells, map(float, average_ranks(table)), strict=True))
    gap = nemenyi_critical_difference(methods=len(cells), blocks=benchmarks)
    order = sorted(cells, key=lambda row: mean_rank[row])
    bars = cliques([mean_rank[row] for row in order], gap)
    test = friedman(table)
    half = (len(order) + 1) // 2
    figure = new_figure(COLUMN, 0.85 + 0.17 * half + 0.08 * len(bars))
    ax = figure.subplots()
    ax.set_axis_off()
    count = len(cells)
    margin = 0.42 * (count - 1)
    ax.set_xlim(1 - margin, count + margin)
    look = looks(material.grid.rows)
    top = 0.0
    ax.plot([1, count], [top, top], color="black", linewidth=0.8)
    for rank in range(1, count + 1):
        ax.plot([rank, rank], [top, top + 0.18], color="black", linewidth=0.8)
        ax.text(rank, top + 0.25, str(rank), ha="center", va="bottom", fontsize=6.5)
    ax.plot([1, 1 + min(gap, count - 1 + margin)], [top + 1.15, top + 1.15], color="black", linewidth=1.4)
    ax.text(1, top + 1.25, f"critical difference {gap:.2f}", ha="left", va="bottom", fontsize=6.5)
    for number, (first, last) in enumerate(bars):
        y = top - 0.3 - 0.3 * number
        low, high = mean_rank[order[first]], mean_rank[order[last]]
        ax.plot([low - 0.03, high + 0.03], [y, y], color="#555555", linewidth=2.4, solid_capstyle="butt")
    below = top - 0.3 - 0.3 * len(bars)
    for place, row in enumerate(order):
        left = place < half
        depth = place if left else count - 1 - place
        y = below - 0.35 - 0.6 * depth
        edge = 1 - 0.06 * margin if left else count + 0.06 * margin
        ax.plot([mean_rank[row], mean_rank[row], edge], [top, y, y], color=look[row].colour, linewidth=0.8)
        ax.plot([mean_rank[row]], [top], **look[row].points(clip_on=False))
        ax.text(
            edge + (-0.05 if left else 0.05) * max(1, margin), y, f"{material.short(row)} ({mean_rank[row]:.1f})",
            ha="right" if left else "left", va="center", fontsize=6.5,
        )  # fmt: skip
    ax.set_ylim(below - 0.35 - 0.6 * half, top + 1.9)
    caption = (
        f"Mean rank over {_benchmarks(cells)} by mean score, 1 is best. Rows that a thick bar joins are not"
        f" distinguishable at 5 % (Nemenyi: ranks {gap:.2f} apart differ). Friedman, χ² approximation: {test.text}. Rows complete on these"
        f" benchmarks only. {material.caption}"
    )
    return [Drawing(figure=figure, caption=caption)]


def cliques(ascending: Sequence[float], gap: float) -> list[tuple[int, int]]:
    """(first, last) positions of the longest runs of ``ascending`` ranks that lie less than ``gap`` apart; of two rows or more."""
    runs: list[tuple[int, int]] = []
    for first in range(len(ascending)):
        last = max(place for place in range(first, len(ascending)) if ascending[place] - ascending[first] <= gap)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def stability(material: Material) -> list[Drawing]:
    """How often each row takes each place when the seeds are drawn again."""
    cells = material.complete_cells(least=2)
    if min(cell.n for of_row in cells.values() for cell in of_row) < 2:
        raise NothingToDrawError("rank stability redraws seeds, and there is one seed only")
    rows = {row.label: row for row in cells}
    scores = {row.label: [cell.signed for cell in of_row] for row, of_row in cells.items()}
    places = rank_stability(scores, resamples=RESAMPLES)
    order = sorted(scores, key=lambda label: sum(place * share for place, share in places[label].items()))
    count = len(order)
    figure = new_figure(COLUMN, 0.75 + 0.2 * count)
    ax = figure.subplots()
    table = [[places[label].get(place, 0.0) for place in range(1, count + 1)] for label in order]
    ax.pcolormesh(
        [place + 0.5 for place in range(count + 1)], [line - 0.5 for line in range(count + 1)], table,
        cmap="Greys", vmin=0, vmax=1, edgecolors="white", linewidth=0.5,
    )  # fmt: skip
    for line, shares in enumerate(table):
        for place, share in enumerate(shares, start=1):
            if share >= 0.005:
                shade = "white" if share > 0.55 else "black"
                ax.text(place, line, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=shade)
    ax.set_yticks(range(count), [material.short(rows[label]) for label in order])
    ax.set_xticks(range(1, count + 1))
    ax.set_ylim(count - 0.5, -0.5)
    ax.set_xlabel("place (1 is best)")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    caption = (
        f"How often (%) each row takes each place by its mean rank over {_benchmarks(cells)} when its seeds are"
        f" redrawn with replacement ({RESAMPLES} times); rows that tie share the better place. {material.caption}"
    )
    return [Drawing(figure=figure, caption=caption)]


def _benchmarks(cells: Mapping[Row, Sequence[Cell]]) -> str:
    titles = [cell.column.benchmark_title for cell in next(iter(cells.values()))]
    return f"{len(titles)} benchmarks ({', '.join(titles)})"
