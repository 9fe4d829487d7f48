"""How far attention reaches by block: the frozen backbone against uniform attention, and what training changes."""

from __future__ import annotations

from harness.comparison import names
from harness.comparison.evidence import distance_change
from harness.report.figures.insides import RowEvidence, block_axis, measured, name_rows, plot_by_block, said, zero
from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import GREY, PAGE, new_figure


def draw(material: Material) -> list[Drawing]:
    return [_benchmark(material, benchmark, mine) for benchmark, mine in measured(material).items()]


def _benchmark(material: Material, benchmark: str, mine: list[RowEvidence]) -> Drawing:
    figure = new_figure(PAGE, 2.3)
    left, right = figure.subplots(1, 2)
    blocks = mine[0].records[0].blocks
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
    plot_by_block(right, mine, distance_change)
    zero(right)
    right.set_ylabel("trained − frozen (px)")
    right.set_title(names.benchmark_title(benchmark), loc="left")
    name_rows(right, mine)
    caption = (
        f"Mean attention distance on {names.benchmark_title(benchmark)}, in pixels of the network's input. Left: the frozen"
        " backbone of the first run, heads as dots, their mean in black, red: uniform attention over the same tokens. Right:"
        f" trained minus frozen, mean over heads. {said(mine)} {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
