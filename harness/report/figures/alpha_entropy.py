"""How decided α is: its normalised entropy over epochs, 1 where it is uniform."""

from __future__ import annotations

import statistics

from harness.comparison import names
from harness.comparison.alpha import alpha_code, entropy
from harness.report.figures.material import Drawing, Material
from harness.report.figures.mixtures import mixtures
from harness.report.figures.style import COLUMN, looks, name_below, new_figure

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (6, 2, 1, 2, 1, 2)))
"""A dash a benchmark; the colour is the method's."""


def draw(material: Material) -> list[Drawing]:
    from matplotlib.ticker import MaxNLocator

    found = mixtures(material)
    figure = new_figure(COLUMN, 2.2)
    ax = figure.subplots()
    look = looks(material.grid.rows)
    codes = []
    for mixture in found:
        dash = DASHES[material.benchmarks.index(mixture.benchmark) % len(DASHES)]
        mine = look[mixture.row.label]
        lines = [[entropy(epoch) for epoch in run.architecture if epoch] for run in mixture.runs]
        for line in lines if len(lines) > 1 else ():
            ax.plot(range(1, len(line) + 1), line, color=mine.colour, linewidth=0.5, alpha=0.5)
        length = min(map(len, lines))
        mean = [statistics.fmean(line[epoch] for line in lines) for epoch in range(length)]
        label = f"{mixture.shown}, {names.benchmark_title(mixture.benchmark)}"
        ax.plot(
            range(1, length + 1), mean,
            **{**mine.line(), "linestyle": dash, "markersize": 3.5, "markevery": max(1, length // 8), "label": label},
        )  # fmt: skip
        codes += [alpha_code(run, run.architecture[-1]) for run in mixture.runs]
    ax.axhline(1.0, color="#8a8a8a", linewidth=0.7, zorder=0)
    ax.set_ylabel("entropy of softmax(α) / log n")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.ticklabel_format(axis="y", useOffset=False)
    if ax.get_ylim()[0] > 0.99:
        ax.set_ylim(0.99, 1.0005)  # noise of the start is not worth a whole axis
    name_below(figure, ax, most=2)
    flagged = {code: codes.count(code) for code in dict.fromkeys(codes) if code}
    said = "; ".join(f"{count} of {len(codes)} runs are {code}" for code, count in flagged.items())
    caption = (
        "Normalised entropy of softmax(α), mean over sites: 1 is uniform, 0 one operation alone. Thin: one seed; thick: mean"
        f" over seeds.{' ' + said + '.' if said else ''} {material.caption}"
    )
    return [Drawing(part="", figure=figure, caption=caption)]
