"""Time to quality: score against training length, counted in updates of the weights and in passes of the network."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.archive.schema import Record, Run, hashed_options
from harness.comparison import names
from harness.comparison.grid import Row
from harness.comparison.rules import differences
from harness.report.figures.material import Drawing, Material, NothingToDrawError, score_label
from harness.report.figures.style import PAGE, looks, name_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def draw(material: Material) -> list[Drawing]:
    drawings = [
        drawing
        for benchmark, place in material.first_columns().items()
        if (drawing := _benchmark(material, benchmark, place)) is not None
    ]
    if not drawings:
        raise NothingToDrawError(
            "no other length of these runs: it takes records that differ in epochs or epoch_images alone, and the figure is"
            " drawn with the longest"
        )
    return drawings


def passes_of(record: Record) -> float | None:
    """Forward and backward passes of a batch that its training took: one for each update of the weights, and one more for
    each of α's that has a pass of its own. None where the record does not count its updates."""
    weights = record.budget.get("weight_updates")
    if weights is None:
        return None
    config = record.run.method_config
    shared = config.get("alternate") == "joint" or not config.get("stagewise", True)  # one pass updates both
    return weights + (0.0 if shared else record.budget.get("alpha_updates", 0.0))


def _benchmark(material: Material, benchmark: str, place: int) -> Drawing | None:
    column = material.grid.columns[place]
    curves: dict[str, list[TrainedFor]] = {}
    shown: list[Row] = []
    behind: list[Record] = []
    for index, row in material.rows():
        mine = material.members(index, benchmark)
        lengths = _lengths(mine, material.everywhere)
        points = [point for runs in lengths if (point := _point(runs, column.split, column.metric))]
        points.sort(key=lambda one: one.updates)
        longest = _point(mine, column.split, column.metric)
        if len(points) > 1 and longest is not None and points[-1].updates == longest.updates:
            curves[row.label] = points
            shown.append(row)
            behind += itertools.chain(*lengths)
    if not curves:
        return None
    figure = new_figure(PAGE, 2.4)
    axes = figure.subplots(1, 2, sharey=True)
    found = looks(shown)
    for ax, name, title in zip(axes, ("updates", "passes"), AXES, strict=True):
        for label, points in curves.items():
            amounts = [getattr(one, name) for one in points]
            look = found[label]
            means = [statistics.fmean(one.scores) for one in points]
            ax.plot(amounts, means, **look.line(label=material.short(label), zorder=3))
            for amount, one in zip(amounts, points, strict=True):
                dots = {"marker": ".", "linestyle": "none", "markersize": 3, "zorder": 2}
                ax.plot([amount] * len(one.scores), one.scores, color=look.colour, **dots)
        _scale(ax, {getattr(one, name) for points in curves.values() for one in points})
        ax.set_xlabel(title)
        ax.grid(visible=True)
    axes[0].set_ylabel(score_label(column))
    name_below(figure, axes[0], most=6)
    n = "; ".join(
        f"{label}: {', '.join(f'{one.updates:.0f} updates n = {len(one.scores)}' for one in points)}"
        for label, points in curves.items()
    )
    caption = (
        f"Score on {names.benchmark_title(benchmark)} against the length of training. Every point is a training of its own"
        " whose learning rate falls to its end. Lines: means over seeds; dots: single seeds. Passes: forward and backward"
        f" passes of a batch, so a second pass for α counts. {n}. {material.caption_of(behind)}"
    )
    return Drawing(part=benchmark, figure=figure, caption=caption)


def _lengths(mine: Sequence[Record], everywhere: Iterable[Record]) -> list[list[Record]]:
    """The finished runs of one configuration on one benchmark, those of each length together."""
    found: dict[tuple[object, object], list[Record]] = {}
    for one in everywhere if mine else ():
        if one.code == "OK" and _differ_in_length_alone(one.run, mine[0].run):
            found.setdefault((one.run.rules.get("epochs"), one.run.rules.get("epoch_images")), []).append(one)
    return list(found.values())


def _differ_in_length_alone(first: Run, second: Run) -> bool:
    return (
        all(
            getattr(first, name) == getattr(second, name)
            for name in ("method", "benchmark", "backbone", "checkpoint", "manifest")
        )
        and hashed_options(first.method_config) == hashed_options(second.method_config)
        and differences(first.rules, second.rules).keys() <= LENGTH
    )


def _point(runs: Sequence[Record], split: str, metric: str) -> TrainedFor | None:
    """None where no run of them has the score and counts its updates."""
    counted = {
        one.run.seed: (100 * value, one.budget["weight_updates"], passes)
        for one in sorted(runs, key=lambda one: one.key)
        if (value := one.scores.get("best", {}).get(split, {}).get(metric)) is not None
        and (passes := passes_of(one)) is not None
    }
    if not counted:
        return None
    scores, updates, passes_taken = zip(*(counted[seed] for seed in sorted(counted)), strict=True)
    return TrainedFor(updates=statistics.fmean(updates), passes=statistics.fmean(passes_taken), scores=scores)


def _scale(ax: Axes, amounts: Iterable[float]) -> None:
    """Logarithmic, with a tick at every length that stands apart from the one before."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks: list[float] = []
    for amount in sorted(amounts):
        if not ticks or amount >= APART * ticks[-1]:
            ticks.append(amount)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
