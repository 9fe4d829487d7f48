"""What a training step costs against the baseline's: time and memory, measured interleaved in one session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.comparison.leaderboard import Leaderboard
from harness.report.board import ran
from harness.report.figures.style import BETTER, INK, PAGE, cut, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(board: Leaderboard) -> tuple[Figure, str] | None:
    """None where no session measured the baseline with another row."""
    rows = sorted((each for each in ran(board) if each.time), key=lambda each: -each.time.value if each.time else 0)
    if not rows or board.session is None:
        return None
    made = new_figure(PAGE, 0.65 + 0.16 * len(rows))
    axes = made.subplots(1, 2, sharey=True)
    for ax, title in zip(axes, ("time of a training step", "peak memory"), strict=True):
        ax.axvline(1, color=INK, linewidth=0.6)
        for at, each in enumerate(rows):
            if ratio := each.time if ax is axes[0] else each.memory:
                ax.plot([1, ratio.value], [at, at], color=BETTER, linewidth=0.8, alpha=0.5)
                ax.plot([ratio.value], [at], color=BETTER, marker="o", markersize=3.2)
                if ratio.low is not None:
                    ax.plot([ratio.low, ratio.high], [at, at], color=BETTER, linewidth=2.4)
        ax.set_title(title, loc="left")
        ax.set_xlabel(f"÷ {board.baseline}'s")
        ax.grid(visible=True, axis="x")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [cut(each.row, 34) for each in rows])
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    place = board.session.comparability
    return made, (
        f"A training step against {board.baseline}'s, {board.session.rounds} interleaved rounds on {place.device}, {place.precision},"
        f" {place.image_size} px, batch {place.batch}. Thick: 95 % confidence intervals over the rounds."
    )
