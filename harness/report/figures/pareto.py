"""Score against cost: trained parameters of the runs, step time and memory of cost records, each with its Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, SymmetricalLogLocator

from harness.archive.measured import CostRecord, MethodCost
from harness.comparison.cells import Column
from harness.comparison.rows import Row
from harness.comparison.step_costs import costs_of, session_for
from harness.report.figures.material import Drawing, Material, on_each_benchmark, score_label
from harness.report.figures.style import COLUMN, GREY, PAGE, limits, looks, name_below, new_figure
from harness.statistics import Interval, of_folds

NEAR = 0.12
"""Share of an axis within which what is said of two rows would overlap."""
Amounts = Mapping[Row, Interval]
"""Row -> value with the interval around it, equal to it where it does not vary."""


def pareto(material: Material) -> list[Drawing]:
    session = session_for(material.grid)
    lacking = "no benchmark has two rows with a score and a count of parameters"
    return on_each_benchmark(material, lambda column: _on(material, column, session), lacking=lacking)


def front(points: Mapping[Row, tuple[float, float]]) -> list[Row]:
    """Rows on the Pareto front of (cost, score) by rising cost: no other costs at most as much and scores at least as much."""
    best: list[Row] = []
    for row in sorted(points, key=lambda row: (points[row][0], -points[row][1], row.label)):
        if not best or points[row][1] > points[best[-1]][1]:
            best.append(row)
    return best


def _on(material: Material, column: Column, session: CostRecord | None) -> Drawing | None:
    scores: dict[Row, Interval] = {}
    parameters: dict[Row, Interval] = {}
    for row in material.rows():
        cell = material.grid.cells[row, column]
        runs = row.finished(column.benchmark)
        counts = {run.parameters["encoder"] for run in runs if "encoder" in run.parameters}
        if not cell.complete or not counts:
            continue
        estimate = of_folds([100 * value for value in cell.by_seed], test_share=cell.test_share)
        scores[row] = estimate.interval() or Interval.exact(estimate.mean)
        parameters[row] = Interval.exact(max(counts) / 1e6)
    if len(scores) < 2:
        return None
    amounts_by_title: dict[str, Amounts] = {"parameters trained in the encoder (M)": parameters}
    if session is not None:
        costs = {row: cost for row, cost in costs_of(material.grid, session).items() if row in scores}
        if len(costs) > 1:
            amounts_by_title["training step (ms)"] = {row: _step(cost) for row, cost in costs.items()}
            memory = {row: Interval.exact(cost.memory_bytes["allocated"] / 2**30) for row, cost in costs.items()}
            amounts_by_title["peak memory (GiB)"] = memory
    single = len(amounts_by_title) == 1
    figure = new_figure(COLUMN if single else PAGE, 2.4 if single else 2.3)
    axes = figure.subplots(1, len(amounts_by_title), squeeze=False, sharey=True)[0]
    ends = limits([score.estimate for score in scores.values()], margin=0.15)
    for ax, (title, amounts) in zip(axes, amounts_by_title.items(), strict=True):
        line = front({row: (amount.estimate, column.sign * scores[row].estimate) for row, amount in amounts.items()})
        _draw(ax, material, amounts, scores, line, ends)
        ax.set_xlabel(title)
    axes[0].set_ylabel(score_label(column))
    axes[0].set_ylim(*ends)
    name_below(figure, axes[0], most=3 if single else 6)
    over = "splits, one a seed" if any(material.grid.cells[row, column].test_share for row in scores) else "seeds"
    return Drawing(figure=figure, caption=_caption(material, over, None if single else session))


def _draw(
    ax: Axes, material: Material, amounts: Amounts, scores: Amounts, line: Sequence[Row], ends: tuple[float, float]
) -> None:
    look = looks(material.grid.rows)
    ax.step(
        [amounts[row].estimate for row in line], [scores[row].estimate for row in line],
        where="post", color=GREY, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1,
    )  # fmt: skip
    for row, cost in amounts.items():
        score = scores[row]
        ax.errorbar(
            cost.estimate, score.estimate, xerr=[[cost.estimate - cost.low], [cost.high - cost.estimate]],
            yerr=[[score.estimate - score.low], [score.high - score.estimate]], elinewidth=0.7,
            **look[row].points(label=material.short(row), zorder=3),
        )  # fmt: skip
    _scale(ax, [cost.estimate for cost in amounts.values()])
    for (cost_there, is_above), rows in _outside(ax, amounts, scores, ends).items():
        colour, place = look[rows[0]].colour, (cost_there, ends[is_above])
        inwards, side = (-1 if is_above else 1), (1 if _share(ax, cost_there) < 0.75 else -1)
        ax.annotate(
            "", place, xytext=(0, 11 * inwards), textcoords="offset points", zorder=5,
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        ax.annotate(  # beside the arrow, above whatever has the same cost
            ", ".join(f"{scores[row].estimate:.1f}" for row in rows), place,
            xytext=(4 * side, 3 * inwards), textcoords="offset points", ha="left" if side > 0 else "right",
            va="top" if is_above else "bottom", fontsize=5.5, color=colour, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.6},
        )  # fmt: skip
    ax.grid(visible=True)


def _outside(
    ax: Axes, amounts: Amounts, scores: Amounts, ends: tuple[float, float]
) -> dict[tuple[float, bool], list[Row]]:
    """(cost, whether above) -> the rows that the axis leaves out there; neighbours share a place."""
    places: dict[tuple[float, bool], list[Row]] = {}
    for row in sorted(amounts, key=lambda row: amounts[row].estimate):
        score, cost = scores[row].estimate, amounts[row].estimate
        if ends[0] <= score <= ends[1]:
            continue
        is_above = score > ends[1]
        near = (at for at, above in places if above == is_above and _share(ax, cost) - _share(ax, at) < NEAR)
        places.setdefault((next(near, cost), is_above), []).append(row)
    return places


def _share(ax: Axes, cost: float) -> float:
    """Where on the axis a cost lies, 0 at its left."""
    ax.get_xlim()  # else the axis may not know its limits yet
    place: float = ax.transAxes.inverted().transform(ax.transData.transform((cost, 0.0)))[0]
    return place


def _scale(ax: Axes, values: Sequence[float]) -> None:
    """Few ticks; logarithmic where the values span more than a factor of five, with 0 (nothing trained) at its left."""
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


def _step(cost: MethodCost) -> Interval:
    values = [1e3 * seconds for seconds in cost.step_seconds["total"]]
    middle = statistics.median(values)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [middle] * 3
    return Interval(estimate=middle, low=low, high=high, n=len(values))


def _caption(material: Material, over: str, session: CostRecord | None) -> str:
    text = (
        f"Score on the test images against cost. Vertical bars: 95 % t interval over {over}; dashed: Pareto front of the"
        " means. Trained parameters are exact; every row trains the mask decoder besides. An arrow with a score: a row beyond"
        " the axis; a bar that reaches the frame goes on beyond it."
    )
    if session is not None:
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
