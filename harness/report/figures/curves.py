"""Scores over time: learning curves by epoch, and score against the length of training."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from harness.archive.schema import Record, Run
from harness.comparison import names
from harness.comparison.alpha import search_start
from harness.comparison.cells import Column
from harness.comparison.rows import Row
from harness.comparison.rules import differences
from harness.protocols.keys import hashed_options
from harness.report.figures.material import Drawing, Material, NothingToDrawError, on_each_benchmark, score_label
from harness.report.figures.style import GREY, PAGE, looks, name_below, new_figure, panels

Curve = Mapping[int, float]
"""epoch -> value"""

WINDOW = 2
"""Epochs around T_B within which a drop is looked for."""


def curves(material: Material) -> list[Drawing]:
    """Learning curves: one panel a row, its seeds thin and their mean thick, the other rows' means in grey behind."""
    drawings = []
    for benchmark in material.grid.benchmarks:
        runs = {row: row.finished(benchmark) for row in material.rows()}
        whole = {
            row: [material.archive.whole(record.key) for record in of_row] for row, of_row in runs.items() if of_row
        }
        metric = _metric([record for of_row in whole.values() for record in of_row])
        for quantity in ("val", "loss") if metric else ("loss",):
            drawing = _learning(material, benchmark, whole, quantity=quantity, metric=metric)
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


def _learning(
    material: Material, benchmark: str, runs: Mapping[Row, list[Record]], *, quantity: str, metric: str
) -> Drawing | None:
    by_row = {row: _curves(records, quantity=quantity, metric=metric) for row, records in runs.items()}
    by_row = {row: of_row for row, of_row in by_row.items() if of_row}
    if not by_row:
        return None
    means = {row: _mean(of_row) for row, of_row in by_row.items()}
    look = looks(material.rows())
    figure, axes = panels(len(by_row), columns=5, width=PAGE, height=1.25, sharex=True, sharey=True)
    measure = names.metric(metric)
    ends = _limits(by_row, means)
    for place, (ax, (row, of_row)) in enumerate(zip(axes, by_row.items(), strict=True)):
        for other, mean in means.items():
            if other is not row:
                ax.plot(list(mean), list(mean.values()), color="#cccccc", linewidth=0.6, zorder=1)
        for curve in of_row:
            ax.plot(list(curve), list(curve.values()), color=look[row].colour, linewidth=0.6, alpha=0.6, zorder=2)
        mean = means[row]
        ax.plot(list(mean), list(mean.values()), **look[row].line(markersize=3, linewidth=1.6, zorder=3))
        ax.set_title(material.short(row, most=24), loc="left", pad=2)
        below = _mark_beyond(ax, of_row, ends, colour=look[row].colour, form=".1f" if quantity == "val" else ".3g")
        _mark_start(
            ax, runs[row], metric=metric if quantity == "val" else "", lower=measure.lower_is_better,
            height=0.22 if below else 0.04,
        )  # fmt: skip
        if place % 5 == 0:
            ax.set_ylabel(f"{measure.title} (%)" if quantity == "val" else "loss")
    for ax in axes[-min(5, len(axes)) :]:
        ax.set_xlabel("epoch")
    epochs = [epoch for mean in means.values() for epoch in mean]
    starts = _starts([record for records in runs.values() for record in records])
    axes[0].set_xlim(min([*epochs, *starts]) - 0.4, max(epochs) + 0.4)
    axes[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylim(*ends)
    what = f"Validation {measure.title}" if quantity == "val" else "Training loss"
    caption = (
        f"{what} on {material.grid.title_of(benchmark)} by epoch. Thin: one seed; thick: mean over seeds; grey: means of the other rows."
        " Dashed: T_B, after which α learns; the number beside it is the largest drop of the validation score in points"
        f" within {WINDOW} epochs of T_B (mean over seeds; – where it was not validated twice there)."
        f"{_said_beyond(by_row, ends)} {material.caption}"
    )
    part = benchmark if quantity == "val" else f"{benchmark}-loss"
    return Drawing(part=part, benchmark=benchmark, figure=figure, caption=caption)


def _curves(records: Sequence[Record], *, quantity: str, metric: str) -> list[Curve]:
    if quantity == "val":
        by_seed = [validation_curve(record, metric) for record in records]
    else:
        by_seed = [
            {e["epoch"]: e["loss"] for e in record.history if math.isfinite(e.get("loss", math.nan))}
            for record in records
        ]
    return [curve for curve in by_seed if curve]


def _mean(curves: Sequence[Curve]) -> Curve:
    """Over the epochs that every seed has."""
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in common}


