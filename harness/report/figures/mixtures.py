"""What α chose: softmax(α) over epochs, at the end by block and by benchmark, and its entropy."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from harness.archive.archive import Shares
from harness.archive.schema import Record
from harness.comparison.alpha import (
    MEANINGS,
    Domains,
    Noise,
    alpha_code,
    beside_noise,
    domains,
    entropy,
    noise,
    search_start,
)
from harness.comparison.names import benchmark_title
from harness.comparison.rows import Row, grouped
from harness.registry import operation_names
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import (
    COLUMN,
    GREY,
    PAGE,
    benchmark_look,
    looks,
    name_below,
    new_figure,
    panels,
    split_by_length,
)  # fmt: skip

COLOURS: Mapping[str, str] = {
    "none": "#1b1b1b", "skip_connect": "#7f7f7f", "max_pool_3x3": "#f28e2b", "avg_pool_3x3": "#edc948",
    "sep_conv_3x3": "#4e79a7", "sep_conv_5x5": "#8cb6d9", "dil_conv_3x3": "#8c2d8f", "dil_conv_5x5": "#d4a6c8",
}  # fmt: skip
MARKERS: Mapping[str, str] = {
    "none": "x", "skip_connect": "s", "max_pool_3x3": "^", "avg_pool_3x3": "v",
    "sep_conv_3x3": "o", "sep_conv_5x5": "D", "dil_conv_3x3": "P", "dil_conv_5x5": "X",
}  # fmt: skip
"""Each operation in every figure of α; one that is not named here is grey with a star."""


@dataclass(frozen=True, kw_only=True)
class RowMixture:
    """The runs of one row on one benchmark that have an α history, and the names of what it weighs; ``shown`` is the row's
    label where room is short."""

    row: Row
    shown: str
    benchmark: str
    operations: tuple[str, ...]
    runs: tuple[Record, ...]

    @property
    def benchmark_title(self) -> str:
        return benchmark_title(self.benchmark, [record.run for record in self.runs])

    @property
    def n(self) -> int:
        return len(self.operations)


def mixtures(material: Material) -> list[RowMixture]:
    """Those of a row with other operations among its runs are told apart by their first. Raises NothingToDrawError: no run has
    an α history."""
    mixed = []
    for row in material.rows():
        for benchmark in material.grid.benchmarks:
            runs = [
                material.archive.whole(run.key)
                for run in row.finished(benchmark)
                if len(operation_names(run.run.method, run.run.method_config)) > 1
            ]
            runs = [run for run in runs if run.architecture and run.architecture[-1]]
            if not runs:
                continue
            operations, shown = _operations(runs[0]), material.short(row)
            alike = tuple(run for run in runs if _operations(run) == operations)
            mixed.append(RowMixture(row=row, shown=shown, benchmark=benchmark, operations=operations, runs=alike))
    if not mixed:
        raise NothingToDrawError("no run here has an α history (NAS-LoRA and NAS-PC-LoRA have)")
    return mixed


def _operations(record: Record) -> tuple[str, ...]:
    known = operation_names(record.run.method, record.run.method_config)
    width = len(next(iter(record.architecture[-1].values())))
    return known if len(known) == width else tuple(f"operation {place}" for place in range(width))


def mean_shares(shares: Shares) -> list[float]:
    """Over sites, an entry an operation."""
    return [statistics.fmean(column) for column in zip(*shares.values(), strict=True)]


def end_by_site(runs: Sequence[Record]) -> dict[str, list[float]]:
    """Site -> shares at the end, mean over seeds, blocks in order."""
    ends = [run.architecture[-1] for run in runs]
    sites = sorted(runs[0].architecture[-1], key=_site_order)
    return {
        site: [statistics.fmean(shares) for shares in zip(*(end[site] for end in ends if site in end), strict=True)]
        for site in sites
    }


def _site_order(site: str) -> tuple[int, str]:
    number = re.search(r"\d+", site)
    return (int(number[0]) if number else 0, site)


def cap(runs: Sequence[Record]) -> float | None:
    """The largest share that the rate allowed, if every run knows it; see `harness.archive.schema.share_cap`."""
    caps = [run.budget.get("share_cap") for run in runs]
    known = [share for share in caps if share is not None and math.isfinite(share)]
    return max(known) if known and len(known) == len(caps) else None


def nulls(mixture: RowMixture) -> list[Noise]:
    """What noise alone would give the runs of a row, each once."""
    every = (noise(run, run.architecture[-1]) for run in mixture.runs)
    return list(dict.fromkeys(null for null in every if null is not None))


def _beside_noise(material: Material, shown: Sequence[RowMixture]) -> str:
    """``Row: log-shares have SD …; under noise alone …``, a sentence a row."""
    by_row: dict[str, list[Record]] = {}
    for mixture in shown:
        by_row.setdefault(mixture.row.label, []).extend(mixture.runs)
    return " ".join(f"{label}: {beside_noise(runs, material.archive)}." for label, runs in by_row.items())


def title(operation: str) -> str:
    return operation.replace("_connect", "").replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5")


def heading(mixture: RowMixture, *more: str) -> str:
    """Row, benchmark, and the code of runs whose α says nothing, in lines that fit a narrow panel."""
    codes = sorted({code for run in mixture.runs if (code := alpha_code(run, run.architecture[-1]))})
    return f"{mixture.shown}\n" + ", ".join([mixture.benchmark_title, *more, *codes])


BAND = "#ececec"
"""Of what noise alone gives."""
HEIGHT = 1.75
"""Inches of a row of panels."""


def alpha(material: Material) -> list[Drawing]:
    """How softmax(α) moves: one line an operation, over epochs, mean over sites; seeds thin, their mean thick."""
    return _pages(material, _over_epochs, height=lambda _: HEIGHT)


def _pages(
    material: Material,
    draw: Callable[[Material, list[RowMixture]], Drawing],
    *,
    height: Callable[[Sequence[RowMixture]], float],
) -> list[Drawing]:
    pages = [draw(material, page) for page in split_by_length(mixtures(material), columns=3, height=height)]
    return [replace(page, part=str(number)) for number, page in enumerate(pages, start=1)] if len(pages) > 1 else pages


def _over_epochs(material: Material, shown: list[RowMixture]) -> Drawing:
    single = len(shown) == 1
    figure, axes = panels(len(shown), columns=3, width=COLUMN if single else PAGE, height=2.0 if single else HEIGHT)
    for ax, mixture in zip(axes, shown, strict=True):
        uniform, limit = 1 / mixture.n, cap(mixture.runs)
        ax.axhline(uniform, color=GREY, linewidth=0.7, zorder=0)
        for null in nulls(mixture):
            ax.axhspan(*null.mean_share, color=BAND, linewidth=0, zorder=-1)
        for place, operation in enumerate(mixture.operations):
            colour = COLOURS.get(operation, GREY)
            lines = [[mean_shares(epoch)[place] for epoch in run.architecture if epoch] for run in mixture.runs]
            marker = MARKERS.get(operation, "*")
            _by_epoch(ax, lines, color=colour, marker=marker, markersize=3, label=title(operation))
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
        f" know it); dashed: T_B, after which α learns; grey band: where noise alone leaves 95 of 100 means."
        f" {_beside_noise(material, shown)} Codes in titles: {codes}. {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


def _by_epoch(ax: Axes, lines: Sequence[Sequence[float]], *, color: str, **look: Any) -> None:
    """A line a seed, thin, and their mean over the epochs that all have, thick."""
    for line in lines if len(lines) > 1 else ():
        ax.plot(range(1, len(line) + 1), line, color=color, linewidth=0.5, alpha=0.5)
    mean = [statistics.fmean(at_epoch) for at_epoch in zip(*lines, strict=False)]
    ax.plot(range(1, len(mean) + 1), mean, color=color, markevery=max(1, len(mean) // 8), **look)


SPAN = 2.0
"""The scale's ends are 1/n divided and multiplied by this, whatever the data, so that figures compare."""


