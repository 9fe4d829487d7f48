"""Six figures of a table's runs: differences, curves, masks, Pareto, α and cost. Each module has one, drawn with one style."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.comparison.leaderboard import Leaderboard
from harness.report.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.report.figures.masks import Pictures


def draw(board: Leaderboard, pictures: Pictures | None = None) -> Iterator[tuple[str, Figure, str]]:
    """(name, figure, caption) of every figure that the runs have the numbers for."""
    from harness.report.figures import alpha, cost, curves, differences, masks, pareto

    with styled():
        if made := pareto.figure(board):
            yield ("pareto", *made)
        if made := differences.figure(board, list(board.columns)):
            yield ("differences", *made)
        if made := cost.figure(board):
            yield ("cost", *made)
        for benchmark in board.columns:
            for name, of_column in (("curves", curves.figure), ("alpha", alpha.figure)):
                if made := of_column(board, benchmark):
                    yield (f"{name}-{benchmark}", *made)
            if made := masks.figure(board, benchmark, pictures):
                yield (f"masks-{benchmark}", *made)
