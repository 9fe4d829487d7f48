"""How large the update is and where: blocks by sites, a panel a row."""

from __future__ import annotations

import statistics

from harness.comparison import names
from harness.report.figures.insides import RowEvidence, measured, power, said
from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import PAGE, panels

SITES = ("q", "k", "v", "proj", "mlp_in", "mlp_out", "block")
SMALLEST, LARGEST = 1e-3, 1.0
"""The scale's ends, whatever the data, so that figures compare."""


def draw(material: Material) -> list[Drawing]:
    return [_benchmark(material, benchmark, mine) for benchmark, mine in measured(material).items()]


def _benchmark(material: Material, benchmark: str, mine: list[RowEvidence]) -> Drawing:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    norm = LogNorm(SMALLEST, LARGEST)
    depth = max(len(one.records[0].blocks) for one in mine)
    figure, axes = panels(len(mine), columns=min(5, len(mine)), width=PAGE, height=1.0 + 0.12 * depth)
    for place, (ax, one) in enumerate(zip(axes, mine, strict=True)):
        table = [
            [
                max(statistics.fmean(each.blocks[block].update.get(site, 0.0) for each in one.records), SMALLEST / 10)
                for site in SITES
            ]
            for block in range(len(one.records[0].blocks))
        ]
        ax.pcolormesh(table, cmap="magma_r", norm=norm, edgecolors="white", linewidth=0.3)
        ax.set_ylim(len(table), 0)
        ax.set_xticks([at + 0.5 for at in range(len(SITES))], SITES, rotation=90)
        step = max(1, -(-len(table) // 16))
        ax.set_yticks([at + 0.5 for at in range(0, len(table), step)], [str(at) for at in range(0, len(table), step)])
        ax.tick_params(length=0)
        ax.set_title(material.short(one.row.label, most=20), loc="left")
        if place == 0:
            ax.set_ylabel("block")
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap="magma_r"), ax=axes, shrink=0.8, aspect=30, pad=0.02, extend="both"
    )
    bar.ax.yaxis.set_major_formatter(power)
    bar.set_label("‖f − f₀‖ / ‖f₀‖")
    caption = (
        f"Size of the update on {names.benchmark_title(benchmark)}: ‖f(x) − f₀(x)‖ / ‖f₀(x)‖ over the tokens x that reach a site of"
        " the trained model, f₀ the frozen backbone's; block: what the whole block adds to its input. Mean over seeds. The scale is"
        f" fixed from {SMALLEST:g} to {LARGEST:g}; palest: less, or nothing. {said(mine)} {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
