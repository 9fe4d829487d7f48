"""How an architecture is searched: softmax(α) by epoch, a panel a row and a line an operation."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from harness.archive.archive import Shares
from harness.archive.schema import Record
from harness.comparison.alpha import alpha_codes
from harness.comparison.leaderboard import Leaderboard
from harness.registry import operation_names
from harness.report.board import caption, ended_well, on
from harness.report.figures.style import GREY, MARKERS, PAGE, SERIES, cut, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 6


def figure(board: Leaderboard, benchmark: str) -> tuple[Figure, str] | None:
    """None where no run has a history of α."""
    rows: dict[str, tuple[tuple[str, ...], list[list[Shares]], list[str]]] = {}
    for row in (each.row for each in on(board, benchmark)):
        runs = ended_well(board, row, benchmark)
        names = tuple(operation_names(runs[0].run.method, runs[0].run.method_config)) if runs else ()
        if len(names) < 2 or len(rows) == MOST_PANELS:
            continue
        histories = [h for r in runs if (h := _history(board, r)) and len(next(iter(h[-1].values()))) == len(names)]
        if histories:
            rows[row] = names, histories, alpha_codes(runs, board.grid.archive)
    if not rows:
        return None
    from matplotlib.ticker import MaxNLocator

    made, axes = panels(len(rows), columns=3, width=PAGE * min(3, 1 + len(rows)) / 3, height=1.9, sharey=True)
    for ax, (row, (names, histories, codes)) in zip(axes, rows.items(), strict=True):
        ax.axhline(1 / len(names), color=GREY, linewidth=0.7)
        for place, name in enumerate(names):
            lines = [[_mean(epoch, place) for epoch in history if epoch] for history in histories]
            mean = [statistics.fmean(at_epoch) for at_epoch in zip(*lines, strict=False)]
            ax.plot(
                range(1, len(mean) + 1), mean, label=name.replace("_", " "), markevery=max(1, len(mean) // 6),
                color=SERIES[place % len(SERIES)], marker=MARKERS[place % len(MARKERS)], markersize=3,
            )  # fmt: skip
        ax.set_title("\n".join([cut(row, 30), *codes]), loc="left")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("softmax(α)")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    made.legend(handles, labels, loc="outside lower center", ncols=4)
    said = "Share of each operation of the searched cells (softmax of its weights α) by epoch, mean over sites and seeds; grey: all alike"
    return made, f"{said}. {board.columns[benchmark].title}. {caption(board)}"


def _history(board: Leaderboard, record: Record) -> list[Shares]:
    try:
        return list(board.grid.archive.store.architecture(record))
    except ValueError:
        return []


def _mean(shares: Shares, place: int) -> float:
    return statistics.fmean(of_site[place] for of_site in shares.values())
