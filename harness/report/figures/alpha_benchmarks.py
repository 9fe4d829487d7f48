"""Do domains choose different priors? softmax(α) at the end, benchmarks side by side, and a test of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.comparison import names
from harness.comparison.alpha import Domains, domains
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.mixtures import RowMixture, mean_shares, mixtures, title
from harness.report.figures.style import PAGE, benchmark_look, panels


def draw(material: Material) -> list[Drawing]:
    by_row: dict[str, list[RowMixture]] = {}
    for mixture in mixtures(material):
        by_row.setdefault(mixture.row.label, []).append(mixture)
    several = {label: mine for label, mine in by_row.items() if len(mine) > 1}
    if not several:
        raise NothingToDrawError("no row with an α ran on two benchmarks")
    figure, axes = panels(len(several), columns=1, width=PAGE, height=1.9)
    sentences = []
    for ax, (label, mine) in zip(axes, several.items(), strict=True):
        operations = mine[0].operations
        for place, mixture in enumerate(mine):
            shift = (place - (len(mine) - 1) / 2) * 0.8 / len(mine)
            ends = [mean_shares(run.architecture[-1]) for run in mixture.runs]
            at = [number + shift for number in range(len(operations))]
            colour, marker = benchmark_look(mixture.benchmark)
            for end in ends if len(ends) > 1 else ():
                ax.plot(at, end, linestyle="none", marker="_", color=colour, markersize=4, markeredgewidth=0.7)
            means = [statistics.fmean(end[number] for end in ends) for number in range(len(operations))]
            ax.plot(
                at, means, linestyle="none", marker=marker, color=colour, label=names.benchmark_title(mixture.benchmark)
            )
        ax.axhline(1 / len(operations), color="#8a8a8a", linewidth=0.7, zorder=0)
        for edge in range(1, len(operations)):
            ax.axvline(edge - 0.5, color="#e6e6e6", linewidth=0.5, zorder=0)
        ax.set_xlim(-0.5, len(operations) - 0.5)
        ax.set_xticks(range(len(operations)), [title(one) for one in operations])
        ax.set_ylabel("softmax(α) at the end")
        ax.set_title(mine[0].shown, loc="left")
        ax.ticklabel_format(axis="y", useOffset=False)
        sentences.append(f"{label}: {_said(tested(mine))}.")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(9, len(labels)), handletextpad=0.2)
    caption = (
        "softmax(α) at the end of training by benchmark, mean over sites. Symbols: mean over seeds; dashes: seeds; grey line:"
        " uniform. Claim tested: benchmarks choose different mixtures (distance between benchmarks against distance between"
        f" seeds, total variation by site, benchmarks permuted within seeds). {' '.join(sentences)} {material.caption}"
    )
    return [Drawing(part="", figure=figure, caption=caption)]


def tested(mine: Sequence[RowMixture]) -> Domains | None:
    """The test over the runs of one row; only benchmarks with the same sites and operations compare."""
    first = mine[0].runs[0].architecture[-1].keys()
    ends = {
        mixture.benchmark: {run.run.seed: run.architecture[-1] for run in mixture.runs}
        for mixture in mine
        if mixture.operations == mine[0].operations
        and all(run.architecture[-1].keys() == first for run in mixture.runs)
    }
    return domains(ends)


def _said(found: Domains | None) -> str:
    if found is None:
        return "inconclusive, fewer than two benchmarks or two seeds in common"
    return f"{found.verdict}, {found.between:.4f} between and {found.within:.4f} within"
