"""Differences to a baseline: of every row by benchmark and overall, and of every reading of a method above its choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.comparison.cells import Difference, spread_over
from harness.comparison.readings import Specification, specification_curve
from harness.comparison.rows import Row
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    Look,
    benchmark_look,
    limits,
    looks,
    name_below,
    new_figure,
    panels,
)
from harness.report.readings import choice, level_in_words
from harness.statistics import Estimate, of_seeds
from harness.studies import Readings

FEW = 3
"""Rows up to this many share one panel where there are more benchmarks than that."""


Bars = Mapping[str, Mapping[Row, Estimate]]
"""benchmark -> row -> difference in points; one of a single seed has no interval."""


def forest(material: Material) -> list[Drawing]:
    """The paired difference of every row to a baseline, by benchmark and over all of them."""
    grid, columns = material.grid, material.grid.first_columns
    differences: dict[str, dict[Row, Difference]] = {}
    for benchmark, column in columns.items():
        for row in (row for row in grid.rows if row is not material.baseline):
            if (difference := grid.difference(row, material.baseline, column)) is not None:
                differences.setdefault(benchmark, {})[row] = difference
    if not differences:
        raise NothingToDrawError(
            f"no row has a seed in common with the baseline {material.baseline.label}; see --baseline"
        )
    bars = {
        name: {row: difference.estimate for row, difference in by_row.items()} for name, by_row in differences.items()
    }
    titles = {name: f"{column.benchmark_title} {column.measure.title}" for name, column in columns.items()}
    if len(differences) > 1 and (overall := _overall(differences)):
        bars["overall"], titles["overall"] = overall, f"Mean of {len(differences)} benchmarks"
    shown = {row: material.short(row) for row in grid.rows if any(row in by_row for by_row in bars.values())}
    look, baseline = looks(grid.rows), material.short(material.baseline)
    draw = _benchmarks_down if len(shown) <= FEW and len(bars) > FEW else _rows_down
    figure = draw(bars, titles, shown, look, baseline=baseline)
    over = spread_over(difference for by_row in differences.values() for difference in by_row.values())
    return [Drawing(figure=figure, caption=_caption(material, over, overall="overall" in bars))]


def _rows_down(
    bars: Bars, titles: dict[str, str], shown: dict[Row, str], look: dict[Row, Look], *, baseline: str
) -> Figure:
    """A panel a benchmark, its rows (row -> what is written of it) below each other."""
    figure, axes = panels(
        len(bars), columns=3, width=COLUMN if len(bars) == 1 else PAGE, height=0.6 + 0.16 * len(shown), sharey=True
    )
    for ax, (name, by_row) in zip(axes, bars.items(), strict=True):
        ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        for height, row in enumerate(shown):
            if row in by_row:
                _draw(ax, by_row[row], height, look[row])
        ax.set_title(titles[name], loc="left")
        ax.set_xlabel(f"points over {baseline}")
        ax.grid(visible=True, axis="x")
    axes[0].set_yticks(range(len(shown)), list(shown.values()))
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def _benchmarks_down(
    bars: Bars, titles: dict[str, str], shown: dict[Row, str], look: dict[Row, Look], *, baseline: str
) -> Figure:
    """One panel, its benchmarks below each other, for the few rows of a short comparison on many benchmarks."""
    figure = new_figure(COLUMN, 0.8 + 0.2 * len(bars))
    ax = figure.subplots()
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for place, (row, label) in enumerate(shown.items()):
        shift = (place - (len(shown) - 1) / 2) * 0.24
        for height, by_row in enumerate(bars.values()):
            if row in by_row:
                _draw(ax, by_row[row], height + shift, look[row])
        ax.plot([], [], **look[row].points(label=label))
    ax.set_yticks(range(len(bars)), [titles[name] for name in bars])
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_xlabel(f"points over {baseline}")
    ax.grid(visible=True, axis="x")
    name_below(figure, ax, most=3)
    return figure


def _draw(ax: Axes, difference: Estimate, height: float, look: Look) -> None:
    if interval := difference.interval():
        ax.plot([interval.low, interval.high], [height, height], color=look.colour, linewidth=1.3, zorder=2)
    ax.plot([difference.mean], [height], **look.points(zorder=3))


def _overall(differences: Mapping[str, Mapping[Row, Difference]]) -> dict[Row, Estimate]:
    """Rows with a difference on every benchmark: t interval over the benchmarks' means, which speaks of other benchmarks."""
    first, *others = differences.values()
    rows = [row for row in first if all(row in by_row for by_row in others)]
    return {row: of_seeds([by_row[row].mean for by_row in differences.values()]) for row in rows}


