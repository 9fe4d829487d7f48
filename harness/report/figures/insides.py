"""What models do inside, from evidence: attention distance, frequencies, likeness of features, size of the update.
Of merged models, how far their logits and scores are from the unmerged ones, and in which blocks they deviate.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from harness.archive.measured import BlockEvidence, EvidenceRecord
from harness.comparison.cells import Cell, Column, Difference, paired_difference, spread_over
from harness.comparison.evidence import cka_to_frozen, comparable, distance_change, frequency_change
from harness.comparison.rows import Row, grouped
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import GREY, PAGE, Look, looks, new_figure, panels
from harness.statistics.cka import cka as alike


@dataclass(frozen=True, kw_only=True)
class RowEvidence:
    """One row's evidence on one benchmark, by seed; ``shown`` is its label where room is short."""

    row: Row
    shown: str
    look: Look
    by_seed: dict[int, EvidenceRecord]

    @property
    def records(self) -> list[EvidenceRecord]:
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]

    def by_block(self, number: Callable[[BlockEvidence], float]) -> list[list[float]]:
        """One list a block, one number a seed."""
        return [
            [number(record.blocks[place]) for record in self.records] for place in range(len(self.records[0].blocks))
        ]


def measured(material: Material) -> dict[str, list[RowEvidence]]:
    """benchmark -> the rows whose evidence is of the same images. Raises NothingToDrawError: no run here has evidence."""
    look = looks(material.grid.rows)
    by_benchmark: dict[str, list[RowEvidence]] = {}
    for benchmark in material.grid.benchmarks:
        first: EvidenceRecord | None = None
        for row in material.rows():
            told = {run.run.seed: material.archive.evidence(run) for run in row.finished(benchmark)}
            there = {
                seed: evidence
                for seed, evidence in told.items()
                if evidence is not None and comparable([first or evidence, evidence])
            }
            if there:
                first = first or next(iter(there.values()))
                of_row = RowEvidence(row=row, shown=material.short(row), look=look[row], by_seed=there)
                by_benchmark.setdefault(benchmark, []).append(of_row)
    if not by_benchmark:
        raise NothingToDrawError("no run has evidence (sam-peft evidence --run KEY measures it)")
    return by_benchmark


def each_benchmark(
    draw: Callable[[Material, str, list[RowEvidence]], Drawing],
) -> Callable[[Material], list[Drawing]]:
    """A figure of evidence: what draws it on one benchmark, for all of them."""

    def drawings(material: Material) -> list[Drawing]:
        on = measured(material)
        return [replace(draw(material, name, on[name]), part=name, benchmark=name) for name in on]

    return drawings


def plot_by_block(ax: Axes, rows: Sequence[RowEvidence], number: Callable[[BlockEvidence], float]) -> None:
    """A line a row, the mean over seeds, with a dash a seed; windowed blocks have small symbols."""
    for row in rows:
        values = row.by_block(number)
        means = [statistics.fmean(each) for each in values]
        style = row.look.line(linewidth=0.9)
        ax.plot(range(len(means)), means, **{**style, "marker": ""})
        for place, (mean, each) in enumerate(zip(means, values, strict=True)):
            size = 2.2 if row.records[0].blocks[place].window else 4.0
            ax.plot([place], [mean], **row.look.line(linestyle="none", markersize=size))
            if len(each) > 1:
                ax.plot([place] * len(each), each, linestyle="none", marker="_", color=row.look.colour, markersize=4)
    block_axis(ax)
    ax.grid(visible=True, axis="y")


def block_axis(ax: Axes) -> None:
    """Blocks are whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block")


def power(value: float, _: Any = None) -> str:
    """A tick of a logarithmic axis as text: labels are never formulas here."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+00", "").replace("-", "−")


def name_rows(ax: Axes, rows: Sequence[RowEvidence]) -> None:
    """A legend of the rows."""
    for row in rows:
        ax.plot([], [], **row.look.line(linewidth=0.9), label=row.shown)
    ax.legend(loc="best", handlelength=2.2)


def zero(ax: Axes) -> None:
    """The frozen backbone's level."""
    ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)


def said(rows: Sequence[RowEvidence]) -> str:
    """Images, seeds, and what symbols are."""
    record = rows[0].records[0]
    seeds = "; ".join(f"{row.row.label}: {len(row.by_seed)}" for row in rows)
    windows = " Small symbols: windowed blocks, large: global." if any(block.window for block in record.blocks) else ""
    return (
        f"{len(record.images)} test images; seeds measured: {seeds}. Symbols: mean over seeds, dashes: seeds.{windows}"
    )