def alpha_blocks(material: Material) -> list[Drawing]:
    """What α chose where: softmax(α) at the end, sites by operations, on a scale fixed around the uniform level."""
    return _pages(material, _at_the_end, height=_height)


def _height(shown: Sequence[RowMixture]) -> float:
    """Inches of a row of panels."""
    return 0.95 + 0.13 * min(max(len(mixture.runs[0].architecture[-1]) for mixture in shown), 40)


def _at_the_end(material: Material, shown: list[RowMixture]) -> Drawing:
    columns = min(3, len(shown))
    width = COLUMN if columns == 1 else PAGE
    figure, axes = panels(len(shown), columns=columns, width=width, height=_height(shown))
    norm = TwoSlopeNorm(1.0, vmin=1 / SPAN, vmax=SPAN)
    for place, (ax, mixture) in enumerate(zip(axes, shown, strict=True)):
        ends = end_by_site(mixture.runs)
        table = [[share * mixture.n for share in shares] for shares in ends.values()]
        ax.pcolormesh(table, cmap="PuOr_r", norm=norm, edgecolors="white", linewidth=0.3)
        below = shown[place + columns] if place + columns < len(shown) else None
        said = below is None or below.operations != mixture.operations
        labels = [title(operation) if said else "" for operation in mixture.operations]
        ax.set_xticks([at + 0.5 for at in range(mixture.n)], labels, rotation=90)
        step = max(1, -(-len(ends) // 32))
        sites = [site.replace("blocks.", "").replace(".qkv", "") for site in ends][::step]
        ax.set_yticks([at * step + 0.5 for at in range(len(sites))], sites, fontsize=5.5)
        ax.set_ylim(len(ends), 0)
        ax.tick_params(length=0)
        ax.set_title(heading(mixture), loc="left", fontsize=6)
        if place % columns == 0:
            ax.set_ylabel("block")
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap="PuOr_r"), ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_ticks([0.5, 0.75, 1.0, 1.5, 2.0], labels=["1/2", "3/4", "1", "3/2", "2"])
    bar.set_label("share ÷ uniform share")
    caption = (
        "softmax(α) at the end of training by block and operation, mean over seeds, as a multiple of the uniform share 1/n."
        f" The scale is fixed from 1/2 to 2: white says that α chose nothing. {_beside_noise(material, shown)} {material.caption}"
    )
    return Drawing(figure=figure, caption=caption)


DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (6, 2, 1, 2, 1, 2)))
"""A dash a benchmark; the colour is the method's."""


