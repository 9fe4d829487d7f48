"""How alike features are: each trained model to its frozen backbone by block, and the rows to one another."""

from __future__ import annotations

import itertools
import statistics

from harness.comparison import names
from harness.comparison.evidence import cka_to_frozen
from harness.report.figures.insides import RowEvidence, measured, name_rows, plot_by_block, said
from harness.report.figures.material import Drawing, Material
from harness.report.figures.style import PAGE, new_figure
from harness.statistics.cka import cka


def draw(material: Material) -> list[Drawing]:
    return [_benchmark(material, benchmark, mine) for benchmark, mine in measured(material).items()]


def between(first: RowEvidence, second: RowEvidence) -> float | None:
    """CKA of the last blocks' outputs: of two rows the mean over common seeds, of a row with itself over pairs of seeds."""
    if first is second:
        pairs = list(itertools.combinations(first.records, 2))
    else:
        seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
        pairs = [(first.by_seed[seed], second.by_seed[seed]) for seed in seeds]
    values = [cka(one.blocks[-1].trained.grams, other.blocks[-1].trained.grams) for one, other in pairs]
    return statistics.fmean(values) if values else None


def _benchmark(material: Material, benchmark: str, mine: list[RowEvidence]) -> Drawing:
    figure = new_figure(PAGE, 2.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_by_block(left, mine, cka_to_frozen)
    left.set_ylim(top=1.02)
    left.set_ylabel("CKA to the frozen block")
    left.set_title(names.benchmark_title(benchmark), loc="left")
    name_rows(left, mine)
    table = [[between(one, other) for other in mine] for one in mine]
    shown = [[float("nan") if value is None else value for value in line] for line in table]
    picture = right.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    for row, column in itertools.product(range(len(mine)), repeat=2):
        value = table[row][column]
        said_here = "–" if value is None else f"{value:.2f}"
        light = value is not None and value > 0.6
        right.text(
            column,
            row,
            said_here,
            ha="center",
            va="center",
            fontsize=6,
            color="black" if light or value is None else "white",
        )
    labels = [material.short(one.row.label, most=18) for one in mine]
    right.set_xticks(range(len(mine)), labels, rotation=90)
    right.set_yticks(range(len(mine)), labels)
    right.tick_params(length=0)
    right.set_title("last block, between rows", loc="left")
    figure.colorbar(picture, ax=right, shrink=0.8)
    caption = (
        f"Centred kernel alignment (linear, unbiased, {mine[0].records[0].batch} images a minibatch) on"
        f" {names.benchmark_title(benchmark)}. Left: each block's output to the frozen backbone's. Right: outputs of the last block"
        " between rows at the same seed; on the diagonal between the seeds of a row (–: one seed)."
        f" {said(mine)} {material.caption}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)
