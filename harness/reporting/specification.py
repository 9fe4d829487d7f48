"""The specification curve as a figure: every reading's difference with its interval, sorted, and its choices below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.comparison import names
from harness.comparison.readings import Specification
from harness.errors import UsageError
from harness.reporting.readings import choice
from harness.studies import Readings

GREY = "0.55"


def draw_specification(
    found: Sequence[Specification], readings: Readings, path: Path, *, baseline: str, caption: str
) -> None:
    """Write the figure of one sheet; the suffix of ``path`` chooses the format (pdf, svg, png).

    Raises:
        UsageError: nothing to draw, or a format that matplotlib does not write.
    """
    if not found:
        raise UsageError(f"no reading has a seed in common with {baseline}, so there is no curve to draw yet")
    from matplotlib.figure import Figure

    values = [
        (field.name, words)
        for field in readings.fields
        for words in (choice(n, field.levels) for n in range(len(field.levels)))
    ]
    benchmarks = list(dict.fromkeys(name for one in found for name in one.differences))
    figure = Figure(figsize=(7.0, 2.2 + 0.14 * len(values)), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, 0.14 * len(values)])
    top.axhline(0, color=GREY, linewidth=0.7)
    for number, benchmark in enumerate(benchmarks):
        offset = 0.18 * (number - (len(benchmarks) - 1) / 2)
        for place, one in enumerate(found):
            difference = one.differences.get(benchmark)
            if difference is None:
                continue
            if difference.interval is not None:
                ends = [difference.interval.low, difference.interval.high]
                top.plot([place + offset] * 2, ends, color=f"C{number}", linewidth=0.8)
            label = names.benchmark_title(benchmark) if place == 0 else None
            top.plot(place + offset, difference.mean, "o", color=f"C{number}", markersize=3, label=label)
    top.set_ylabel(f"difference to {baseline} (points)", fontsize=7)
    top.legend(fontsize=6, frameon=False)
    for place, one in enumerate(found):
        for field, level in zip(readings.fields, one.point.levels, strict=True):
            row = values.index((field.name, choice(level, field.levels)))
            bottom.plot(place, row, "s", color=GREY if level == 0 else "black", markersize=3)
    bottom.set_yticks(range(len(values)), [f"{name}: {'default' if words == '·' else words}" for name, words in values])
    bottom.set_xticks([])
    bottom.invert_yaxis()
    for axes in (top, bottom):
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    bottom.set_xlabel(caption, fontsize=6)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot write the figure {path}: {error}") from error
