"""What the figures of evidence share: the rows that have some, on one benchmark, and how blocks lie on an axis."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.archive.measured import BlockEvidence, EvidenceRecord
from harness.comparison.evidence import comparable
from harness.comparison.grid import Row
from harness.report.figures.material import Material, NothingToDrawError
from harness.report.figures.style import GREY, Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class RowEvidence:
    """One row's evidence on one benchmark, by seed; ``shown`` is its label where room is short."""

    row: Row
    shown: str
    look: Look
    by_seed: dict[int, EvidenceRecord]

    @property
    def records(self) -> list[EvidenceRecord]:
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]

    def by_block(self, number: Callable[[BlockEvidence], float]) -> list[list[float]]:
        """One list a block, one number a seed."""
        return [[number(one.blocks[place]) for one in self.records] for place in range(len(self.records[0].blocks))]


def measured(material: Material) -> dict[str, list[RowEvidence]]:
    """benchmark -> the rows whose evidence is of the same images.

    Raises:
        NothingToDrawError: no run here has evidence.
    """
    look = looks(material.grid.rows)
    found: dict[str, list[RowEvidence]] = {}
    for benchmark in material.benchmarks:
        first: EvidenceRecord | None = None
        for index, row in material.rows():
            mine = {run.run.seed: material.evidence_of(run) for run in material.members(index, benchmark)}
            there = {seed: one for seed, one in mine.items() if one is not None and comparable([first or one, one])}
            if there:
                first = first or next(iter(there.values()))
                found.setdefault(benchmark, []).append(
                    RowEvidence(row=row, shown=material.short(row.label), look=look[row.label], by_seed=there)
                )
    if not found:
        raise NothingToDrawError("no run has evidence (sam-peft evidence --run KEY measures it)")
    return found


def plot_by_block(ax: Axes, mine: Sequence[RowEvidence], number: Callable[[BlockEvidence], float]) -> None:
    """A line a row, the mean over seeds, with a dash a seed; windowed blocks have small symbols."""
    for one in mine:
        values = one.by_block(number)
        means = [statistics.fmean(each) for each in values]
        style = one.look.line(linewidth=0.9)
        ax.plot(range(len(means)), means, **{**style, "marker": ""})
        for place, (mean, each) in enumerate(zip(means, values, strict=True)):
            size = 2.2 if one.records[0].blocks[place].window else 4.0
            ax.plot([place], [mean], **one.look.points(linestyle="none", markersize=size))
            if len(each) > 1:
                ax.plot([place] * len(each), each, linestyle="none", marker="_", color=one.look.colour, markersize=4)
    block_axis(ax)
    ax.grid(visible=True, axis="y")


def block_axis(ax: Axes) -> None:
    """Blocks are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block")


def power(value: float, _: Any = None) -> str:
    """A tick of a logarithmic axis as text: labels are never formulas here."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+00", "").replace("-", "−")


def name_rows(ax: Axes, mine: Sequence[RowEvidence]) -> None:
    """A legend of the rows."""
    for one in mine:
        ax.plot([], [], **one.look.line(linewidth=0.9), label=one.shown)
    ax.legend(loc="best", handlelength=2.2)


def zero(ax: Axes) -> None:
    """The frozen backbone's level."""
    ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)


def said(mine: Sequence[RowEvidence]) -> str:
    """Images, seeds, and what symbols are."""
    record = mine[0].records[0]
    seeds = "; ".join(f"{one.row.label}: {len(one.by_seed)}" for one in mine)
    windows = " Small symbols: windowed blocks, large: global." if any(one.window for one in record.blocks) else ""
    return (
        f"{len(record.images)} test images; seeds measured: {seeds}. Symbols: mean over seeds, dashes: seeds.{windows}"
    )
