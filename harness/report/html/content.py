"""What a results site holds before it is HTML: pages with their headlines, strips, tables, and what stands behind every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.archive.archive import Archive
from harness.comparison.cells import Cell, Grid
from harness.comparison.grids import Contrast
from harness.comparison.rows import Row
from harness.report.command import command_of
from harness.report.html.headline import Headline, Name
from harness.report.html.strip import Strip
from harness.report.page import Explained, Shown, Table
from harness.report.runs import behind
from harness.system.text import printable_line

Opened = Mapping[str, Any]
"""What a cell opens before its provenance: ``lanes``: [name, [[seed, number], …]] below each other on one axis; ``command``; ``unit``."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A table of a page.

    Args:
        name: unique in the page; its anchor and the name of its CSV.
        words: how many cells behind the first tell rows of one name apart; None to decide as `sam-peft show --cell` does.
        why: by row and column, the cell's place in `Behind.texts`.
    """

    name: str
    table: Table
    why: Sequence[Sequence[int]]
    words: int | None = None


class Behind:
    """What stands behind the cells of a page, each different text once and each different line once; ``opener``: what a cell opens
    before its provenance."""

    def __init__(self, archive: Archive, opener: Callable[[Explained], Opened | None] = lambda shown: None) -> None:
        self._archive, self._opener = archive, opener
        self._lines: dict[str, int] = {}
        self._texts: dict[tuple[int, ...], int] = {}
        self._places: dict[int, tuple[Explained, int]] = {}
        self.opened: dict[int, Opened] = {}  # place in `texts` -> what is shown before it

    def placed(self, table: Table, *, name: str, words: int | None = None) -> Placed:
        why = [[self.place_of(cell) for cell in line.cells] for line in table.rows]
        return Placed(name=name, table=table, why=why, words=words)

    def place_of(self, cell: Shown) -> int:
        """Where its explanation stands in `texts`."""
        if cell.of is not None and id(cell.of) in self._places:  # the cells of a row often show the same
            return self._places[id(cell.of)][1]
        lines = tuple(
            self._lines.setdefault(printable_line(line), len(self._lines)) for line in behind(cell, self._archive)
        )
        place = self._texts.setdefault(lines, len(self._texts))
        if cell.of is not None:
            self._places[id(cell.of)] = (cell.of, place)  # kept alive, so that the id stays its own
            if opened := self._opener(cell.of):
                self.opened[place] = opened
        return place

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """Of every explained cell the places of its lines in `lines`."""
        return list(self._texts)

    @property
    def lines(self) -> list[str]:
        return list(self._lines)


def opener(
    grids: Iterable[Grid], names: Mapping[Row, Name], baselines: Mapping[Grid, Row]
) -> Callable[[Explained], Opened | None]:
    """A function from what a cell of these grids shows to what that opens; None where it has no seeds."""
    grid_of = {row: grid for grid in grids for row in grid.rows}

    def lane(cell: Cell) -> tuple[str, list[tuple[int, float]]]:
        return names[cell.row].text, [(seed, round(100 * cell.values[seed], 3)) for seed in cell.seeds]

    def opened(shown: Explained) -> Opened | None:
        if isinstance(shown, Contrast):
            cell, *others = shown.difference.first, shown.difference.second
        elif isinstance(shown, Cell) and shown.row in grid_of:
            grid, cell = grid_of[shown.row], shown
            base = baselines[grid]
            others = [grid.cells[base, cell.column]] if base is not cell.row and cell.column in grid.columns else []
        else:
            return None
        unit = f"{cell.column.measure.heading} on {cell.column.benchmark_title} (%), a dot a seed"
        return {"lanes": [*map(lane, (cell, *others))], "unit": unit, "command": command_of(cell.records)}

    return opened


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure that `sam-peft figures` wrote: the SVG compressed by gzip, as base64, and its size in CSS pixels."""

    title: str
    caption: str
    packed: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """The scores of one set of rules.

    Args:
        name: unique in the page.
        title: what tells it from the other parts.
        why: by row and column of the leaderboard, the cell's place in `Behind.texts`.
        anchors: by row and column, what a link to the cell ends in.
    """

    name: str
    title: str
    headline: Headline
    why: Sequence[Sequence[int]]
    anchors: Sequence[Sequence[str]]
    strips: Sequence[Strip] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tables that are folded together, with lines above them."""

    name: str
    title: str
    tables: Sequence[Placed] = ()
    said: Sequence[str] = ()
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class SitePage:
    """One page.

    Args:
        name: of its file.
        question: its heading.
        verdict: the answer in at most 40 words.
        facts: of the page, short.
        parts: what was compared; the first is its first screen.
        methods, benchmarks, metrics: choices of the filters, with their titles.
        copies: name of a format -> text to copy.
        csv: its numbers, as `sam-peft tables --format csv` writes them.
        order: of pages in the index, smallest first.
    """

    name: str
    question: str
    verdict: str
    facts: Sequence[str] = ()
    note: str = ""
    parts: Sequence[Part] = ()
    groups: Sequence[Group] = ()
    pictures: Sequence[Picture] = ()
    methods: Mapping[str, str] = field(default_factory=dict)
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    behind: Behind
    copies: Mapping[str, str] = field(default_factory=dict)
    csv: str = ""
    order: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Site:
    """All pages; short facts of the whole folder; the files that no table counts, with the reason."""

    facts: Sequence[str]
    pages: Sequence[SitePage]
    skipped: Sequence[str] = ()
