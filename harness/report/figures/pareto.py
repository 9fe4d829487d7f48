"""Score against cost: trained parameters of the runs, step time and memory of cost records, each with its Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.archive.cost import CostRecord, MethodCost
from harness.archive.schema import hashed_options
from harness.comparison import names
from harness.comparison.grid import Row
from harness.report.figures.material import Drawing, Material, NothingToDrawError, score_label
from harness.report.figures.style import COLUMN, GREY, PAGE, looks, name_below, new_figure
from harness.statistics import t_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A value with the interval around it, equal to it where it does not vary."""

    value: float
    low: float
    high: float


NEAR = 0.12
"""Share of an axis within which what is said of two rows would overlap."""
Costs = Mapping[str, Amount]
"""label of a row -> its cost"""


def draw(material: Material) -> list[Drawing]:
    session = session_for(material)
    drawings = [
        drawing
        for benchmark, place in material.first_columns().items()
        if (drawing := _benchmark(material, benchmark, place, session)) is not None
    ]
    if not drawings:
        raise NothingToDrawError("no benchmark has two rows with a score and a count of parameters")
    return drawings


def session_for(material: Material) -> CostRecord | None:
    """The cost session of these rules on this backbone with most of the rows, the latest of equals; sessions are never
    mixed."""
    rules = [one.run.rules for one in material.grid.records]
    mine = [
        one
        for one in material.costs
        if one.comparability.backbone == material.grid.backbone and any(_same_rules(one, each) for each in rules)
    ]
    return max(mine, key=lambda one: (len(_costs_of(material, one)), one.finished, one.session), default=None)


