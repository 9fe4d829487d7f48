"""How softmax(α) moves: one line an operation, over epochs, mean over sites; seeds thin, their mean thick."""

from __future__ import annotations

import statistics

from harness.comparison.alpha import MEANINGS, search_start
from harness.report.figures.material import Drawing, Material
from harness.report.figures.mixtures import COLOURS, MARKERS, RowMixture, cap, heading, mean_shares, mixtures, title
from harness.report.figures.style import COLUMN, GREY, PAGE, panels, split_by_length

HEIGHT = 1.75
"""Inches of a row of panels."""


def draw(material: Material) -> list[Drawing]:
    several = list(split_by_length(mixtures(material), columns=3, height=lambda _: HEIGHT))
    return [
        _page(material, found, part=str(number) if len(several) > 1 else "")
        for number, found in enumerate(several, start=1)
    ]


def _page(material: Material, found: list[RowMixture], *, part: str) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    single = len(found) == 1
    figure, axes = panels(len(found), columns=3, width=COLUMN if single else PAGE, height=2.0 if single else HEIGHT)
    for ax, mixture in zip(axes, found, strict=True):
        uniform, limit = 1 / mixture.n, cap(mixture.runs)
        ax.axhline(uniform, color=GREY, linewidth=0.7, zorder=0)
        for place, operation in enumerate(mixture.operations):
            colour = COLOURS.get(operation, GREY)
            lines = [[mean_shares(epoch)[place] for epoch in run.architecture if epoch] for run in mixture.runs]
            for line in lines if len(lines) > 1 else ():
                ax.plot(range(1, len(line) + 1), line, color=colour, linewidth=0.5, alpha=0.5)
            length = min(map(len, lines))
            mean = [statistics.fmean(line[epoch] for line in lines) for epoch in range(length)]
            ax.plot(
                range(1, length + 1), mean, color=colour, marker=MARKERS.get(operation, "*"), markersize=3,
                markevery=max(1, length // 8), label=title(operation),
            )  # fmt: skip
        for start in {start for run in mixture.runs if (start := search_start(run)) is not None}:
            ax.axvline(start, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7, zorder=0)
        ends = [mean_shares(run.architecture[-1]) for run in mixture.runs]
        if limit is not None and limit < 3 * max(map(max, ends)):
            ax.axhline(limit, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
        if max(max(end) for end in ends) - min(min(end) for end in ends) < 0.01 * uniform:
            ax.set_ylim(0.99 * uniform, 1.01 * uniform)  # the noise of the start is not worth a whole axis
        ax.set_title(heading(mixture, *([] if limit is None else [f"cap {limit:.3g}"])), loc="left", fontsize=6)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.set_xlabel("epoch")
    for ax in axes[:: 1 if single else 3]:
        ax.set_ylabel("softmax(α)")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if single else 8, columnspacing=1.0)
    codes = "; ".join(f"{code}: {meaning}" for code, meaning in MEANINGS.items())
    caption = (
        "Mean of softmax(α) over sites by epoch. Thin: one seed; thick: mean over seeds; grey line: the uniform level 1/n;"
        " dotted: the largest share that the rate summed over α's updates allows (the title's cap; older records do not"
        f" know it); dashed: T_B, after which α learns. Codes in titles: {codes}. {material.caption}"
    )
    return Drawing(part=part, figure=figure, caption=caption)
