"""A page of tables before it is written: text cells that know what stands behind them, and numbers as tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from harness.comparison.names import BENCHMARK_GROUPS

if TYPE_CHECKING:
    from harness.comparison.provenance import Folder

Format = Literal["markdown", "latex", "csv", "text", "json"]
Mark = Literal["", "best", "tied", "second"]
SUFFIX: Mapping[str, str] = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}

Behind = Callable[["Folder"], Sequence[str]]
"""Explains a cell from a results folder, line by line."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One cell.

    Args:
        text: as printed.
        mark: best of its column, not distinguishable from the best, or the best of the rest.
        name: what `sam-peft why` finds a row by, where ``text`` carries signs.
        behind: what stands behind it.
    """

    text: str
    mark: Mark = ""
    name: str = ""
    behind: Behind | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading, lines above the table, the table, lines below it.

    Args:
        columns: headings; the first column names the rows.
        aliases: heading -> other names of that column, such as ``kvasir.s_measure``.
        level: 2 for a table of its own, 3 for one that belongs to the block before it.
    """

    heading: str
    above: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Text]] = ()
    below: Sequence[str] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    level: int = 2

    def is_words(self, place: int) -> bool:
        """Whether a column holds words and no numbers: rows' names, verdicts, what a number is of."""
        cells = [row[place].text for row in self.rows]
        return place == 0 or (not self._benchmark(place) and bool(cells) and all(text[:1].isalpha() for text in cells))

    def parts(self, widths: Sequence[int], *, most: int) -> list[list[int]]:
        """Columns of each part of a table that is wider than ``most``, the first column in each.

        Parts are about equally wide. The columns of a group of benchmarks stay together where they fit, else those of a
        benchmark.

        Args:
            widths: of the columns, with what stands between them.
        """
        room = most - widths[0]
        units = _units(range(1, len(widths)), (self._group, self._benchmark), widths, room)
        fewest = len(_packed(units, widths, room))
        while room > 1 and len(_packed(units, widths, room - 1)) == fewest:
            room -= 1
        return [[0, *part] for part in _packed(units, widths, room)] or [[0]]

    def _group(self, place: int) -> str:
        benchmark = self._benchmark(place)
        return BENCHMARK_GROUPS.get(benchmark, benchmark)

    def _benchmark(self, place: int) -> str:
        names = self.aliases.get(self.columns[place], ())
        return names[0].partition(".")[0] if names else ""


def _units(
    places: Iterable[int], kinds: Sequence[Callable[[int], str]], widths: Sequence[int], room: int
) -> list[list[int]]:
    """Neighbours of one kind where they fit, else those of the next kind; columns without one are alone."""
    if not kinds:
        return [[place] for place in places]
    found = []
    for _, members in groupby(places, key=lambda place: kinds[0](place) or place):
        unit = list(members)
        found += [unit] if _wide(unit, widths) <= room else _units(unit, kinds[1:], widths, room)
    return found


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
        blocks: tables in the order of what they say.
        foot: how to read all of them.
        numbers: a row a number, for CSV; keys are columns, and every row has the same.
        note: what must be known before anything is read.
        verb: what writes it.
    """

    title: str
    lead: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    foot: Sequence[str] = ()
    numbers: Sequence[Mapping[str, str]] = ()
    note: str = ""
    verb: str = "tables"

    @property
    def is_marked(self) -> bool:
        return any(cell.mark for block in self.blocks for row in block.rows for cell in row)


def legend(page: Page, *, best: str, tied: str, second: str) -> list[str]:
    """What marks mean, in a format's own signs for them; nothing where no cell has one."""
    if not page.is_marked:
        return []
    return [
        f"{best}: best mean among rows with at least two seeds and all planned ones in; rows of other seeds are compared on"
        f" those that both have. {tied}: cannot be told from it (0 lies in the 95 % interval of the paired difference)."
        f" {second}: best of the rest."
    ]


def texts(words: Sequence[str], *, behind: Behind | None = None) -> list[Text]:
    """A row of plain cells with one thing behind them all."""
    return [Text(text=word, behind=behind) for word in words]
