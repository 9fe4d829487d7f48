"""Six figures of a table's runs in one style: Pareto, differences, cost, curves, α, and masks (`harness.report.masks`).

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
from harness.comparison.flags import alpha_codes
from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import metric
from harness.registry import operation_names
from harness.report import masks
from harness.report.masks import Pictures
from harness.report.runs import HUGE
from harness.report.sentences import axis_label, caption, named, short_number
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
    panels,
    styled,
)
from harness.system.streams import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


def draw(board: Leaderboard, pictures: Pictures | None = None) -> Iterator[tuple[str, Figure, str]]:
    """(name, figure, caption) of every figure whose numbers the runs have."""
    with styled():
        if figure := pareto(board):
            yield ("pareto", *figure)
        if figure := differences(board, list(board.columns)):
            yield ("differences", *figure)
        if figure := cost(board):
            yield ("cost", *figure)
        for benchmark in board.columns:
            for name, of_column in (("curves", curves), ("alpha", alpha)):
                if figure := of_column(board, benchmark):
                    yield (f"{name}-{benchmark}", *figure)
            if figure := masks.figure(board, benchmark, pictures):
                yield (f"masks-{benchmark}", *figure)


Points = Mapping[str, tuple[float, float]]
"""row -> (cost, score)"""


def front(points: Points) -> list[str]:
    """Rows on the Pareto front of (cost, score) by rising cost: no other costs at most as much and scores at least as much."""
    best: list[str] = []
    for row in sorted(points, key=lambda row: (points[row][0], -points[row][1], row)):
        if not best or points[row][1] > points[best[-1]][1]:
            best.append(row)
    return best


def pareto(board: Leaderboard, *, width: float = PAGE, height: float = 4.0) -> tuple[Figure, str] | None:
    """None where fewer than two rows have a score and a count of parameters."""
    points, title = _points(board)
    if len(points) < 2:
        return None
    figure = new_figure(width, height)
    ax = figure.subplots()
    costs = sorted({cost for cost, _ in points.values() if cost > 0}) or [1.0]
    ax.set_xscale("symlog", linthresh=costs[0] / 2, linscale=0.35)
    decades = [10.0**power for power in range(10) if costs[0] <= 10.0**power <= 2 * costs[-1]]
    ax.set_xticks([0.0, *decades] if any(cost == 0 for cost, _ in points.values()) else decades)
    ax.set_xlim(-costs[0] / 6 if 0 in ax.get_xticks() else costs[0] / 1.6, costs[-1] * 2.5)
    ax.xaxis.set_major_formatter(lambda value, _: short_number(value))
    ax.minorticks_off()
    low, high = limits([score for _, score in points.values()])
    ax.set_ylim(low, high)
    line = front(points)
    cost, score = zip(*(points[row] for row in line), strict=True)
    ax.step(cost, score, where="post", color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), alpha=0.7, zorder=1)
    inside = {row: point for row, point in points.items() if low <= point[1] <= high}
    times = {row: ratio.value for row in inside if board.session and (ratio := board.ratio(row, "time"))}
    for row in inside.keys() - times.keys():
        ax.plot(*points[row], marker="o", markerfacecolor="none", markeredgecolor=GREY, markersize=5, zorder=2)
    if times:
        cost, score = zip(*(points[row] for row in times), strict=True)
        dots = ax.scatter(cost, score, c=list(times.values()), cmap=_colours(), s=26, zorder=3)
        side = "right" if width > 1.5 * COLUMN else "bottom"
        bar = figure.colorbar(dots, ax=ax, location=side, shrink=0.7, aspect=24, pad=0.02)
        bar.set_label(f"training step ÷ {cut(board.baseline, 20)}'s")
    beyond = {row: point for row, point in points.items() if row not in inside}
    for cost_there, score_there in beyond.values():
        below = score_there < low
        ax.plot(
            [cost_there], [low if below else high], marker="v" if below else "^", color=GREY, markersize=4, zorder=3,
            clip_on=False,
        )  # fmt: skip
    if board.baseline in inside:
        ax.plot(*points[board.baseline], marker="o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
    collapsed = [row for row in board.rows if any(cell.collapsed for cell in board.cells(row, board.leading))]
    for row in (row for row in collapsed if row in inside):
        ax.plot(*points[row], marker="x", color=INK, markersize=5, zorder=4)
    _label(ax, inside, first=[board.baseline, *reversed(line)], size=(width, height))
    ax.set_xlabel("parameters trained in the encoder")
    ax.set_ylabel(title)
    ax.grid(visible=True)
    out = ", ".join(f"{cut(row, 24)} {score:.1f}" for row, (_, score) in beyond.items())
    legend = f" Beyond the axis: {out}." if out else ""
    colour = " Colour: time of a training step." if times else ""
    crossed = " Crossed: a run of the row collapsed." if collapsed else ""
    return (
        figure,
        f"Each point is a method. Dashed: the Pareto front. Circled: {board.baseline}.{crossed}{colour}{legend} {caption(board)}",
    )


def _points(board: Leaderboard) -> tuple[dict[str, tuple[float, float]], str]:
    """Scores on the one benchmark, higher is better; where there are several the mean difference to the baseline."""
    points: dict[str, tuple[float, float]] = {}
    name = board.leading
    column = board.columns[name] if name else None
    for row in board.rows:
        count = board.parameters(row)
        if count is None:
            continue
        if column is None:
            found = board.difference(row)
            if found or row == board.baseline:
                points[row] = (count, found.mean if found else 0.0)
        elif (cell := board.cell(row, name)).complete and not cell.blank:
            points[row] = (count, 100 * column.sign * cell.mean)
    if column is None:
        return points, f"{named(board, name)}, points to {cut(board.baseline, 20)}"
    return points, f"{'−' if column.sign < 0 else ''}{axis_label(column)}"


def _colours() -> Colormap:
    """From quick to slow; visible on light and on dark backgrounds."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("step", [BETTER, "#a98bc4", BASELINE])