def alpha_entropy(material: Material) -> list[Drawing]:
    """How decided α is: its normalised entropy over epochs, 1 where it is uniform."""
    mixed = mixtures(material)
    figure = new_figure(COLUMN, 2.2)
    ax = figure.subplots()
    look = looks(material.grid.rows)
    codes = []
    for mixture in mixed:
        dash = DASHES[material.grid.benchmarks.index(mixture.benchmark) % len(DASHES)]
        lines = [[entropy(epoch) for epoch in run.architecture if epoch] for run in mixture.runs]
        label = f"{mixture.shown}, {mixture.benchmark_title}"
        _by_epoch(ax, lines, **{**look[mixture.row].line(), "linestyle": dash, "markersize": 3.5, "label": label})
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
        f" over seeds.{' ' + said + '.' if said else ''} {_beside_noise(material, mixed)} {material.caption}"
    )
    return [Drawing(figure=figure, caption=caption)]


def alpha_benchmarks(material: Material) -> list[Drawing]:
    """Do domains choose different priors? softmax(α) at the end, benchmarks side by side, and a test of it."""
    by_row = grouped(mixtures(material), lambda mixture: mixture.row)
    several = {row: of_row for row, of_row in by_row.items() if len(of_row) > 1}
    if not several:
        raise NothingToDrawError("no row with an α ran on two benchmarks")
    figure, axes = panels(len(several), columns=1, width=PAGE, height=1.9)
    sentences = []
    for ax, (row, of_row) in zip(axes, several.items(), strict=True):
        operations = of_row[0].operations
        for place, mixture in enumerate(of_row):
            shift = (place - (len(of_row) - 1) / 2) * 0.8 / len(of_row)
            ends = [mean_shares(run.architecture[-1]) for run in mixture.runs]
            at = [number + shift for number in range(len(operations))]
            colour, marker = benchmark_look(mixture.benchmark)
            for end in ends if len(ends) > 1 else ():
                ax.plot(at, end, linestyle="none", marker="_", color=colour, markersize=4, markeredgewidth=0.7)
            means = [statistics.fmean(end[number] for end in ends) for number in range(len(operations))]
            label = mixture.benchmark_title
            ax.plot(at, means, linestyle="none", marker=marker, color=colour, label=label)
        ax.axhline(1 / len(operations), color="#8a8a8a", linewidth=0.7, zorder=0)
        for null in dict.fromkeys(null for mixture in of_row for null in nulls(mixture)):
            ax.axhspan(*null.mean_share, color=BAND, linewidth=0, zorder=-1)
        for edge in range(1, len(operations)):
            ax.axvline(edge - 0.5, color="#e6e6e6", linewidth=0.5, zorder=0)
        ax.set_xlim(-0.5, len(operations) - 0.5)
        ax.set_xticks(range(len(operations)), [title(operation) for operation in operations])
        ax.set_ylabel("softmax(α) at the end")
        ax.set_title(of_row[0].shown, loc="left")
        ax.ticklabel_format(axis="y", useOffset=False)
        sentences.append(f"{row.label}: {_said(tested(of_row))}.")
    handles, labels = max((ax.get_legend_handles_labels() for ax in axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(9, len(labels)), handletextpad=0.2)
    caption = (
        "softmax(α) at the end of training by benchmark, mean over sites. Symbols: mean over seeds; dashes: seeds; grey line:"
        " uniform; grey band: where noise alone leaves 95 of 100 of these means. Claim tested: benchmarks choose different"
        " mixtures (distance between benchmarks against distance between"
        f" seeds, total variation by site, benchmarks permuted within seeds). {' '.join(sentences)}"
        f" {_beside_noise(material, [record for of_row in several.values() for record in of_row])} {material.caption}"
    )
    return [Drawing(figure=figure, caption=caption)]


def tested(of_row: Sequence[RowMixture]) -> Domains | None:
    """The test over the runs of one row; only benchmarks with the same sites and operations compare."""
    first = of_row[0].runs[0].architecture[-1].keys()
    ends = {
        mixture.benchmark: {run.run.seed: run.architecture[-1] for run in mixture.runs}
        for mixture in of_row
        if mixture.operations == of_row[0].operations
        and all(run.architecture[-1].keys() == first for run in mixture.runs)
    }
    return domains(ends)


def _said(compared: Domains | None) -> str:
    if compared is None:
        return "no data, fewer than two benchmarks or two seeds in common"
    return f"{compared.verdict}, {compared.between:.4f} between and {compared.within:.4f} within"