def _limits(by_row: Mapping[Row, Sequence[Curve]], means: Mapping[Row, Curve]) -> tuple[float, float]:
    """Around the means, as one seed that went astray must not flatten the rest; with room for a mark where one is beyond."""
    values = [value for mean in means.values() for value in mean.values()]
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 1.0
    last = [_end(curve) for of_row in by_row.values() for curve in of_row]
    room = [4 * pad if is_beyond else pad for is_beyond in (min(last) < low - pad, max(last) > high + pad)]
    return low - room[0], high + room[1]


def _end(curve: Curve) -> float:
    return curve[max(curve)]


def _mark_beyond(
    ax: Axes, curves: Sequence[Curve], ends: tuple[float, float], *, colour: str, form: str
) -> list[float]:
    """An arrow at the edge with the last values of the runs that end beyond it, and those of them that end below."""
    below = sorted(_end(curve) for curve in curves if _end(curve) < ends[0])
    above = sorted(_end(curve) for curve in curves if _end(curve) > ends[1])
    for edge, inwards, values in ((0.0, 0.2, below), (1.0, -0.2, above)):
        if values:
            ax.annotate(
                "", (0.96, edge), xytext=(0.96, edge + inwards), xycoords="axes fraction", zorder=5,
                arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
            )  # fmt: skip
            ax.text(
                0.92, edge + 0.2 * inwards, ", ".join(f"{value:{form}}" for value in values),
                transform=ax.transAxes, fontsize=5.5, color=colour, ha="right", va="top" if edge else "bottom", zorder=5,
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip
    return below


def _said_beyond(by_row: Mapping[Row, Sequence[Curve]], ends: tuple[float, float]) -> str:
    curves = [curve for of_row in by_row.values() for curve in of_row]
    said = ""
    if any(not ends[0] <= _end(curve) <= ends[1] for curve in curves):
        said += " An arrow with a value: a run that ends beyond the axis, and where."
    if any(len({ends[0] <= value <= ends[1] for value in curve.values()}) > 1 for curve in curves):
        said += " A line that reaches the frame goes on beyond it."
    return said


def _mark_start(ax: Axes, records: Sequence[Record], *, metric: str, lower: bool, height: float) -> None:
    for start in _starts(records):
        ax.axvline(start, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7, zorder=0)
        if not metric:
            continue
        drops = [largest_drop(validation_curve(record, metric), start, lower_is_better=lower) for record in records]
        known = [drop for drop in drops if drop is not None]
        text = f"{statistics.fmean(known):.1f}" if known else "–"
        ax.annotate(
            f"drop at T_B: {text}", (0.98, height), xycoords="axes fraction", fontsize=5.5, color="#555555", ha="right"
        )


def _starts(runs: Sequence[Record]) -> list[int]:
    return sorted({start for record in runs if (start := search_start(record)) is not None})


LENGTH = {"epochs", "epoch_images"}
"""Rules in which the runs of one line may differ."""
APART = 1.3
"""Factor between two lengths whose labels do not touch."""
AXES = ("updates of the weights", "passes of a batch, those for α included")


@dataclass(frozen=True, kw_only=True)
class TrainedFor:
    """A row at one length.

    Args:
        updates: of the weights, mean over seeds.
        passes: forward and backward passes of a batch, those for α included.
        scores: in %, one a seed.
    """

    updates: float
    passes: float
    scores: tuple[float, ...]


def lengths(material: Material) -> list[Drawing]:
    """Time to quality: score against training length, counted in updates of the weights and in passes of the network."""
    lacking = (
        "no other length of these runs: it takes records that differ in epochs or epoch_images alone, and the figure is"
        " drawn with the longest"
    )
    return on_each_benchmark(material, lambda column: _by_length(material, column), lacking=lacking)


def passes_of(record: Record) -> float | None:
    """Forward and backward passes of a batch that its training took: one for each update of the weights, and one more for
    each of α's that has a pass of its own. None where the record does not count its updates."""
    weights = record.budget.get("weight_updates")
    if weights is None:
        return None
    config = record.run.method_config
    shared = config.get("alternate") == "joint" or not config.get("stagewise", True)  # one pass updates both
    return weights + (0.0 if shared else record.budget.get("alpha_updates", 0.0))


def _by_length(material: Material, column: Column) -> Drawing | None:
    trained: dict[Row, list[TrainedFor]] = {}
    behind: list[Record] = []
    for row in material.rows():
        runs = row.finished(column.benchmark)
        others = _lengths(runs, material.everywhere)
        points = [point for alike in others if (point := _point(alike, column))]
        points.sort(key=lambda point: point.updates)
        longest = _point(runs, column)
        if len(points) > 1 and longest is not None and points[-1].updates == longest.updates:
            trained[row] = points
            behind += itertools.chain(*others)
    if not trained:
        return None
    figure = new_figure(PAGE, 2.4)
    axes = figure.subplots(1, 2, sharey=True)
    look = looks(list(trained))
    for ax, name, title in zip(axes, ("updates", "passes"), AXES, strict=True):
        for row, points in trained.items():
            amounts = [getattr(point, name) for point in points]
            means = [statistics.fmean(point.scores) for point in points]
            ax.plot(amounts, means, **look[row].line(label=material.short(row), zorder=3))
            for amount, point in zip(amounts, points, strict=True):
                dots = {"marker": ".", "linestyle": "none", "markersize": 3, "zorder": 2}
                ax.plot([amount] * len(point.scores), point.scores, color=look[row].colour, **dots)
        _scale(ax, {getattr(point, name) for points in trained.values() for point in points})
        ax.set_xlabel(title)
        ax.grid(visible=True)
    axes[0].set_ylabel(score_label(column))
    name_below(figure, axes[0], most=6)
    n = "; ".join(
        f"{row.label}: {', '.join(f'{point.updates:.0f} updates n = {len(point.scores)}' for point in points)}"
        for row, points in trained.items()
    )
    caption = (
        f"Score on {column.benchmark_title} against the length of training. Every point is a training of its own"
        " whose learning rate falls to its end. Lines: means over seeds; dots: single seeds. Passes: forward and backward"
        f" passes of a batch, so a second pass for α counts. {n}. {material.caption_of(behind)}"
    )
    return Drawing(figure=figure, caption=caption)


def _lengths(runs: Sequence[Record], everywhere: Iterable[Record]) -> list[list[Record]]:
    """The finished runs of one configuration on one benchmark, those of each length together."""
    alike: dict[tuple[object, object], list[Record]] = {}
    for record in everywhere if runs else ():
        if record.code == "OK" and _differ_in_length_alone(record.run, runs[0].run):
            rules = record.run.rules
            alike.setdefault((rules.get("epochs"), rules.get("epoch_images")), []).append(record)
    return list(alike.values())


def _differ_in_length_alone(first: Run, second: Run) -> bool:
    return (
        all(
            getattr(first, name) == getattr(second, name)
            for name in ("method", "benchmark", "backbone", "checkpoint", "manifest")
        )
        and hashed_options(first.method, first.method_config) == hashed_options(second.method, second.method_config)
        and differences(first.rules, second.rules).keys() <= LENGTH
    )


def _point(runs: Sequence[Record], column: Column) -> TrainedFor | None:
    """None where no run of them has the score and counts its updates."""
    counted = {
        run.run.seed: (100 * value, run.budget["weight_updates"], passes)
        for run in sorted(runs, key=lambda run: run.key)
        if (value := run.scores.get("best", {}).get(column.split, {}).get(column.metric)) is not None
        and (passes := passes_of(run)) is not None
    }
    if not counted:
        return None
    scores, updates, passes_taken = zip(*(counted[seed] for seed in sorted(counted)), strict=True)
    return TrainedFor(updates=statistics.fmean(updates), passes=statistics.fmean(passes_taken), scores=scores)


def _scale(ax: Axes, amounts: Iterable[float]) -> None:
    """Logarithmic, with a tick at every length that stands apart from the one before."""
    ticks: list[float] = []
    for amount in sorted(amounts):
        if not ticks or amount >= APART * ticks[-1]:
            ticks.append(amount)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
