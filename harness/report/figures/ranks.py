"""Critical-difference diagram (Demšar 2006): mean ranks over benchmarks, and which rows they do not tell apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.report.figures.across import benchmark_words, complete_scores
from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import COLUMN, looks, new_figure
from harness.statistics import average_ranks, friedman, nemenyi_critical_difference


def draw(material: Material) -> list[Drawing]:
    benchmarks, scores = complete_scores(material, least=3)
    labels = list(scores)
    table = [[statistics.fmean(scores[label][place]) for label in labels] for place in range(len(benchmarks))]
    ranks = dict(zip(labels, map(float, average_ranks(table)), strict=True))
    gap = nemenyi_critical_difference(methods=len(labels), blocks=len(benchmarks))
    order = sorted(labels, key=lambda label: (ranks[label], labels.index(label)))
    bars = cliques([ranks[label] for label in order], gap)
    test = friedman(table)
    half = (len(order) + 1) // 2
    figure = new_figure(COLUMN, 0.85 + 0.17 * half + 0.08 * len(bars))
    ax = figure.subplots()
    ax.set_axis_off()
    count = len(labels)
    margin = 0.42 * (count - 1)
    ax.set_xlim(1 - margin, count + margin)
    found = looks(material.grid.rows)
    top = 0.0
    ax.plot([1, count], [top, top], color="black", linewidth=0.8)
    for rank in range(1, count + 1):
        ax.plot([rank, rank], [top, top + 0.18], color="black", linewidth=0.8)
        ax.text(rank, top + 0.25, str(rank), ha="center", va="bottom", fontsize=6.5)
    ax.plot([1, 1 + min(gap, count - 1 + margin)], [top + 1.15, top + 1.15], color="black", linewidth=1.4)
    ax.text(1, top + 1.25, f"critical difference {gap:.2f}", ha="left", va="bottom", fontsize=6.5)
    for number, (first, last) in enumerate(bars):
        y = top - 0.3 - 0.3 * number
        low, high = ranks[order[first]], ranks[order[last]]
        ax.plot([low - 0.03, high + 0.03], [y, y], color="#555555", linewidth=2.4, solid_capstyle="butt")
    below = top - 0.3 - 0.3 * len(bars)
    for place, label in enumerate(order):
        left = place < half
        depth = place if left else count - 1 - place
        y = below - 0.35 - 0.6 * depth
        edge = 1 - 0.06 * margin if left else count + 0.06 * margin
        look = found[label]
        ax.plot([ranks[label], ranks[label], edge], [top, y, y], color=look.colour, linewidth=0.8)
        ax.plot([ranks[label]], [top], **look.points(linestyle="none", clip_on=False))
        ax.text(
            edge + (-0.05 if left else 0.05) * max(1, margin), y, f"{material.short(label)} ({ranks[label]:.1f})",
            ha="right" if left else "left", va="center", fontsize=6.5,
        )  # fmt: skip
    ax.set_ylim(below - 0.35 - 0.6 * half, top + 1.9)
    caption = (
        f"Mean rank over {benchmark_words(benchmarks)} by mean score, 1 is best. Rows that a thick bar joins are not"
        f" distinguishable at 5 % (Nemenyi: ranks {gap:.2f} apart differ). Friedman, χ² approximation: {test.text}. Rows complete on these"
        f" benchmarks only. {material.caption}"
    )
    return [Drawing(part="", figure=figure, caption=caption)]


def cliques(ranks: Sequence[float], gap: float) -> list[tuple[int, int]]:
    """(first, last) positions of the longest runs of ascending ``ranks`` that lie less than ``gap`` apart; of two rows or more."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(place for place in range(first, len(ranks)) if ranks[place] - ranks[first] <= gap)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
