"""Where a merge changes what a model computes: deviation of every block's output."""

from __future__ import annotations

import statistics

from harness.comparison import names
from harness.report.figures.insides import RowEvidence, block_axis, measured, power, said
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.merging import MODES
from harness.report.figures.style import PAGE, new_figure

SMALLEST = 1e-8
"""Where exactly nothing is drawn."""


def draw(material: Material) -> list[Drawing]:
    merged = {
        benchmark: [one for one in mine if any(each.merge for each in one.records)]
        for benchmark, mine in measured(material).items()
    }
    drawings = [_benchmark(material, benchmark, mine) for benchmark, mine in merged.items() if mine]
    if not drawings:
        raise NothingToDrawError("no evidence of a merge (sam-peft evidence --run KEY --merge MODE measures it)")
    return drawings


def _benchmark(material: Material, benchmark: str, mine: list[RowEvidence]) -> Drawing:
    from matplotlib.ticker import NullFormatter

    figure = new_figure(PAGE, 2.3)
    ax = figure.subplots()
    for one in mine:
        for mode in (mode for mode in MODES if any(mode in each.merge for each in one.records)):
            lines = [each.merge[mode] for each in one.records if mode in each.merge]
            means = [max(statistics.fmean(values), SMALLEST) for values in zip(*lines, strict=True)]
            style = {**one.look.line(linewidth=0.9), "marker": MODES[mode]}
            ax.plot(range(len(means)), means, **style, label=f"{one.row.label}, {mode}")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(power)
    ax.yaxis.set_minor_formatter(NullFormatter())
    block_axis(ax)
    ax.set_ylabel("‖merged − unmerged‖ / ‖unmerged‖")
    ax.grid(visible=True, axis="y")
    ax.set_title(names.benchmark_title(benchmark), loc="left")
    figure.legend(loc="outside right upper")
    caption = (
        f"Deviation of every block's output when a method is merged, on {names.benchmark_title(benchmark)}, mean over seeds; that of"
        f" earlier blocks is in it. The figure merging shows the scores. {said(mine)} {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
