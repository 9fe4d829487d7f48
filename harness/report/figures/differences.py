"""Differences to the baseline, a line a row and a panel a benchmark, with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.comparison.leaderboard import Leaderboard
from harness.report.board import against, caption, has_mean, named, on, ran
from harness.report.figures.style import BETTER, COLUMN, GREY, INK, PAGE, WORSE, cut, limits, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 6


def figure(board: Leaderboard, benchmarks: Sequence[str]) -> tuple[Figure, str] | None:
    """None where no row has an interval."""
    shown = [*([""] if len(benchmarks) > 1 and has_mean(board) else []), *benchmarks][:MOST_PANELS]
    order = on(board, shown[0]) if len(shown) == 1 else ran(board)
    rows = [each for each in order if any((d := against(each, name)) and d.low is not None for name in shown)]
    if not rows:
        return None
    made = new_figure(COLUMN if len(shown) == 1 else PAGE, 0.6 + 0.15 * len(rows))
    axes = made.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for ax, name in zip(axes, shown, strict=True):
        points = {at: d for at, each in enumerate(rows) if (d := against(each, name)) and d.low is not None}
        ends = [0.0, *(end for d in points.values() for end in (d.low, d.high) if end is not None)]
        low, high = limits(ends)
        ax.axvline(0, color=INK, linewidth=0.6)
        for at, d in points.items():
            colour = BETTER if (d.low or 0) > 0 else WORSE if (d.high or 0) < 0 else GREY
            ax.plot([d.low, d.high], [at, at], color=colour, linewidth=1.3, solid_capstyle="butt")
            beyond = "<" if d.mean < low else ">" if d.mean > high else "o"
            ax.plot([min(max(d.mean, low), high)], [at], color=colour, marker=beyond, markersize=3.2, clip_on=False)
        ax.set_xlim(low, high)
        ax.set_title(named(board, name), loc="left")
        ax.grid(visible=True, axis="x")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [cut(each.row, 34) for each in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    made.supxlabel(f"points to {board.baseline}", fontsize=7)
    joint = any(d.simultaneous for each in rows if (d := against(each, shown[0])))
    said = "95 % confidence intervals" + (", simultaneous for all rows of a panel (max-T)" if joint else "")
    return made, f"Difference to {board.baseline} in points, positive is better; {said}. {caption(board)}"