def _caption(material: Material, over: str, *, overall: bool) -> str:
    across = (
        " Mean of benchmarks: rows that ran on all of them, bars are a 95 % t interval over benchmarks."
        if overall
        else ""
    )
    return (
        f"Difference to {material.baseline.label} in points, paired by seed and image, positive is better. Bars: 95 %"
        f" intervals over {over} (t over seeds alone where a score is no mean over images); no bar"
        f" where n is too small for one.{across} {material.caption}"
    )


LINE = 0.13
"""Inches of a line of choices."""


def readings(material: Material) -> list[Drawing]:
    """Specification curve (Simonsohn, Simmons and Nelson, 2020): every reading's difference, sorted, above its choices."""
    study = material.study
    if study is None or study.readings is None:
        raise NothingToDrawError("it shows the readings of a study that has some: --study NAME")
    curve = specification_curve(material.grid, study, baseline=material.baseline.label)
    if not curve:
        raise NothingToDrawError(f"no reading has a seed in common with {material.baseline.label}")
    lines = sum(len(field.levels) for field in study.readings.fields)
    figure = new_figure(PAGE, 2.4 + LINE * lines)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.9, LINE * lines])
    _differences(top, curve, title_of=material.grid.title_of)
    top.set_ylabel(f"points over {material.short(material.baseline)}")
    _choices(bottom, curve, study.readings)
    name_below(figure, top, most=5)
    caption = (
        f"Every reading of {study.readings.method}: its difference to {material.baseline.label}, sorted by the mean over benchmarks, above"
        f" what it chooses (grey: the default). {len(curve)} of {len(study.readings.points)} readings have a run. Bars: 95 % over seeds"
        " and images, from two seeds on. A number at an edge belongs to a difference beyond it."
        f" {material.caption}"
    )
    return [Drawing(figure=figure, caption=caption)]


def _differences(ax: Axes, curve: Sequence[Specification], *, title_of: Callable[[str], str]) -> None:
    means = [difference.mean for specification in curve for difference in specification.differences.values()]
    low, high = limits(means, margin=0.08)
    benchmarks = list(dict.fromkeys(name for specification in curve for name in specification.differences))
    ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    for number, benchmark in enumerate(benchmarks):
        shift = 0.18 * (number - (len(benchmarks) - 1) / 2)
        colour, marker = benchmark_look(benchmark)
        ax.plot([], [], marker, color=colour, label=title_of(benchmark))
        for place, specification in enumerate(curve):
            difference = specification.differences.get(benchmark)
            if difference is None:
                continue
            at = place + shift
            if difference.interval is not None:
                ax.plot([at, at], [difference.interval.low, difference.interval.high], color=colour, linewidth=0.8)
            edge = min(max(difference.mean, low), high)
            ax.plot([at], [edge], marker, color=colour, clip_on=False)
            if edge != difference.mean:
                ax.annotate(
                    f"{difference.mean:.0f}", (at, edge), xytext=(3, 2), textcoords="offset points", fontsize=5.5
                )
    ax.set_ylim(low, high)
    ax.grid(visible=True, axis="y")


def _choices(ax: Axes, curve: Sequence[Specification], design: Readings) -> None:
    lines = [(field.name, level) for field in design.fields for level in range(len(field.levels))]
    for place, specification in enumerate(curve):
        for field, level in zip(design.fields, specification.point.levels, strict=True):
            colour = GREY if level == 0 else "black"
            ax.plot([place], [lines.index((field.name, level))], "s", color=colour, markersize=3)
    said = [
        f"{field.name}: {choice(level, field.levels) if level else f'{level_in_words(field.levels[0])} (default)'}"
        for field in design.fields
        for level in range(len(field.levels))
    ]
    ax.set_yticks(range(len(lines)), said)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks([])
