"""Five figures of a table's runs in one style: differences, cost, curves, α, and masks (`harness.report.masks`).

Each is None where the runs lack the numbers for it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.archive.archive import Shares
from harness.archive.schema import Record
from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import metric_title
from harness.report import masks
from harness.report.masks import Pictures
from harness.report.runs import HUGE
from harness.report.scores import alpha_codes
from harness.report.sentences import caption, compared_on
from harness.report.style import (
    BASELINE,
    BETTER,
    COLUMN,
    GREY,
    INK,
    MARKERS,
    PAGE,
    SERIES,
    WORSE,
    cut,
    limits,
    new_figure,
    styled,
)
from harness.system.streams import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(board: Leaderboard, pictures: Pictures | None = None) -> Iterator[tuple[str, Figure, str]]:
    """(name, figure, caption) of every figure whose numbers the runs have."""
    with styled():
        if not board.leading and (figure := differences(board, "", width=PAGE)):
            yield ("differences", *figure)
        if figure := cost(board):
            yield ("cost", *figure)
        for benchmark in board.columns:
            for name, of_column in (("differences", differences), ("curves", curves), ("alpha", alpha)):
                if figure := of_column(board, benchmark):
                    yield (f"{name}-{benchmark}", *figure)
            if figure := masks.figure(board, benchmark, pictures):
                yield (f"masks-{benchmark}", *figure)


def differences(board: Leaderboard, benchmark: str, *, width: float = COLUMN) -> tuple[Figure, str] | None:
    """The figure of every row's difference to the baseline, on a benchmark or in the mean (empty name); None if no row has an
    interval."""
    order = board.on(benchmark) if benchmark else board.rows
    points = {row: found for row in order if (found := board.difference(row, benchmark))}
    if not any(board.verdict(row, benchmark) for row in points):
        return None
    figure = new_figure(width, 0.6 + 0.16 * len(points))
    ax = figure.subplots()
    low, high = limits([0.0, *(end for d in points.values() for end in (d.low, d.high) if end is not None)])
    ax.axvline(0, color=INK, linewidth=0.6)
    for at, (row, found) in enumerate(points.items()):
        verdict = board.verdict(row, benchmark)
        colour = {"better": BETTER, "worse": WORSE}.get(verdict, GREY)
        if verdict == "not distinguishable":
            ax.axhspan(at - 0.5, at + 0.5, color=GREY, alpha=0.12, linewidth=0)
        if found.low is not None and found.high is not None:
            ax.plot([found.low, found.high], [at, at], color=colour, linewidth=1.3, solid_capstyle="butt")
        beyond = "<" if found.mean < low else ">" if found.mean > high else "o"
        ax.plot(
            [min(max(found.mean, low), high)], [at], color=colour, marker=beyond, markersize=3.6, clip_on=False,
            markerfacecolor=colour if verdict else "none",
        )  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_yticks(range(len(points)), [cut(row, 34 if width > COLUMN else 24) for row in points])
    ax.set_ylim(len(points) - 0.4, -0.6)
    ax.grid(visible=True, axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"points to {board.baseline}: {compared_on(board, benchmark)}")
    shaded = (
        " Shaded: cannot be told apart from it."
        if any(board.verdict(r, benchmark) == "not distinguishable" for r in points)
        else ""
    )
    opened = (
        "" if all(board.verdict(row, benchmark) for row in points) else " Open: not ranked, as where a run collapsed."
    )
    return figure, (
        f"Difference to {board.baseline} in points, positive is better; 95 % confidence intervals, simultaneous for all rows (max-T)."
        f"{shaded}{opened} {caption(board)}"
    )


def cost(board: Leaderboard) -> tuple[Figure, str] | None:
    """The figure of costs; None if no session measured the baseline together with another row."""
    if board.session is None:
        return None
    times = {row: ratio for row in board.rows if row != board.baseline and (ratio := board.ratio(row, "time"))}
    rows = sorted(times, key=lambda row: -times[row].value)
    if not rows:
        return None
    figure = new_figure(PAGE, 0.65 + 0.16 * len(rows))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, title in zip(axes, ("time of a training step", "peak memory"), strict=True):
        ax.axvline(1, color=INK, linewidth=0.6)
        for at, row in enumerate(rows):
            if ratio := times[row] if ax is axes[0] else board.ratio(row, "memory"):
                ax.plot([1, ratio.value], [at, at], color=BETTER, linewidth=0.8, alpha=0.5)
                ax.plot([ratio.value], [at], color=BETTER, marker="o", markersize=3.2)
                if ratio.low is not None:
                    ax.plot([ratio.low, ratio.high], [at, at], color=BETTER, linewidth=2.4)
        ax.set_title(title, loc="left")
        ax.set_xlabel(f"÷ {board.baseline}'s")
        ax.grid(visible=True, axis="x")
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [cut(row, 34) for row in rows])
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    setup = board.session.comparability
    return figure, (
        f"A training step against {board.baseline}'s, {board.session.rounds} interleaved rounds on {setup.device}, {setup.precision},"
        f" {setup.image_size} px, batch {setup.batch}{board.session.caveat}. Thick: 95 % confidence intervals over the rounds."
    )


MOST_PANELS = 6
Curve = Mapping[int, float]
"""epoch -> value"""


def curves(board: Leaderboard, benchmark: str, *, coloured: int = 5) -> tuple[Figure, str] | None:
    """The figure of validation curves; None if no run was validated twice."""
    column = board.columns[benchmark]
    order = board.on(benchmark)
    whole = {row: [board.grid.archive.whole(r.key) for r in board.grid.finished(row, benchmark)] for row in order}
    held = Counter(
        name for runs in whole.values() for r in runs for name in {n for e in r.history for n in e.get("val", {})}
    )
    if not held:
        return None
    name = column.metric if column.metric in held else held.most_common(1)[0][0]
    means = {row: mean for row, runs in whole.items() if len(mean := _mean_curve(runs, name)) > 1}
    if not means:
        return None
    first = [row for row in dict.fromkeys((board.baseline, *order)) if row in means][:coloured]
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(COLUMN, 2.5)
    ax = figure.subplots()
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
    ax.set_ylabel(f"validation {metric_title(name)} (%)")
    ax.grid(visible=True, axis="y")
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1.0, handlelength=1.4)
    others = f" Grey: the other {len(means) - len(first)} rows." if len(means) > len(first) else ""
    return (
        figure,
        f"Validation {metric_title(name)} on {column.title} by epoch, mean over seeds.{others} {caption(board)}",
    )


def _mean_curve(runs: Sequence[Record], name: str) -> Curve:
    """The mean over seeds in %, for epochs that all of them validated."""
    by_seed = [
        {e["epoch"]: 100 * e["val"][name] for e in r.history if abs(e.get("val", {}).get(name, math.nan)) < HUGE}
        for r in runs
    ]
    common = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    return {epoch: statistics.fmean(curve[epoch] for curve in by_seed) for epoch in common}


def alpha(board: Leaderboard, benchmark: str) -> tuple[Figure, str] | None:
    """The figure of α over training; None if no run has a history of α."""
    rows: dict[str, tuple[tuple[str, ...], list[list[Shares]], list[str]]] = {}
    for row in board.on(benchmark):
        runs = board.grid.finished(row, benchmark)
        names = tuple(runs[0].run.operations or ()) if runs else ()
        if len(names) < 2 or len(rows) == MOST_PANELS:
            continue
        read = [_history(board, r) for r in runs]
        histories = [h for h in read if {len(shares) for sites in h for shares in sites.values()} == {len(names)}]
        if histories:
            rows[row] = names, histories, alpha_codes(runs, board.grid.archive)
    if not rows:
        return None
    from matplotlib.ticker import MaxNLocator

    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure = new_figure(PAGE * min(3, 1 + len(rows)) / 3, 1.9 * down)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for empty in axes[len(rows) :]:
        empty.remove()
    for ax, (row, (names, histories, codes)) in zip(axes, rows.items(), strict=False):
        ax.axhline(1 / len(names), color=GREY, linewidth=0.7)
        for index, name in enumerate(names):
            lines = [
                [statistics.fmean(shares[index] for shares in epoch.values()) for epoch in history if epoch]
                for history in histories
            ]
            mean = [statistics.fmean(at_epoch) for at_epoch in zip(*lines, strict=False)]
            ax.plot(
                range(1, len(mean) + 1), mean, label=name.replace("_", " "), markevery=max(1, len(mean) // 6),
                color=SERIES[index % len(SERIES)], marker=MARKERS[index % len(MARKERS)], markersize=3,
            )  # fmt: skip
        ax.set_title("\n".join([cut(row, 30), *codes]), loc="left")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("softmax(α)")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes[: len(rows)]), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    legend = "Share of each operation of the searched cells (softmax of its weights α) by epoch, mean over sites and seeds; grey: all alike"
    return figure, f"{legend}. {board.columns[benchmark].title}. {caption(board)}"


def _history(board: Leaderboard, record: Record) -> list[Shares]:
    try:
        return list(board.grid.archive.store.architecture(record))
    except ValueError as error:
        say(f"left out of the figure of α: {error}")
        return []
