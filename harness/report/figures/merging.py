"""Merged models: how far their logits and scores are from the unmerged ones, and in which blocks they deviate."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from harness.comparison.cells import Cell, Column, Difference, paired_difference
from harness.comparison.rows import Row, grouped
from harness.report.figures.insides import RowEvidence, block_axis, measured, power, said
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
    column: Column
    mode: str
    deviations: list[float]
    difference: Difference | None
    folded: int
    left: int


def merging(material: Material) -> list[Drawing]:
    """What merging costs: how far the merged model's logits are from the unmerged one's, and how its score moves."""
    every = merged(material)
    if not every:
        raise NothingToDrawError("no run was merged (the protocol's `merge` names the modes)")
    by_column = grouped(every, lambda row: row.column)
    return [_merged_on(material, column, rows) for column, rows in by_column.items()]


def merged(material: Material) -> list[Merged]:
    """Every row, benchmark and mode that a finished run was merged by."""
    grid, every = material.grid, []
    for row in material.rows():
        for benchmark, column in grid.first_columns.items():
            runs = row.finished(benchmark)
            for mode in (mode for mode in MODES if any(mode in run.merge for run in runs)):
                reports = [run.merge[mode] for run in runs if mode in run.merge]
                cells = [Cell.of(replace(row, score=score), column, grid.seeds) for score in (f"merged-{mode}", "best")]
                deviations = [report.get("relative_deviation") for report in reports]
                every.append(
                    Merged(
                        row=row,
                        column=column,
                        mode=mode,
                        deviations=[value for value in deviations if value is not None],
                        difference=paired_difference(cells[0], cells[1], grid.archive),
                        folded=len(reports[0].get("folded", ())),
                        left=len(reports[0].get("left", ())),
                    )
                )
    return every


def _merged_on(material: Material, column: Column, rows: list[Merged]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = new_figure(PAGE, 0.75 + 0.19 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    look = looks(material.grid.rows)
    for height, one in enumerate(rows):
        style = {**look[one.row].points(linestyle="none"), "marker": MODES[one.mode]}
        shown = [value for value in one.deviations if value > 0]
        left.plot(shown, [height] * len(shown), **{**style, "markersize": 2.5, "alpha": 0.6})
        if shown:
            left.plot([statistics.median(shown)], [height], **style)
        if one.difference is None:
            continue
        interval = one.difference.interval
        if interval is not None:
            right.plot([interval.low, interval.high], [height] * 2, color=look[one.row].colour, linewidth=1.3)
        right.plot([one.difference.mean], [height], **style)
    labels = [f"{material.short(row.row)}, {row.mode} ({row.folded}/{row.folded + row.left})" for row in rows]
    left.set_yticks(range(len(rows)), labels)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xscale("log")
    lowest, highest = left.get_xlim()
    if math.floor(math.log10(highest)) - math.ceil(math.log10(lowest)) < 1:  # else a decade or none would have a number
        left.set_xlim(10 ** math.floor(math.log10(lowest)), 10 ** math.ceil(math.log10(highest)))
    left.xaxis.set_major_formatter(FuncFormatter(power))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("relative deviation of the logits")
    right.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    right.set_xlabel(f"merged − unmerged, {column.measure.title} (points)")
    title = column.benchmark_title
    left.set_title(title, loc="left")
    for ax in (left, right):
        ax.grid(visible=True, axis="x")
    caption = (
        f"Merging on {title}: left, ‖merged − unmerged‖ / ‖unmerged‖ of the mask logits on"
        " validation images (small symbols: seeds, large: their median; no symbol: exactly 0); right, merged minus unmerged"
        " score, bars: 95 % intervals over seeds and images, crossed. In brackets: sites folded into the weights of all"
        f" sites. {material.caption}"
    )
    return Drawing(part=column.benchmark, benchmark=column.benchmark, figure=figure, caption=caption)


SMALLEST = 1e-8
"""Where exactly nothing is drawn."""


def merging_blocks(material: Material) -> list[Drawing]:
    """Where a merge changes what a model computes: deviation of every block's output."""
    with_merge = {
        benchmark: [row for row in rows if any(record.merge for record in row.records)]
        for benchmark, rows in measured(material).items()
    }
    drawings = [_by_block(material, benchmark, rows) for benchmark, rows in with_merge.items() if rows]
    if not drawings:
        raise NothingToDrawError("no evidence of a merge (sam-peft evidence --run KEY --merge MODE measures it)")
    return drawings


def _by_block(material: Material, benchmark: str, rows: list[RowEvidence]) -> Drawing:
    from matplotlib.ticker import NullFormatter

    figure = new_figure(PAGE, 2.3)
    ax = figure.subplots()
    for row in rows:
        for mode in (mode for mode in MODES if any(mode in each.merge for each in row.records)):
            lines = [each.merge[mode] for each in row.records if mode in each.merge]
            means = [max(statistics.fmean(values), SMALLEST) for values in zip(*lines, strict=True)]
            style = {**row.look.line(linewidth=0.9), "marker": MODES[mode]}
            ax.plot(range(len(means)), means, **style, label=f"{row.row.label}, {mode}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(power)
    ax.yaxis.set_minor_formatter(NullFormatter())
    block_axis(ax)
    ax.set_ylabel("‖merged − unmerged‖ / ‖unmerged‖")
    ax.grid(visible=True, axis="y")
    ax.set_title(material.grid.title_of(benchmark), loc="left")
    figure.legend(loc="outside right upper")
    caption = (
        f"Deviation of every block's output when a method is merged, on {material.grid.title_of(benchmark)}, mean over seeds; that of"
        f" earlier blocks is in it. The figure merging shows the scores. {said(rows)} {material.caption}"
    )
    return Drawing(part=benchmark, benchmark=benchmark, figure=figure, caption=caption)
