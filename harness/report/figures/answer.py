"""The figures of the answer's pages: differences below each other, with what they are on the left and their intervals on the right."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import statistics as stats
from harness.comparison.question import Case, Model
from harness.report.figures.style import GREY, PAGE, SHADES, encoded, new_figure, styled
from harness.report.findings import Answer, has_pages, of_estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Mapping[str, tuple[str, str]] = {
    "answer": ("clean", "points, NAS-LoRA − LoRA"),
    "cell": ("cell_cases", "points that the cell adds"),
    "search": ("search_cases", "points that the search adds"),
    "rate": ("rate_cases", "points, NAS-LoRA − LoRA"),
}
"""Figure -> the cases that it shows, and its axis."""


def figures(root: Path, answer: Answer | None = None) -> dict[Path, bytes]:
    """Path -> bytes of every figure of the pages; empty where a results folder has none."""
    home = root.resolve().parent
    if not has_pages(root):
        return {}
    answer = answer or Answer(root)
    drawn = {}
    for name, (cases, axis) in FIGURES.items():
        with styled():
            figure = _forest(getattr(answer, cases), answer.models if name == "answer" else (), axis=axis)
        caption = f"Bars: 95 % confidence intervals over draws and test images. {axis}."
        drawn[home / "docs" / "figures" / f"{name}.svg"] = encoded(figure, "svg", title=name, caption=caption)
    return drawn


def _forest(cases: Sequence[Case], models: Sequence[Model], *, axis: str) -> Figure:
    """Differences below each other, one colour a backbone; a bar that reaches beyond the axis ends in an arrow."""
    lines: list[tuple[str, str, stats.Estimate]] = []
    for case in cases:
        what = f" · {case.pair.what}" if case.pair.what else ""
        lines.append((f"{case.column.short}{what} (n = {case.n})", case.model, case.estimate))
    for model in models:
        if len(model.cases) > 1:
            lines.append((f"mean of {len(model.cases)} benchmarks", model.name, model.estimate))
    names = list(dict.fromkeys(name for _, name, _ in lines))
    lines.sort(key=lambda line: names.index(line[1]))
    figure = new_figure(PAGE, 0.75 + 0.2 * len(lines))
    ax = figure.subplots()
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    reach = _reach([estimate for _, _, estimate in lines])
    for height, (label, name, estimate) in enumerate(lines):
        colour, interval = SHADES[names.index(name) % len(SHADES)], estimate.interval()
        if interval is not None:
            low, high = max(interval.low, -reach), min(interval.high, reach)
            ax.plot([low, high], [height, height], color=colour, linewidth=1.3)
            for end, at, marker in ((interval.low, -reach, "<"), (interval.high, reach, ">")):
                if abs(end) > reach:
                    ax.plot([at], [height], marker=marker, color=colour, markersize=4, clip_on=False)
        mean, is_mean = min(max(estimate.mean, -reach), reach), label.startswith("mean of")
        ax.plot([mean], [height], marker="D" if is_mean else "o", color=colour, linestyle="none")
        ax.annotate(
            of_estimate(estimate),
            (1.01, height),
            xycoords=("axes fraction", "data"),
            fontsize=6,
            va="center",
            annotation_clip=False,
        )
    ax.set_yticks(range(len(lines)), [label for label, _, _ in lines])
    for tick, (_, name, _) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_color(SHADES[names.index(name) % len(SHADES)])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-reach * 1.03, reach * 1.03)
    ax.set_xlabel(axis + ", positive is better")
    ax.grid(visible=True, axis="x")
    for name in names:
        ax.plot([], [], marker="o", linestyle="none", color=SHADES[names.index(name) % len(SHADES)], label=name)
    figure.legend(loc="outside lower left", ncols=len(names), frameon=False)
    return figure


def _reach(estimates: Sequence[stats.Estimate]) -> float:
    """Where the axis ends: beyond all means and the intervals that are not far wider than the others."""
    halves = sorted(interval.half for estimate in estimates if (interval := estimate.interval()))
    usual = statistics.median(halves) if halves else 1.0
    ends = [
        abs(end)
        for estimate in estimates
        if (interval := estimate.interval()) and interval.half <= 4 * usual
        for end in (interval.low, interval.high)
    ]
    return 1.05 * max([*(abs(estimate.mean) for estimate in estimates), *ends, 1.0])
