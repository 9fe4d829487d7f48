"""What a report holds before it is HTML: tables, pictures, and what stands behind every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.archive.archive import Archive
from harness.report.answers import Answer
from harness.report.page import Explained, Shown, Table
from harness.report.why import behind
from harness.system.text import printable_line


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A table of the report.

    Args:
        name: unique in the report; its anchor and the name of its CSV.
        level: 3 or 4, of its heading.
        words: how many cells behind the first tell rows of one name apart; None to decide as `sam-peft show --cell` does.
        why: by row and column, the cell's place in `Content.behind`.
    """

    name: str
    table: Table
    level: int
    why: Sequence[Sequence[int]]
    words: int | None = None


class Behind:
    """What stands behind cells, each different text once and each different line once.

    Args:
        archive: the results folder that the cells are of.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._lines: dict[str, int] = {}
        self._texts: dict[tuple[int, ...], int] = {}
        self._places: dict[int, tuple[Explained, int]] = {}

    def placed(self, table: Table, *, name: str, words: int | None = None) -> Placed:
        why = [[self._place_of(cell) for cell in line.cells] for line in table.rows]
        return Placed(name=name, table=table, level=table.level + 1, why=why, words=words)

    def _place_of(self, cell: Shown) -> int:
        """Where its explanation stands in `texts`."""
        if cell.of is not None and id(cell.of) in self._places:  # the cells of a row often show the same
            return self._places[id(cell.of)][1]
        lines = tuple(
            self._lines.setdefault(printable_line(line), len(self._lines)) for line in behind(cell, self._archive)
        )
        place = self._texts.setdefault(lines, len(self._texts))
        if cell.of is not None:
            self._places[id(cell.of)] = (cell.of, place)  # kept alive, so that the id stays its own
        return place

    @property
    def texts(self) -> list[tuple[int, ...]]:
        return list(self._texts)

    @property
    def lines(self) -> list[str]:
        return list(self._lines)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure.

    Args:
        title: unique in the report.
        about: its kind, a name of `FIGURES`.
        packed: the SVG, compressed by gzip, as base64: figures of a large comparison are several megabytes of text.
        width, height: in CSS pixels.
        benchmark: whose it is, empty where it shows several.
    """

    title: str
    about: str
    caption: str
    packed: str
    width: int
    height: int
    benchmark: str = ""


@dataclass(frozen=True, kw_only=True)
class PageTables:
    """The tables of one page.

    Args:
        name: of its file and of its CSV.
        note: what must be known before anything is read.
        foot: how to read all of its tables.
        csv: its numbers as `sam-peft tables --format csv` writes them.
    """

    name: str
    title: str
    note: str
    tables: Sequence[Placed]
    foot: Sequence[str]
    csv: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the report shows.

    Args:
        facts: of the whole folder, short.
        methods, benchmarks, metrics: choices of the filters, the latter two with their titles.
        behind: of every explained cell the places of its lines in ``lines``.
        skipped: files that no table counts, with the reason.
        left_out: figures that there was no room for, and why others were not drawn.
    """

    title: str
    facts: Sequence[str]
    answers: Sequence[Answer]
    compared: Placed
    groups: Sequence[PageTables]
    numbers: Placed
    gaps: Placed
    costs: Sequence[PageTables]
    claims: Placed
    claims_said: Sequence[str]
    methods: Sequence[str]
    benchmarks: Mapping[str, str]
    metrics: Mapping[str, str]
    behind: Sequence[Sequence[int]]
    lines: Sequence[str]
    pictures: Sequence[Picture] = ()
    masks: Sequence[Picture] = ()
    skipped: Sequence[str] = ()
    left_out: Sequence[str] = ()
