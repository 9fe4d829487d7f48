"""Learning curves: one panel a row, its seeds thin and their mean thick, the other rows' means in grey behind."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.alpha import search_start
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import GREY, PAGE, looks, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Mapping[int, float]
"""epoch -> value"""

WINDOW = 2
"""Epochs around T_B within which a drop is looked for."""


def draw(material: Material) -> list[Drawing]:
    drawings = []
    for benchmark in material.benchmarks:
        runs = {row.label: material.members(index, benchmark) for index, row in material.rows()}
        whole = {label: [material.whole(one.key) for one in mine] for label, mine in runs.items() if mine}
        metric = _metric([one for mine in whole.values() for one in mine])
        for quantity in ("val", "loss") if metric else ("loss",):
            drawing = _benchmark(material, benchmark, whole, quantity=quantity, metric=metric)
            drawings += [drawing] if drawing else []
    if not drawings:
        raise NothingToDrawError("no record holds a history of epochs to draw curves of")
    return drawings


def validation_curve(record: Record, metric: str) -> Curve:
    """epoch -> validation score in %, of the epochs that were validated."""
    return {
        entry["epoch"]: 100 * entry["val"][metric]
        for entry in record.history
        if math.isfinite(entry.get("val", {}).get(metric, math.nan))
    }


def largest_drop(curve: Curve, start: int, *, lower_is_better: bool = False) -> float | None:
    """Stability around T_B: the largest loss of score from one validation to a later one within `WINDOW` epochs of
    ``start``, 0 where it only rose; None with fewer than two validations there."""
    sign = -1 if lower_is_better else 1
    values = [sign * curve[epoch] for epoch in sorted(curve) if abs(epoch - start) <= WINDOW]
    if len(values) < 2:
        return None
    return max(0.0, max(values[i] - min(values[i + 1 :]) for i in range(len(values) - 1)))


def _metric(records: Sequence[Record]) -> str:
    """The metric that checkpoints were selected by: the one that every history holds."""
    for record in records:
        for entry in record.history:
            if entry.get("val"):
                return str(sorted(entry["val"])[0])
    return ""


def _benchmark(
    material: Material, benchmark: str, runs: Mapping[str, list[Record]], *, quantity: str, metric: str
) -> Drawing | None:
    from matplotlib.ticker import MaxNLocator

    curves = {label: _curves(mine, quantity=quantity, metric=metric) for label, mine in runs.items()}
    curves = {label: mine for label, mine in curves.items() if mine}
    if not curves:
        return None
    means = {label: _mean(mine) for label, mine in curves.items()}
    rows = [row for _, row in material.rows()]
    found = looks(rows)
    figure, axes = panels(len(curves), columns=5, width=PAGE, height=1.25, sharex=True, sharey=True)
    title = names.benchmark_title(benchmark)
    lower = names.metric(metric).lower_is_better
    for place, (ax, (label, mine)) in enumerate(zip(axes, curves.items(), strict=True)):
        look = found[label]
        for other, mean in means.items():
            if other != label:
                ax.plot(list(mean), list(mean.values()), color="#cccccc", linewidth=0.6, zorder=1)
        for curve in mine:
            ax.plot(list(curve), list(curve.values()), color=look.colour, linewidth=0.6, alpha=0.6, zorder=2)
        mean = means[label]
        ax.plot(list(mean), list(mean.values()), **look.line(markersize=3, linewidth=1.6, zorder=3))
        ax.set_title(material.short(label, most=24), loc="left", pad=2)
        _mark_start(ax, runs[label], metric=metric if quantity == "val" else "", lower=lower)
        if place % 5 == 0:
            ax.set_ylabel(f"{names.metric(metric).title} (%)" if quantity == "val" else "loss")
    for ax in axes[-min(5, len(axes)) :]:
        ax.set_xlabel("epoch")
    epochs = [epoch for mean in means.values() for epoch in mean]
    axes[0].set_xlim(min([*epochs, *_starts(runs)]) - 0.4, max(epochs) + 0.4)
    axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _limit(axes[0], [value for mean in means.values() for value in mean.values()])
    what = f"Validation {names.metric(metric).title}" if quantity == "val" else "Training loss"
    caption = (
        f"{what} on {title} by epoch. Thin: one seed; thick: mean over seeds; grey: means of the other rows."
        " Dashed: T_B, after which α learns; the number beside it is the largest drop of the validation score in points"
        f" within {WINDOW} epochs of T_B (mean over seeds; – where it was not validated twice there). {material.caption}"
    )
    return Drawing(part=benchmark if quantity == "val" else f"{benchmark}-loss", figure=figure, caption=caption)


def _curves(records: Sequence[Record], *, quantity: str, metric: str) -> list[Curve]:
    if quantity == "val":
        found = [validation_curve(record, metric) for record in records]
    else:
        found = [
            {e["epoch"]: e["loss"] for e in one.history if math.isfinite(e.get("loss", math.nan))} for one in records
        ]
    return [curve for curve in found if curve]


def _mean(curves: Sequence[Curve]) -> Curve:
    """Over the epochs that every seed has."""
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in common}


def _mark_start(ax: Axes, records: Sequence[Record], *, metric: str, lower: bool) -> None:
    for start in _starts({"": records}):
        ax.axvline(start, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7, zorder=0)
        if not metric:
            continue
        drops = [largest_drop(validation_curve(one, metric), start, lower_is_better=lower) for one in records]
        known = [drop for drop in drops if drop is not None]
        text = f"{statistics.fmean(known):.1f}" if known else "–"
        ax.annotate(
            f"drop at T_B: {text}", (0.98, 0.04), xycoords="axes fraction", fontsize=5.5, color="#555555", ha="right"
        )


def _starts(runs: Mapping[str, Sequence[Record]]) -> list[int]:
    return sorted({start for mine in runs.values() for one in mine if (start := search_start(one)) is not None})


def _limit(ax: Axes, values: Sequence[float]) -> None:
    """By the means: one seed that went astray must not flatten the rest."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
