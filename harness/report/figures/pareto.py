"""Score against trained parameters; the colour is the time of a training step against the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.comparison.leaderboard import Leaderboard
from harness.report.board import axis_label, caption, leading, named, ran
from harness.report.figures.style import BASELINE, BETTER, COLUMN, GREY, INK, cut, limits, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Points = Mapping[str, tuple[float, float]]
"""row -> (cost, score)"""


def front(points: Points) -> list[str]:
    """Rows on the Pareto front of (cost, score) by rising cost: no other costs at most as much and scores at least as much."""
    best: list[str] = []
    for row in sorted(points, key=lambda row: (points[row][0], -points[row][1], row)):
        if not best or points[row][1] > points[best[-1]][1]:
            best.append(row)
    return best


def figure(board: Leaderboard, *, width: float = 1.6 * COLUMN, height: float = 3.2) -> tuple[Figure, str] | None:
    """None where fewer than two rows have a score and a count of parameters."""
    points, title = _points(board)
    if len(points) < 2:
        return None
    made = new_figure(width, height)
    ax = made.subplots()
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
    times = {each.row: each.time.value for each in ran(board) if each.time and each.row in inside}
    if times and board.baseline in inside:
        times[board.baseline] = 1.0
    for row in inside.keys() - times.keys():
        ax.plot(*points[row], marker="o", markerfacecolor="none", markeredgecolor=GREY, markersize=5, zorder=2)
    if times:
        cost, score = zip(*(points[row] for row in times), strict=True)
        dots = ax.scatter(cost, score, c=list(times.values()), cmap=_colours(), s=26, zorder=3)
        bar = made.colorbar(dots, ax=ax, shrink=0.7, aspect=24, pad=0.02)
        bar.set_label(f"training step ÷ {cut(board.baseline, 20)}'s")
    beyond = {row: point for row, point in points.items() if row not in inside}
    for cost_there, score_there in beyond.values():
        below = score_there < low
        ax.plot(
            [cost_there], [low if below else high], marker="v" if below else "^", color=GREY, markersize=4, zorder=3
        )
    if board.baseline in inside:
        ax.plot(*points[board.baseline], marker="o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
    _label(ax, inside, first=[board.baseline, *reversed(line)], size=(width, height))
    ax.set_xlabel("parameters trained in the encoder")
    ax.set_ylabel(title)
    ax.grid(visible=True)
    out = ", ".join(f"{cut(row, 24)} {score:.1f}" for row, (_, score) in beyond.items())
    said = f" Beyond the axis: {out}." if out else ""
    colour = " Colour: time of a training step." if times else ""
    return (
        made,
        f"Each point is a method. Dashed: the Pareto front. Circled: {board.baseline}.{colour}{said} {caption(board)}",
    )


def _points(board: Leaderboard) -> tuple[dict[str, tuple[float, float]], str]:
    """Scores on the one benchmark, higher is better; where there are several the mean difference to the baseline."""
    points: dict[str, tuple[float, float]] = {}
    name = leading(board)
    column = board.columns[name] if name else None
    for each in ran(board):
        if each.encoder is None:
            continue
        if column is None:
            if each.mean or each.row == board.baseline:
                points[each.row] = (each.encoder, each.mean.mean if each.mean else 0.0)
        elif each.cells[name].values and not each.cells[name].blank:
            points[each.row] = (each.encoder, 100 * column.sign * each.cells[name].mean)
    if column is None:
        return points, f"{named(board, name)}, points to {cut(board.baseline, 20)}"
    return points, f"{'−' if column.sign < 0 else ''}{axis_label(column)}"


def _colours() -> Colormap:
    """From quick to slow; each can be seen on light and on dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("step", [BETTER, "#a98bc4", BASELINE])


def short_number(value: float) -> str:
    """``22k``"""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _label(ax: Axes, points: Points, *, first: Sequence[str], size: tuple[float, float]) -> None:
    """Names at points as far as there is room, those of ``first`` before others."""
    letter, line = 0.052 / size[0], 0.11 / size[1]  # shares of the axes that a letter and a line take, nearly
    places = {row: ax.transAxes.inverted().transform(ax.transData.transform(point)) for row, point in points.items()}
    taken = [(x - 0.01, y - 0.014, x + 0.01, y + 0.014) for x, y in places.values()]
    for row in dict.fromkeys([row for row in first if row in points] + list(points)):
        x, y = places[row]
        text = cut(row, 24)
        wide = letter * len(text)
        for dx, dy, align in (
            (0.014, 0.03, "left"),
            (0.02, 0, "left"),
            (-0.014, 0.03, "right"),
            (-0.02, 0, "right"),
            (0.014, -0.035, "left"),
            (0, 0.045, "center"),
            (0, -0.05, "center"),
        ):
            left = x + dx - {"left": 0, "right": wide, "center": wide / 2}[align]
            box = (left, y + dy - line / 2, left + wide, y + dy + line / 2)
            free = all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken)
            if free and box[0] >= 0 and box[2] <= 1 and box[1] >= 0 and box[3] <= 1:
                taken.append(box)
                ax.text(x + dx, y + dy, text, transform=ax.transAxes, ha=align, va="center", fontsize=6)
                break
