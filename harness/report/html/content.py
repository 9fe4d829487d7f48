"""What a report holds before it is HTML: tables with tags for filters, pictures, and what stands behind every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.page import Mark


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What a row or a column belongs to, for filters; empty where it belongs to none, so that no filter hides it."""

    method: str = ""
    benchmark: str = ""
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column's heading.

    Args:
        words: it holds words, left-aligned and sorted by the alphabet, and no numbers.
    """

    title: str
    tags: Tags
    words: bool


@dataclass(frozen=True, kw_only=True)
class PageCell:
    """Args:
    why: its place in `Content.behind`.
    """

    text: str
    mark: Mark
    why: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row.

    Args:
        label: what `sam-peft why` finds it by.
    """

    label: str
    tags: Tags
    cells: Sequence[PageCell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Args:
    name: unique in the report; its anchor and the name of its CSV.
    level: 3 or 4, of its heading.
    words: how many cells behind the first tell rows of one name apart; None to decide as `sam-peft why` does.
    """

    name: str
    heading: str
    level: int
    above: Sequence[str]
    columns: Sequence[Head]
    rows: Sequence[Line]
    below: Sequence[str]
    words: int | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure.

    Args:
        title: unique in the report.
        about: its kind, a name of `FIGURES`.
        packed: the SVG, compressed by gzip, as base64: figures of a large comparison are several megabytes of text.
        width, height: in CSS pixels.
    """

    title: str
    about: str
    caption: str
    packed: str
    width: int
    height: int
    tags: Tags


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the tables of one set of rules say.

    Args:
        ranks: whether anything is compared there.
    """

    heading: str
    sentences: Sequence[str]
    ranks: bool


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
    tables: Sequence[Table]
    foot: Sequence[str]
    csv: str


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that the report shows.

    Args:
        facts: of the whole folder, short.
        behind: of every explained cell the places of its lines in ``lines``.
        skipped: files that no table counts, with the reason.
        left_out: figures that there was no room for, and why others were not drawn.
    """

    title: str
    facts: Sequence[str]
    answers: Sequence[Answer]
    compared: Table
    groups: Sequence[PageTables]
    numbers: Table
    gaps: Table
    costs: Sequence[PageTables]
    claims: Table
    claims_said: Sequence[str]
    methods: Sequence[str]
    benchmarks: Mapping[str, str]
    metrics: Mapping[str, str]
    behind: Sequence[Sequence[int]]
    lines: Sequence[str]
    pictures: Sequence[Picture] = ()
    masks: Sequence[Picture] = ()
    skipped: Sequence[str] = ()
    left_out: Sequence[str] = field(default_factory=tuple)