@each_benchmark
def attention_distance(material: Material, benchmark: str, rows: list[RowEvidence]) -> Drawing:
    """How far attention reaches by block: the frozen backbone against uniform attention, and what training changes."""
    figure = new_figure(PAGE, 2.3)
    left, right = figure.subplots(1, 2)
    blocks = rows[0].records[0].blocks
    for place, block in enumerate(blocks):
        heads = block.frozen.distance_px
        left.plot([place] * len(heads), heads, linestyle="none", marker=".", color=GREY, markersize=3)
        left.plot([place - 0.35, place + 0.35], [block.uniform_px] * 2, color="#d62728", linewidth=0.9)
        left.plot(
            [place], [block.frozen.mean_distance], marker="s" if block.window else "o", color="#1b1b1b", markersize=3
        )
    left.set_ylim(bottom=0)
    block_axis(left)
    left.set_ylabel("attention distance (px)")
    left.set_title("frozen backbone", loc="left")
    plot_by_block(right, rows, distance_change)
    zero(right)
    right.set_ylabel("trained − frozen (px)")
    right.set_title(material.grid.title_of(benchmark), loc="left")
    name_rows(right, rows)
    caption = (
        f"Mean attention distance on {material.grid.title_of(benchmark)}, in pixels of the network's input. Left: the frozen"
        " backbone of the first run, heads as dots, their mean in black, red: uniform attention over the same tokens. Right:"
        f" trained minus frozen, mean over heads. {said(rows)} {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


@each_benchmark
def frequency(material: Material, benchmark: str, rows: list[RowEvidence]) -> Drawing:
    """Which frequencies features hold by depth, and what training changes of them."""
    figure = new_figure(PAGE, 2.3)
    left, middle, right = figure.subplots(1, 3)
    record = rows[0].records[0]
    depth, side = len(record.blocks), record.grid[0]
    at = [2 * place / side for place in range(len(record.blocks[0].frozen.after_mlp))]
    for place, block in enumerate(record.blocks):
        shade = colormaps["viridis"](0.9 * place / max(depth - 1, 1))
        left.plot(at, block.frozen.after_mlp, color=shade, linewidth=0.8)
        if place in (0, depth - 1):
            end = (at[-1], block.frozen.after_mlp[-1])
            left.annotate(str(place), end, fontsize=5.5, xytext=(2, -2), textcoords="offset points")
    left.set_title("frozen, by block", loc="left")
    left.set_ylabel("Δ log amplitude")
    for row in rows:
        curves = [
            [now - then for now, then in zip(last.trained.after_mlp, last.frozen.after_mlp, strict=True)]
            for last in (each.blocks[-1] for each in row.records)
        ]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        middle.plot(at, means, **row.look.line(linewidth=0.9, markersize=2.5))
    middle.set_title("last block, trained − frozen", loc="left")
    for ax in (left, middle):
        ax.set_xlabel("frequency (π)")
        ax.grid(visible=True, axis="y")
    plot_by_block(right, rows, frequency_change)
    right.set_title("highest frequency, trained − frozen", loc="left")
    for ax in (middle, right):
        zero(ax)
    name_rows(right, rows)
    caption = (
        f"Log amplitude of the features' spectrum on {material.grid.title_of(benchmark)}, along the diagonal, relative to frequency"
        " 0, behind each block. Left: the frozen backbone of the first run, from the first block (dark) to the last (light)."
        f" Middle: what training changes behind the last block. Right: the same of the highest frequency, by block. {said(rows)}"
        f" {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


def between(first: RowEvidence, second: RowEvidence) -> float | None:
    """CKA of the last blocks' outputs: of two rows the mean over common seeds, of a row with itself over pairs of seeds."""
    if first is second:
        pairs = list(itertools.combinations(first.records, 2))
    else:
        seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
        pairs = [(first.by_seed[seed], second.by_seed[seed]) for seed in seeds]
    values = [alike(ours.blocks[-1].trained.grams, other.blocks[-1].trained.grams) for ours, other in pairs]
    return statistics.fmean(values) if values else None


@each_benchmark
def cka(material: Material, benchmark: str, rows: list[RowEvidence]) -> Drawing:
    """How alike features are: each trained model to its frozen backbone by block, and the rows to one another."""
    figure = new_figure(PAGE, 2.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_by_block(left, rows, cka_to_frozen)
    left.set_ylim(top=1.02)
    left.set_ylabel("CKA to the frozen block")
    left.set_title(material.grid.title_of(benchmark), loc="left")
    name_rows(left, rows)
    table = [[between(row, other) for other in rows] for row in rows]
    shown = [[float("nan") if value is None else value for value in line] for line in table]
    picture = right.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    for row, column in itertools.product(range(len(rows)), repeat=2):
        value = table[row][column]
        said_here = "–" if value is None else f"{value:.2f}"
        light = value is not None and value > 0.6
        shade = "black" if light or value is None else "white"
        right.text(column, row, said_here, ha="center", va="center", fontsize=6, color=shade)
    labels = [material.short(row.row, most=18) for row in rows]
    right.set_xticks(range(len(rows)), labels, rotation=90)
    right.set_yticks(range(len(rows)), labels)
    right.tick_params(length=0)
    right.set_title("last block, between rows", loc="left")
    figure.colorbar(picture, ax=right, shrink=0.8)
    caption = (
        f"Centred kernel alignment (linear, unbiased, {rows[0].records[0].batch} images a minibatch) on"
        f" {material.grid.title_of(benchmark)}. Left: each block's output to the frozen backbone's. Right: outputs of the last block"
        " between rows at the same seed; on the diagonal between the seeds of a row (–: one seed)."
        f" {said(rows)} {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


SITES = ("q", "k", "v", "proj", "mlp_in", "mlp_out", "block")
SMALLEST, LARGEST = 1e-3, 1.0
"""The scale's ends, whatever the data, so that figures compare."""


@each_benchmark
def update(material: Material, benchmark: str, rows: list[RowEvidence]) -> Drawing:
    """How large the update is and where: blocks by sites, a panel a row."""
    norm = LogNorm(SMALLEST, LARGEST)
    depth = max(len(row.records[0].blocks) for row in rows)
    figure, axes = panels(len(rows), columns=min(5, len(rows)), width=PAGE, height=1.0 + 0.12 * depth)
    for place, (ax, of_row) in enumerate(zip(axes, rows, strict=True)):
        table = [
            [
                max(
                    statistics.fmean(each.blocks[block].update.get(site, 0.0) for each in of_row.records), SMALLEST / 10
                )
                for site in SITES
            ]
            for block in range(len(of_row.records[0].blocks))
        ]
        ax.pcolormesh(table, cmap="magma_r", norm=norm, edgecolors="white", linewidth=0.3)
        ax.set_ylim(len(table), 0)
        ax.set_xticks([at + 0.5 for at in range(len(SITES))], SITES, rotation=90)
        step = max(1, -(-len(table) // 16))
        ax.set_yticks([at + 0.5 for at in range(0, len(table), step)], [str(at) for at in range(0, len(table), step)])
        ax.tick_params(length=0)
        ax.set_title(material.short(of_row.row, most=20), loc="left")
        if place == 0:
            ax.set_ylabel("block")
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap="magma_r"), ax=axes, shrink=0.8, aspect=30, pad=0.02, extend="both"
    )
    bar.ax.yaxis.set_major_formatter(power)
    bar.set_label("‖f − f₀‖ / ‖f₀‖")
    caption = (
        f"Size of the update on {material.grid.title_of(benchmark)}: ‖f(x) − f₀(x)‖ / ‖f₀(x)‖ over the tokens x that reach a site of"
        " the trained model, f₀ the frozen backbone's; block: what the whole block adds to its input. Mean over seeds. The scale is"
        f" fixed from {SMALLEST:g} to {LARGEST:g}; palest: less, or nothing. {said(rows)} {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


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
    figure = new_figure(PAGE, 0.75 + 0.19 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    look = looks(material.grid.rows)
    for height, merged in enumerate(rows):
        style = {**look[merged.row].line(linestyle="none"), "marker": MODES[merged.mode]}
        shown = [value for value in merged.deviations if value > 0]
        left.plot(shown, [height] * len(shown), **{**style, "markersize": 2.5, "alpha": 0.6})
        if shown:
            left.plot([statistics.median(shown)], [height], **style)
        if merged.difference is None:
            continue
        interval = merged.difference.interval
        if interval is not None:
            right.plot([interval.low, interval.high], [height] * 2, color=look[merged.row].colour, linewidth=1.3)
        right.plot([merged.difference.mean], [height], **style)
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
    over = spread_over(merged.difference for merged in rows if merged.difference is not None)
    caption = (
        f"Merging on {title}: left, ‖merged − unmerged‖ / ‖unmerged‖ of the mask logits on"
        " validation images (small symbols: seeds, large: their median; no symbol: exactly 0); right, merged minus unmerged"
        f" score, bars: 95 % intervals over {over}. In brackets: sites folded into the weights of all"
        f" sites. {material.caption}"
    )
    return Drawing(part=column.benchmark, benchmark=column.benchmark, figure=figure, caption=caption)


NOTHING = 1e-8
"""Where a deviation of exactly nothing is drawn."""


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
    figure = new_figure(PAGE, 2.3)
    ax = figure.subplots()
    for row in rows:
        for mode in (mode for mode in MODES if any(mode in each.merge for each in row.records)):
            lines = [each.merge[mode] for each in row.records if mode in each.merge]
            means = [max(statistics.fmean(values), NOTHING) for values in zip(*lines, strict=True)]
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
