"""What merging costs: how far the merged model's logits are from the unmerged one's, and how its score moves."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from harness.comparison import names
from harness.comparison.grid import Row, cell_of
from harness.comparison.paired import Difference, paired_difference
from harness.report.figures.insides import power
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import GREY, PAGE, looks, new_figure

MODES = {"exact": "o", "calibrated": "s", "conv": "^"}
"""Merge mode -> marker; the colour is the method's."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """One row merged one way on one benchmark.

    Args:
        deviations: relative, ‖merged − unmerged‖ / ‖unmerged‖ of the mask logits, one a seed.
        difference: of the scores, merged minus unmerged; None where they were not both tested.
        folded, left: sites whose adapter went into the weights, and those that keep one.
    """

    row: Row
    benchmark: str
    mode: str
    deviations: list[float]
    difference: Difference | None
    folded: int
    left: int


def draw(material: Material) -> list[Drawing]:
    found = merged(material)
    if not found:
        raise NothingToDrawError("no run was merged (the protocol's `merge` names the modes)")
    drawings = []
    for benchmark in dict.fromkeys(one.benchmark for one in found):
        mine = [one for one in found if one.benchmark == benchmark]
        drawings.append(_benchmark(material, benchmark, mine))
    return drawings


def merged(material: Material) -> list[Merged]:
    """Every row, benchmark and mode that a finished run was merged by."""
    grid, columns = material.grid, material.first_columns()
    found = []
    for index, row in material.rows():
        for benchmark, place in columns.items():
            runs = material.members(index, benchmark)
            for mode in (mode for mode in MODES if any(mode in one.merge for one in runs)):
                reports = [one.merge[mode] for one in runs if mode in one.merge]
                column = grid.columns[place]
                cells = [
                    cell_of(column, score, grid.members[index], grid.seeds) for score in (f"merged-{mode}", "best")
                ]
                difference = paired_difference(
                    cells[0], cells[1], column, scored=(f"merged-{mode}", "best"), images_of=material.images_of
                )
                deviations = [one["relative_deviation"] for one in reports if one.get("relative_deviation") is not None]
                found.append(
                    Merged(
                        row=row,
                        benchmark=benchmark,
                        mode=mode,
                        deviations=deviations,
                        difference=difference,
                        folded=len(reports[0].get("folded", ())),
                        left=len(reports[0].get("left", ())),
                    )
                )
    return found


def _benchmark(material: Material, benchmark: str, mine: list[Merged]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = new_figure(PAGE, 0.75 + 0.19 * len(mine))
    left, right = figure.subplots(1, 2, sharey=True)
    look = looks(material.grid.rows)
    for height, one in enumerate(mine):
        style = {**look[one.row.label].points(linestyle="none"), "marker": MODES[one.mode]}
        shown = [value for value in one.deviations if value > 0]
        left.plot(shown, [height] * len(shown), **{**style, "markersize": 2.5, "alpha": 0.6})
        if shown:
            left.plot([statistics.median(shown)], [height], **style)
        if one.difference is None:
            continue
        interval = one.difference.interval
        if interval is not None:
            right.plot([interval.low, interval.high], [height] * 2, color=look[one.row.label].colour, linewidth=1.3)
        right.plot([one.difference.mean], [height], **style)
    labels = [f"{material.short(one.row.label)}, {one.mode} ({one.folded}/{one.folded + one.left})" for one in mine]
    left.set_yticks(range(len(mine)), labels)
    left.set_ylim(len(mine) - 0.4, -0.6)
    left.set_xscale("log")
    lowest, highest = left.get_xlim()
    if math.floor(math.log10(highest)) - math.ceil(math.log10(lowest)) < 1:  # else a decade or none would have a number
        left.set_xlim(10 ** math.floor(math.log10(lowest)), 10 ** math.ceil(math.log10(highest)))
    left.xaxis.set_major_formatter(FuncFormatter(power))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("relative deviation of the logits")
    right.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    column = material.grid.columns[material.first_columns()[benchmark]]
    right.set_xlabel(f"merged − unmerged, {names.metric(column.metric).title} (points)")
    left.set_title(names.benchmark_title(benchmark), loc="left")
    for ax in (left, right):
        ax.grid(visible=True, axis="x")
    caption = (
        "Merging on "
        + names.benchmark_title(benchmark)
        + ": left, ‖merged − unmerged‖ / ‖unmerged‖ of the mask logits on"
        " validation images (small symbols: seeds, large: their median; no symbol: exactly 0); right, merged minus unmerged"
        " score, bars: 95 % intervals over seeds and images, crossed. In brackets: sites folded into the weights of all"
        f" sites. {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
