"""Specification curve (Simonsohn, Simmons and Nelson, 2020): every reading's difference, sorted, above its choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.comparison import names
from harness.comparison.readings import Specification, specification_curve
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import GREY, PAGE, benchmark_look, name_below, new_figure
from harness.report.readings import choice, level_in_words
from harness.studies import Readings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.13
"""Inches of a line of choices."""


def draw(material: Material) -> list[Drawing]:
    study = material.study
    if study is None or study.readings is None:
        raise NothingToDrawError("it shows the readings of a study that has some: --study NAME")
    found = specification_curve(material.grid, study, material.images_of, baseline=material.baseline)
    if not found:
        raise NothingToDrawError(f"no reading has a seed in common with {material.baseline}")
    lines = sum(len(field.levels) for field in study.readings.fields)
    figure = new_figure(PAGE, 2.4 + LINE * lines)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.9, LINE * lines])
    _differences(top, found)
    top.set_ylabel(f"points over {material.short(material.baseline)}")
    _choices(bottom, found, study.readings)
    name_below(figure, top, most=5)
    caption = (
        f"Every reading of {study.readings.method}: its difference to {material.baseline}, sorted by the mean over benchmarks, above"
        f" what it chooses (grey: the default). {len(found)} of {len(study.readings.points)} readings have a run. Bars: 95 % over seeds"
        " and images, from two seeds on. A number at an edge belongs to a difference beyond it."
        f" {material.caption}"
    )
    return [Drawing(part="", figure=figure, caption=caption)]


def _differences(ax: Axes, found: Sequence[Specification]) -> None:
    low, high = _limits([one.mean for spec in found for one in spec.differences.values()])
    benchmarks = list(dict.fromkeys(name for one in found for name in one.differences))
    ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    for number, benchmark in enumerate(benchmarks):
        shift = 0.18 * (number - (len(benchmarks) - 1) / 2)
        colour, marker = benchmark_look(benchmark)
        ax.plot([], [], marker, color=colour, label=names.benchmark_title(benchmark))
        for place, one in enumerate(found):
            difference = one.differences.get(benchmark)
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


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Of the axis: a reading that lost its features must not flatten the rest (Tukey's far fence)."""
    first, third = np.percentile(values, [25, 75])
    fence = 3 * (third - first)
    kept = [value for value in values if first - fence <= value <= third + fence]
    margin = 0.08 * (max(kept) - min(kept)) or 1.0
    return min(kept) - margin, max(kept) + margin


def _choices(ax: Axes, found: Sequence[Specification], readings: Readings) -> None:
    lines = [(field.name, level) for field in readings.fields for level in range(len(field.levels))]
    for place, one in enumerate(found):
        for field, level in zip(readings.fields, one.point.levels, strict=True):
            colour = GREY if level == 0 else "black"
            ax.plot([place], [lines.index((field.name, level))], "s", color=colour, markersize=3)
    said = [
        f"{field.name}: {choice(level, field.levels) if level else f'{level_in_words(field.levels[0])} (default)'}"
        for field in readings.fields
        for level in range(len(field.levels))
    ]
    ax.set_yticks(range(len(lines)), said)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xticks([])