def _same_rules(session: CostRecord, rules: Mapping[str, object]) -> bool:
    """Whether it measured the step that these runs took; fields that a record does not know count as equal."""
    place = session.comparability
    measured = {
        "image_size": place.image_size, "precision": place.precision, "batch_size": place.batch,
        "epochs": place.options.get("epochs"),
    }  # fmt: skip
    return all(rules.get(name, value) == value for name, value in measured.items() if value is not None)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Labels on the Pareto front by rising cost: no other costs at most as much and scores at least as much.

    Args:
        points: label -> (cost, score), higher scores are better.
    """
    best: list[str] = []
    for label in sorted(points, key=lambda one: (points[one][0], -points[one][1], one)):
        if not best or points[label][1] > points[best[-1]][1]:
            best.append(label)
    return best


def _benchmark(material: Material, benchmark: str, place: int, session: CostRecord | None) -> Drawing | None:
    grid = material.grid
    column = grid.columns[place]
    lower = names.metric(column.metric).lower_is_better
    scores: dict[str, Amount] = {}
    parameters: dict[str, Amount] = {}
    shown: dict[str, Row] = {}
    for index, row in material.rows():
        cell = grid.cells[index, place]
        counts = {
            one.parameters["encoder"] for one in material.members(index, benchmark) if "encoder" in one.parameters
        }
        if not cell.values or not counts:
            continue
        values = [100 * cell.values[seed] for seed in sorted(cell.values)]
        interval = t_interval(values)
        mean = statistics.fmean(values)
        scores[row.label] = Amount(
            value=mean, low=interval.low if interval else mean, high=interval.high if interval else mean
        )
        count = max(counts) / 1e6
        parameters[row.label] = Amount(value=count, low=count, high=count)
        shown[row.label] = row
    if len(scores) < 2:
        return None
    axes_of: list[tuple[str, Costs]] = [("parameters trained in the encoder (M)", parameters)]
    if session is not None:
        costs = {label: cost for label, cost in _costs_of(material, session).items() if label in scores}
        if len(costs) > 1:
            axes_of.append(("training step (ms)", {label: _step(cost) for label, cost in costs.items()}))
            axes_of.append(("peak memory (GiB)", {label: _memory(cost) for label, cost in costs.items()}))
    figure = new_figure(COLUMN if len(axes_of) == 1 else PAGE, 2.4 if len(axes_of) == 1 else 2.3)
    axes = figure.subplots(1, len(axes_of), squeeze=False, sharey=True)[0]
    found = looks(grid.rows)
    limits = room({label: one.value for label, one in scores.items()})
    for ax, (title, amounts) in zip(axes, axes_of, strict=True):
        points = {label: (one.value, (-1 if lower else 1) * scores[label].value) for label, one in amounts.items()}
        line = front(points)
        ax.step(
            [amounts[label].value for label in line], [scores[label].value for label in line],
            where="post", color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1,
        )  # fmt: skip
        for label, one in amounts.items():
            y, look = scores[label], found[label]
            ax.errorbar(
                one.value, y.value, xerr=[[one.value - one.low], [one.high - one.value]],
                yerr=[[y.value - y.low], [y.high - y.value]], elinewidth=0.7,
                **look.points(linestyle="none", label=material.short(label), zorder=3),
            )  # fmt: skip
        _scale(ax, [one.value for one in amounts.values()])
        for (cost, is_above), labels in _outside(ax, amounts, scores, limits).items():
            colour = found[labels[0]].colour
            ax.annotate(
                ", ".join(f"{scores[label].value:.1f}" for label in labels), (cost, limits[is_above]),
                xytext=(0, -9 if is_above else 9), textcoords="offset points", ha="center",
                va="top" if is_above else "bottom", fontsize=5.5, color=colour,
                arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8},
            )  # fmt: skip
        ax.set_xlabel(title)
        ax.grid(visible=True)
    axes[0].set_ylabel(score_label(column))
    axes[0].set_ylim(*limits)
    name_below(figure, axes[0], most=3 if len(axes_of) == 1 else 6)
    return Drawing(part=benchmark, figure=figure, caption=_caption(material, session, costs=len(axes_of) > 1))


def _outside(
    ax: Axes, amounts: Costs, scores: Mapping[str, Amount], limits: tuple[float, float]
) -> dict[tuple[float, bool], list[str]]:
    """(cost, whether above) -> labels of the rows that the axis leaves out there; neighbours share a place."""
    found: dict[tuple[float, bool], list[str]] = {}
    for label in sorted(amounts, key=lambda one: amounts[one].value):
        score, cost = scores[label].value, amounts[label].value
        if limits[0] <= score <= limits[1]:
            continue
        is_above = score > limits[1]
        near = (at for at, above in found if above == is_above and _share(ax, cost) - _share(ax, at) < NEAR)
        found.setdefault((next(near, cost), is_above), []).append(label)
    return found


def _share(ax: Axes, cost: float) -> float:
    """Where on the axis a cost lies, 0 at its left."""
    ax.get_xlim()  # else the axis may not know its limits yet
    place: float = ax.transAxes.inverted().transform(ax.transData.transform((cost, 0.0)))[0]
    return place


def room(scores: Mapping[str, float]) -> tuple[float, float]:
    """Limits of the axis that leave out what lies more than three interquartile ranges beyond the quartiles: a row that
    collapsed must not flatten the others."""
    values = sorted(scores.values())
    kept = values
    if len(values) > 4:
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        kept = [value for value in values if first - 3 * (third - first) <= value <= third + 3 * (third - first)]
    margin = 0.15 * (kept[-1] - kept[0]) or 1.0
    return kept[0] - margin, kept[-1] + margin


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Few ticks; logarithmic where the values span more than a factor of five, with 0 (nothing trained) at its left."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, SymmetricalLogLocator

    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 5 * min(positive):
        ax.xaxis.set_major_locator(MaxNLocator(4))
        return
    smallest = 10.0 ** math.floor(math.log10(min(positive)))
    ax.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    within = (1.0, 2.0, 5.0) if max(positive) < 30 * smallest else (1.0,)  # powers of ten alone leave one tick, or two
    ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=smallest, subs=within))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(left=-0.15 * smallest if min(values) == 0 else smallest)


def _costs_of(material: Material, session: CostRecord) -> dict[str, MethodCost]:
    """label -> what the session measured of that very configuration, as far as both know its fields."""
    found = {}
    for index, row in material.rows():
        for cost in session.methods:
            options = [
                hashed_options(one.run.method_config) for one in material.grid.members[index] if one.code == "OK"
            ]
            if cost.method == row.method and options and _agree(options[0], hashed_options(cost.config)):
                found[row.label] = cost
    return found


FREE = ("lr", "alpha_lr", "encoder_lr", "alpha_weight_decay")
"""Options that change no step's cost."""


def _agree(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    return all(first[name] == second[name] for name in (first.keys() & second.keys()) - set(FREE))


def _step(cost: MethodCost) -> Amount:
    values = [1e3 * one for one in cost.step_seconds["total"]]
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [middle] * 3
    return Amount(value=middle, low=low, high=high)


def _memory(cost: MethodCost) -> Amount:
    peak = cost.memory_bytes["allocated"] / 2**30
    return Amount(value=peak, low=peak, high=peak)


def _caption(material: Material, session: CostRecord | None, *, costs: bool) -> str:
    text = (
        "Score on the test images against cost. Vertical bars: 95 % t interval over seeds; dashed: Pareto front of the"
        " means. Trained parameters are exact; every row trains the mask decoder besides. An arrow with a score: a row beyond"
        " the axis; a bar that reaches the frame goes on beyond it."
    )
    if costs and session is not None:
        place = session.comparability
        shared = f"; the device was not exclusive ({session.shared})" if session.shared else ""
        text += (
            f" Step: median over {session.rounds} interleaved rounds, horizontal bars are quartiles; memory: peak of a step;"
            f" of cost session {session.key}-{session.session} on {place.device}, {place.image_size} px, batch"
            f" {place.batch}, {place.precision}{shared}."
        )
    else:
        text += " No cost record of these rules on this backbone, so neither time nor memory is shown (sam-peft cost)."
    return f"{text} {material.caption}"
