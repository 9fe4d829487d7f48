"""Learning curves: the validation score by epoch, mean over seeds; a few rows in colour, the others in grey."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.archive.schema import Record
from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import metric
from harness.report.board import caption, ended_well, on
from harness.report.figures.style import BASELINE, COLUMN, GREY, SERIES, cut, limits, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Mapping[int, float]
"""epoch -> value"""


def figure(board: Leaderboard, benchmark: str, *, coloured: int = 5) -> tuple[Figure, str] | None:
    """None where no run was validated twice."""
    column = board.columns[benchmark]
    order = [each.row for each in on(board, benchmark)]
    whole = {
        row: [board.grid.archive.whole(record.key) for record in ended_well(board, row, benchmark)] for row in order
    }
    held = Counter(
        name for runs in whole.values() for r in runs for name in {n for e in r.history for n in e.get("val", {})}
    )
    if not held:
        return None
    name = column.metric if column.metric in held else held.most_common(1)[0][0]
    means = {row: mean for row, runs in whole.items() if len(mean := _mean(runs, name)) > 1}
    if not means:
        return None
    first = [row for row in dict.fromkeys((board.baseline, *order)) if row in means][:coloured]
    from matplotlib.ticker import MaxNLocator

    made = new_figure(COLUMN, 2.5)
    ax = made.subplots()
    for row, mean in means.items():
        if row not in first:
            ax.plot(list(mean), list(mean.values()), color=GREY, linewidth=0.5, alpha=0.5, zorder=1)
    colours = dict(zip([row for row in first if row != board.baseline], SERIES, strict=False))
    for row in first:
        colour = colours.get(row, BASELINE)
        ax.plot(list(means[row]), list(means[row].values()), color=colour, label=cut(row, 26), zorder=3)
    ax.set_ylim(*limits([value for mean in means.values() for value in mean.values()]))
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylabel(f"validation {metric(name).title} (%)")
    ax.grid(visible=True, axis="y")
    made.legend(loc="outside lower center", ncols=2, columnspacing=1.0, handlelength=1.4)
    others = f" Grey: the other {len(means) - len(first)} rows." if len(means) > len(first) else ""
    return (
        made,
        f"Validation {metric(name).title} on {column.title} by epoch, mean over seeds.{others} {caption(board)}",
    )


def _mean(runs: Sequence[Record], name: str) -> Curve:
    """In %, over the seeds, of the epochs that all of them validated."""
    by_seed = [
        {e["epoch"]: 100 * e["val"][name] for e in r.history if math.isfinite(e.get("val", {}).get(name, math.nan))}
        for r in runs
    ]
    common = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    return {epoch: statistics.fmean(curve[epoch] for curve in by_seed) for epoch in common}