NEAR = (
    *((0.014, 0.03, "left"), (0.02, 0.0, "left"), (-0.014, 0.03, "right"), (-0.02, 0.0, "right")),
    *((0.014, -0.035, "left"), (0.0, 0.045, "center"), (0.0, -0.05, "center")),
)
"""Where a name may stand: its distance from the point in shares of the axes, and its alignment."""
FAR = sorted(
    (
        (side * dx, dy, "left" if side > 0 else "right")
        for dx in (0.04, 0.08, 0.12, 0.18, 0.25, 0.33)
        for dy in (0.0, 0.05, -0.05, 0.1, -0.1, 0.16, -0.16, 0.22, -0.22, 0.3, -0.3)
        for side in (1, -1)
    ),
    key=lambda offset: math.hypot(*offset[:2]),
)
"""The same with a line to the point."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def _label(ax: Axes, points: Points, *, first: Sequence[str], size: tuple[float, float]) -> None:
    """Write names at points where there is room, those of ``first`` before others."""
    letter, line = 0.06 / size[0], 0.12 / size[1]  # about the shares of the axes that a letter and a line take
    dot = 0.045 / size[0], 0.045 / size[1]
    positions = {row: ax.transAxes.inverted().transform(ax.transData.transform(point)) for row, point in points.items()}
    taken: list[Box] = [(x - dot[0], y - dot[1], x + dot[0], y + dot[1]) for x, y in positions.values()]

    def is_free(box: Box) -> bool:
        inside = box[0] >= 0 and box[2] <= 1 and box[1] >= 0 and box[3] <= 1
        return inside and all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken)

    for row in dict.fromkeys([row for row in first if row in points] + list(points)):
        x, y = positions[row]
        text = cut(row, 24)
        wide = letter * len(text)
        for number, (dx, dy, align) in enumerate([*NEAR, *FAR]):
            left = x + dx - {"left": 0, "right": wide, "center": wide / 2}[align]
            box = (left, y + dy - line / 2, left + wide, y + dy + line / 2)
            steps = [share / 16 for share in range(1, 16)] if number >= len(NEAR) else []
            on_line = [(x + s * dx, y + s * dy) for s in steps if abs(s * dx) > dot[0] or abs(s * dy) > dot[1]]
            boxes = [box, *((at, height, at, height) for at, height in on_line)]
            if all(map(is_free, boxes)):
                taken += boxes
                ax.text(x + dx, y + dy, text, transform=ax.transAxes, ha=align, va="center", fontsize=6)
                if on_line:
                    ends = [x, x + 0.95 * dx], [y, y + 0.95 * dy]
                    ax.plot(*ends, transform=ax.transAxes, color=GREY, linewidth=0.5, zorder=1)
                break


MOST_PANELS = 6


def differences(board: Leaderboard, benchmarks: Sequence[str]) -> tuple[Figure, str] | None:
    """None where no row has an interval."""
    shown = [*([""] if len(benchmarks) > 1 and not board.leading else []), *benchmarks][:MOST_PANELS]
    order = board.on(shown[0]) if len(shown) == 1 else board.rows
    rows = [row for row in order if any(board.verdict(row, name) for name in shown)]
    if not rows:
        return None
    figure = new_figure(COLUMN if len(shown) == 1 else PAGE, 0.6 + 0.15 * len(rows))
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for ax, name in zip(axes, shown, strict=True):
        found = {at: board.difference(row, name) for at, row in enumerate(rows)}
        points = {at: d for at, d in found.items() if d and d.low is not None}
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
    axes[0].set_yticks(range(len(rows)), [cut(row, 34) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(f"points to {board.baseline}", fontsize=7)
    joint = any(d.simultaneous for row in rows if (d := board.difference(row, shown[0])))
    legend = "95 % confidence intervals" + (", simultaneous for all rows of a panel (max-T)" if joint else "")
    return figure, f"Difference to {board.baseline} in points, positive is better; {legend}. {caption(board)}"


def cost(board: Leaderboard) -> tuple[Figure, str] | None:
    """None where no session measured the baseline with another row."""
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


Curve = Mapping[int, float]
"""epoch -> value"""


def curves(board: Leaderboard, benchmark: str, *, coloured: int = 5) -> tuple[Figure, str] | None:
    """None where no run was validated twice."""
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
    ax.set_ylabel(f"validation {metric(name).title} (%)")
    ax.grid(visible=True, axis="y")
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1.0, handlelength=1.4)
    others = f" Grey: the other {len(means) - len(first)} rows." if len(means) > len(first) else ""
    return (
        figure,
        f"Validation {metric(name).title} on {column.title} by epoch, mean over seeds.{others} {caption(board)}",
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
    """None where no run has a history of α."""
    rows: dict[str, tuple[tuple[str, ...], list[list[Shares]], list[str]]] = {}
    for row in board.on(benchmark):
        runs = board.grid.finished(row, benchmark)
        names = tuple(operation_names(runs[0].run.method, runs[0].run.method_config)) if runs else ()
        if len(names) < 2 or len(rows) == MOST_PANELS:
            continue
        read = [_history(board, r) for r in runs]
        histories = [h for h in read if {len(shares) for sites in h for shares in sites.values()} == {len(names)}]
        if histories:
            rows[row] = names, histories, alpha_codes(runs, board.grid.archive)
    if not rows:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = panels(len(rows), columns=3, width=PAGE * min(3, 1 + len(rows)) / 3, height=1.9, sharey=True)
    for ax, (row, (names, histories, codes)) in zip(axes, rows.items(), strict=True):
        ax.axhline(1 / len(names), color=GREY, linewidth=0.7)
        for index, name in enumerate(names):
            lines = [[_mean_share(epoch, index) for epoch in history if epoch] for history in histories]
            mean = [statistics.fmean(at_epoch) for at_epoch in zip(*lines, strict=False)]
            ax.plot(
                range(1, len(mean) + 1), mean, label=name.replace("_", " "), markevery=max(1, len(mean) // 6),
                color=SERIES[index % len(SERIES)], marker=MARKERS[index % len(MARKERS)], markersize=3,
            )  # fmt: skip
        ax.set_title("\n".join([cut(row, 30), *codes]), loc="left")
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("softmax(α)")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    legend = "Share of each operation of the searched cells (softmax of its weights α) by epoch, mean over sites and seeds; grey: all alike"
    return figure, f"{legend}. {board.columns[benchmark].title}. {caption(board)}"


def _history(board: Leaderboard, record: Record) -> list[Shares]:
    try:
        return list(board.grid.archive.store.architecture(record))
    except ValueError as error:
        say(f"left out of the figure of α: {error}")
        return []


def _mean_share(shares: Shares, index: int) -> float:
    return statistics.fmean(of_site[index] for of_site in shares.values())
