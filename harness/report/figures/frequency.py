"""Which frequencies features hold by depth, and what training changes of them."""

from __future__ import annotations

import statistics

from harness.comparison import names
from harness.comparison.evidence import frequency_change
from harness.report.figures.insides import RowEvidence, measured, name_rows, plot_by_block, said, zero
from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import PAGE, new_figure


def draw(material: Material) -> list[Drawing]:
    return [_benchmark(material, benchmark, mine) for benchmark, mine in measured(material).items()]


def _benchmark(material: Material, benchmark: str, mine: list[RowEvidence]) -> Drawing:
    from matplotlib import colormaps

    figure = new_figure(PAGE, 2.3)
    left, middle, right = figure.subplots(1, 3)
    record = mine[0].records[0]
    depth, side = len(record.blocks), record.grid[0]
    at = [2 * place / side for place in range(len(record.blocks[0].frozen.after_mlp))]
    for place, block in enumerate(record.blocks):
        shade = colormaps["viridis"](0.9 * place / max(depth - 1, 1))
        left.plot(at, block.frozen.after_mlp, color=shade, linewidth=0.8)
        if place in (0, depth - 1):
            left.annotate(
                str(place),
                (at[-1], block.frozen.after_mlp[-1]),
                fontsize=5.5,
                xytext=(2, -2),
                textcoords="offset points",
            )
    left.set_title("frozen, by block", loc="left")
    left.set_ylabel("Δ log amplitude")
    for one in mine:
        curves = [
            [now - then for now, then in zip(last.trained.after_mlp, last.frozen.after_mlp, strict=True)]
            for last in (each.blocks[-1] for each in one.records)
        ]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        middle.plot(at, means, **one.look.line(linewidth=0.9, markersize=2.5))
    middle.set_title("last block, trained − frozen", loc="left")
    for ax in (left, middle):
        ax.set_xlabel("frequency (π)")
        ax.grid(visible=True, axis="y")
    plot_by_block(right, mine, frequency_change)
    right.set_title("highest frequency, trained − frozen", loc="left")
    for ax in (middle, right):
        zero(ax)
    name_rows(right, mine)
    caption = (
        f"Log amplitude of the features' spectrum on {names.benchmark_title(benchmark)}, along the diagonal, relative to frequency"
        " 0, behind each block. Left: the frozen backbone of the first run, from the first block (dark) to the last (light)."
        f" Middle: what training changes behind the last block. Right: the same of the highest frequency, by block. {said(mine)}"
        f" {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
