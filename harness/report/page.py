"""A page before it is written: tables of cells that know what stands behind them, and numbers as tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

from harness.archive.archive import Archive
from harness.comparison.cells import Column, Mark
from harness.comparison.names import BENCHMARK_GROUPS
from harness.comparison.rows import Row
from harness.report.titles import Titled

Format = Literal["markdown", "latex", "csv", "text", "json"]
SUFFIX: Mapping[str, str] = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


class Explained(Protocol):
    """What a cell shows: it says what stands behind it, line by line."""

    def why(self, archive: Archive) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """Lines that are made when somebody asks for them."""

    lines: Callable[[], Sequence[str]]

    def why(self, archive: Archive) -> Sequence[str]:
        return self.lines()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One cell as printed, and what it shows."""

    text: str
    mark: Mark = ""
    of: Explained | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table.

    Args:
        label: what it is found by, where the first cell carries signs.
        method, benchmark, metric: what all of it belongs to, for filters; empty where it belongs to none.
    """

    label: str
    cells: Sequence[Shown]
    method: str = ""
    benchmark: str = ""
    metric: str = ""

    @classmethod
    def of(cls, texts: Sequence[str], of: Explained | None = None, *, label: str = "", **belongs: str) -> Line:
        """Plain cells with one thing behind them all."""
        return cls(label=label or texts[0], cells=[Shown(text=text, of=of) for text in texts], **belongs)

    @classmethod
    def of_row(cls, row: Row, texts: Sequence[str], of: Explained, *, on: Column | None = None) -> Line:
        """The row's name and what is said of it, on one column where there is one."""
        tags = {"benchmark": on.benchmark, "metric": on.metric} if on else {}
        return cls.of([row.shown, *texts], of, label=row.label, method=row.label, **tags)


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column's heading.

    Args:
        words: it holds words and no numbers: names, verdicts, what a number is of.
        benchmark, split, metric: of a column of scores.
    """

    title: str
    words: bool = False
    benchmark: str = ""
    split: str = ""
    metric: str = ""

    @classmethod
    def of_column(cls, column: Column, beside: Sequence[Column]) -> Head:
        return cls(title=column.heading(beside), benchmark=column.benchmark, split=column.split, metric=column.metric)

    @property
    def names(self) -> set[str]:
        """What a user may call it: its title, ``kvasir.s_measure``, ``trans10k_v1.easy.miou``."""
        short = {f"{self.benchmark}.{self.metric}"} if self.benchmark else set()
        return {self.title} | short | ({f"{self.benchmark}.{self.split}.{self.metric}"} if self.split else set())


def heads(*titles: str, words: Iterable[str] = ()) -> list[Head]:
    """Headings; ``words`` are those over words. The first column names the rows."""
    over_words = {titles[0], *words}
    return [Head(title=title, words=title in over_words) for title in titles]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, lines above the table, the table, lines below it.

    Args:
        columns: the first names the rows; none where there are words alone.
        level: 2 for a table of its own, 3 for one that belongs to the table before it.
    """

    heading: str
    above: Sequence[str] = ()
    columns: Sequence[Head] = ()
    rows: Sequence[Line] = ()
    below: Sequence[str] = ()
    level: int = 2

    def parts(self, widths: Sequence[int], *, most: int) -> list[list[int]]:
        """Columns of each part of a table that is wider than ``most``, the first column in each.

        Parts are about equally wide. The columns of a group of benchmarks stay together where they fit, else those of a
        benchmark.

        Args:
            widths: of the columns, with what stands between them.
        """
        room = most - widths[0]
        on = [column.benchmark for column in self.columns]
        kinds = (lambda place: BENCHMARK_GROUPS.get(on[place], on[place]), lambda place: on[place])
        units = _units(range(1, len(widths)), kinds, widths, room)
        fewest = len(_packed(units, widths, room))
        while room > 1 and len(_packed(units, widths, room - 1)) == fewest:
            room -= 1
        return [[0, *part] for part in _packed(units, widths, room)] or [[0]]


def _units(
    places: Iterable[int], kinds: Sequence[Callable[[int], str]], widths: Sequence[int], room: int
) -> list[list[int]]:
    """Neighbours of one kind where they fit, else those of the next kind; columns without one are alone."""
    if not kinds:
        return [[place] for place in places]
    units = []
    for _, members in groupby(places, key=lambda place: kinds[0](place) or place):
        unit = list(members)
        units += [unit] if _wide(unit, widths) <= room else _units(unit, kinds[1:], widths, room)
    return units


def _wide(places: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[place] for place in places)


def _packed(groups: Sequence[list[int]], widths: Sequence[int], room: int) -> list[list[int]]:
    """Groups in their order, as many in a part as fit; one that is too wide has a part of its own."""
    parts: list[list[int]] = []
    for group in groups:
        if parts and _wide(parts[-1], widths) + _wide(group, widths) <= room:
            parts[-1] += group
        else:
            parts.append(list(group))
    return parts


@dataclass(frozen=True, kw_only=True)
class Page:
    """What one file shows.

    Args:
        lead: sentences before everything else: what the tables say.
        tables: in the order of what they say.
        foot: how to read all of them.
        numbers: a row a number, for CSV; keys are columns, and every row has the same.
        grids: the cells that its tables of scores show.
        note: what must be known before anything is read.
        verb: what writes it.
    """

    title: str
    lead: Sequence[str] = ()
    tables: Sequence[Table] = ()
    foot: Sequence[str] = ()
    numbers: Sequence[Mapping[str, str]] = ()
    grids: Sequence[Titled] = ()
    note: str = ""
    verb: str = "tables"

    def legend(self, *, best: str, tied: str, second: str) -> list[str]:
        """What marks mean, in a format's own signs for them; nothing where no cell has one."""
        if not any(cell.mark for table in self.tables for line in table.rows for cell in line.cells):
            return []
        return [
            f"{best}: best mean among rows with at least two seeds and all planned ones in; rows of other seeds are compared"
            f" on those that both have, and none is where one with a gap leads or ties on these. {tied}: not significantly different"
            f" from it (0 lies in the 95 % interval of the paired difference). {second}: best of the rest."
        ]
