"""Forest plot: the paired difference of every row to a baseline, by benchmark and over all of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.comparison import names
from harness.comparison.paired import Difference, paired_difference
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import COLUMN, GREY, PAGE, Look, looks, name_below, new_figure, panels
from harness.statistics import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 3
"""Rows up to this many share one panel where there are more benchmarks than that."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A difference in points; ``low`` and ``high`` are None where n is too small for an interval."""

    mean: float
    low: float | None
    high: float | None
    n: int


Bars = Mapping[str, Mapping[str, Bar]]
"""benchmark -> label -> bar"""


def draw(material: Material) -> list[Drawing]:
    grid, columns = material.grid, material.first_columns()
    labels = [row.label for row in grid.rows]
    base = labels.index(material.baseline)
    found: dict[str, dict[str, Difference]] = {}
    for benchmark, place in columns.items():
        for index, row in enumerate(grid.rows):
            difference = paired_difference(
                grid.cells[index, place], grid.cells[base, place], grid.columns[place],
                scored=(row.score, grid.rows[base].score), images_of=material.images_of,
            )  # fmt: skip
            if index != base and difference is not None:
                found.setdefault(benchmark, {})[row.label] = difference
    if not found:
        raise NothingToDrawError(f"no row has a seed in common with the baseline {material.baseline}; see --baseline")
    bars = {name: {label: _bar(one) for label, one in mine.items()} for name, mine in found.items()}
    titles = {
        name: f"{grid.columns[place].benchmark_title} {names.metric(grid.columns[place].metric).title}"
        for name, place in columns.items()
    }
    if len(found) > 1 and (overall := _overall(found)):
        bars["overall"], titles["overall"] = overall, f"Mean of {len(found)} benchmarks"
    shown = [row for row in grid.rows if any(row.label in mine for mine in bars.values())]
    look, said = looks(grid.rows), {row.label: material.short(row.label) for row in shown}
    if len(shown) <= FEW and len(bars) > FEW:
        figure = _benchmarks_down(bars, titles, said, look, baseline=material.short(material.baseline))
    else:
        figure = _rows_down(bars, titles, said, look, baseline=material.short(material.baseline))
    return [Drawing(part="", figure=figure, caption=_caption(material, overall="overall" in bars))]


def _rows_down(
    bars: Bars, titles: dict[str, str], shown: dict[str, str], look: dict[str, Look], *, baseline: str
) -> Figure:
    """A panel a benchmark, its rows (label -> what is written of it) below each other."""
    figure, axes = panels(
        len(bars), columns=3, width=COLUMN if len(bars) == 1 else PAGE, height=0.6 + 0.16 * len(shown), sharey=True
    )
    for ax, (name, mine) in zip(axes, bars.items(), strict=True):
        ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        for height, label in enumerate(shown):
            if label in mine:
                _draw(ax, mine[label], height, look[label])
        ax.set_title(titles[name], loc="left")
        ax.set_xlabel(f"points over {baseline}")
        ax.grid(visible=True, axis="x")
    axes[0].set_yticks(range(len(shown)), list(shown.values()))
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def _benchmarks_down(
    bars: Bars, titles: dict[str, str], shown: dict[str, str], look: dict[str, Look], *, baseline: str
) -> Figure:
    """One panel, its benchmarks below each other, for the few rows of a short comparison on many benchmarks."""
    figure = new_figure(COLUMN, 0.8 + 0.2 * len(bars))
    ax = figure.subplots()
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for place, (label, said) in enumerate(shown.items()):
        shift = (place - (len(shown) - 1) / 2) * 0.24
        for height, mine in enumerate(bars.values()):
            if label in mine:
                _draw(ax, mine[label], height + shift, look[label])
        ax.plot([], [], **look[label].points(linestyle="none", label=said))
    ax.set_yticks(range(len(bars)), [titles[name] for name in bars])
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_xlabel(f"points over {baseline}")
    ax.grid(visible=True, axis="x")
    name_below(figure, ax, most=3)
    return figure


def _draw(ax: Axes, bar: Bar, height: float, look: Look) -> None:
    if bar.low is not None and bar.high is not None:
        ax.plot([bar.low, bar.high], [height, height], color=look.colour, linewidth=1.3, zorder=2)
    ax.plot([bar.mean], [height], **look.points(linestyle="none", zorder=3))


def _bar(difference: Difference) -> Bar:
    interval = difference.interval
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Bar(mean=difference.mean, low=low, high=high, n=len(difference.by_seed))


def _overall(found: dict[str, dict[str, Difference]]) -> dict[str, Bar]:
    """Rows with a difference on every benchmark: t interval over the benchmarks' means, which speaks of other benchmarks."""
    everywhere = set.intersection(*(set(mine) for mine in found.values()))
    bars = {}
    for label in next(iter(found.values())):
        if label in everywhere:
            means = [mine[label].mean for mine in found.values()]
            interval = t_interval(means)
            known = interval if interval and math.isfinite(interval.low) else None
            bars[label] = Bar(
                mean=statistics.fmean(means), low=known.low if known else None, high=known.high if known else None,
                n=len(means),
            )  # fmt: skip
    return bars


def _caption(material: Material, *, overall: bool) -> str:
    across = (
        " Mean of benchmarks: rows that ran on all of them, bars are a 95 % t interval over benchmarks."
        if overall
        else ""
    )
    return (
        f"Difference to {material.baseline} in points, paired by seed and image, positive is better. Bars: 95 %"
        " intervals over seeds and images, crossed (t over seeds alone where a score is no mean over images); no bar"
        f" where n is too small for one.{across} {material.caption}"
    )
