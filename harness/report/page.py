"""A page before it is written: tables whose cells are numbers, not text. `harness.report.formats` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.comparison.scores import Cell, Difference, Mark

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["markdown", "latex", "csv", "text", "json"]
SUFFIX: Mapping[str, str] = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number, or a range of two, with how it is printed; None where it is not known.

    Args:
        form: as in ``f"{value:{form}}"``.
        low, high: an interval or quartiles, printed in brackets behind it.
        most: the largest of several values, of which ``value`` is the smallest.
    """

    value: float | None
    form: str = ".1f"
    low: float | None = None
    high: float | None = None
    most: float | None = None

    @classmethod
    def span(cls, values: Iterable[float | None], *, unit: float = 1, form: str = ".0f") -> Number:
        """Of the values that are known, in units of ``unit``."""
        known = sorted(value / unit for value in values if value is not None)
        return cls(value=known[0] if known else None, most=known[-1] if known else None, form=form)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of a row on a column, and how they stand to those of other rows."""

    cell: Cell
    mark: Mark = ""
    code: str = ""


Value = str | Number | Score | Difference | None
"""What a cell holds; None where a row has no such number."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column's heading; ``words``: it holds names and no numbers."""

    title: str
    words: bool = False


def heads(*titles: str, words: Iterable[str] = ()) -> list[Head]:
    """Headings; ``words`` are those over words. The first column names the rows."""
    over_words = {titles[0], *words}
    return [Head(title=title, words=title in over_words) for title in titles]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, lines above the table, the table, lines below it.

    Args:
        columns: the first names the rows; none where there are words alone.
        rows: a value a column.
        level: 2 for a table of its own, 3 for one that belongs to the table before it.
    """

    heading: str
    above: Sequence[str] = ()
    columns: Sequence[Head] = ()
    rows: Sequence[Sequence[Value]] = ()
    below: Sequence[str] = ()
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Page:
    """What one file shows.

    Args:
        note: what must be known before anything is read.
        foot: how to read all tables.
        numbers: what CSV holds: a number a line.
        verb: what writes it.
        with_csv: whether its numbers lie beside it as a file.
    """

    title: str
    note: str = ""
    tables: Sequence[Table] = ()
    foot: Sequence[str] = ()
    numbers: pd.DataFrame | None = None
    verb: str = "tables"
    with_csv: bool = False

    @property
    def marks(self) -> set[Mark]:
        return {
            value.mark for table in self.tables for row in table.rows for value in row if isinstance(value, Score)
        } - {""}
