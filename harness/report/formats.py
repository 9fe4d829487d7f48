"""Pages of tables whose cells are numbers, and their writer: markdown, LaTeX, tidy CSV, JSON, or text for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness.comparison.differences import Difference
from harness.comparison.grid import DECIMALS, Cell, Mark
from harness.system.text import csv_cell, markdown, printable, printable_line

if TYPE_CHECKING:
    import pandas as pd


Format = Literal["markdown", "latex", "csv", "text", "json"]
SUFFIX: Mapping[str, str] = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number, or a range of two, with its format; None where it is not known.

    Args:
        form: as in ``f"{value:{form}}"``.
        low, high: an interval or quartiles, printed in brackets after it.
        most: the largest of several values, of which ``value`` is the smallest.
    """

    value: float | None
    form: str = ".1f"
    low: float | None = None
    high: float | None = None
    most: float | None = None

    @classmethod
    def span(cls, values: Iterable[float | None], *, unit: float = 1, form: str = ".0f") -> Number:
        """The range of the known values, in units of ``unit``."""
        known = sorted(value / unit for value in values if value is not None)
        return cls(value=known[0] if known else None, most=known[-1] if known else None, form=form)


class Score(NamedTuple):
    """The scores of a row on a column, with their mark among other rows."""

    cell: Cell
    mark: Mark = ""


Value = str | Number | Score | Difference | None
"""The content of a cell; None where a row has no such number."""


class Head(NamedTuple):
    """The heading of a column; ``words``: the column has names, not numbers."""

    title: str
    words: bool = False


def heads(*titles: str, words: Iterable[str] = ()) -> list[Head]:
    """Headings; ``words`` are those of columns of words. The first column names the rows."""
    over_words = {titles[0], *words}
    return [Head(title=title, words=title in over_words) for title in titles]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, lines above the table, the table, lines below it.

    Args:
        columns: the first names the rows; none for lines of text alone.
        rows: a value for each column.
        level: 2 for an independent table, 3 for one that belongs to the table before it.
    """

    heading: str
    above: Sequence[str] = ()
    columns: Sequence[Head] = ()
    rows: Sequence[Sequence[Value]] = ()
    below: Sequence[str] = ()
    level: int = 2

    @property
    def marks(self) -> set[Mark]:
        return {value.mark for row in self.rows for value in row if isinstance(value, Score)} - {""}


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of tables: the content of one file.

    Args:
        note: a warning above all tables.
        foot: how to read all tables.
        numbers: the content as CSV, one number per line.
        with_csv: whether its numbers are also written as a CSV file.
    """

    title: str
    note: str = ""
    tables: Sequence[Table] = ()
    foot: Sequence[str] = ()
    numbers: pd.DataFrame | None = None
    with_csv: bool = False

    @property
    def marks(self) -> set[Mark]:
        return set().union(*(table.marks for table in self.tables))


DASH = "–"


def write(page: Page, *, style: Format = "markdown", width: int = 100) -> str:
    """The page as one string that ends in a newline; ``width`` is that of a terminal, for ``text``."""
    if style == "text":
        return as_text(page, width=width)
    if style == "csv":
        return "" if page.numbers is None else as_spreadsheet(page.numbers)
    if style == "json":
        return json.dumps(as_data(page)) + "\n"
    return as_latex(page) if style == "latex" else as_markdown(page)


def text_of(value: Value) -> str:
    """``91.2 ± 0.3 (3)``, ``OOM (2/3)``, ``+0.52 [−0.20, +1.23]``, ``22.7 [21.9, 23.1]``, ``0.02–0.03``; a dash for an unknown value."""
    if isinstance(value, Score):
        return _score(value)
    if isinstance(value, Difference):
        if value.low is None or value.high is None:
            return f"{value.mean:+z.2f}"
        return f"{value.mean:+z.2f} [{value.low:+.2f}, {value.high:+.2f}]"
    if isinstance(value, Number):
        if value.value is None:
            return DASH
        texts = [f"{number:{value.form}}" for number in (value.value, value.most) if number is not None]
        bounds = (
            "" if value.low is None or value.high is None else f" [{value.low:{value.form}}, {value.high:{value.form}}]"
        )
        return "–".join(dict.fromkeys(texts)) + bounds
    return DASH if value is None else value


def _score(score: Score) -> str:
    cell = score.cell
    if not cell.planned:
        return DASH
    if cell.codes:
        return f"{cell.code} ({len(cell.seeds)}/{len(cell.planned)})"
    spread = f" ± {100 * cell.sd:.{DECIMALS}f}" if cell.sd is not None else ""
    return " ".join([f"{100 * cell.mean:.{DECIMALS}f}{spread} ({cell.n})", *cell.flags])


def as_data(page: Page) -> dict[str, Any]:
    """Title, tables (cells as printed, by column) and numbers, ready for JSON."""
    tables = [
        {
            "heading": table.heading,
            "above": list(table.above),
            "rows": [
                {head.title: text_of(value) for head, value in zip(table.columns, row, strict=True)}
                for row in table.rows
            ],
            "below": list(table.below),
        }
        for table in page.tables
    ]
    numbers = [] if page.numbers is None else json.loads(page.numbers.to_json(orient="records", double_precision=15))
    return {"title": page.title, "note": page.note, "tables": tables, "foot": list(page.foot), "numbers": numbers}


def as_spreadsheet(numbers: pd.DataFrame) -> str:
    """A frame as CSV. No text is a formula in a spreadsheet."""
    texts = numbers.select_dtypes(include=["object", "string"]).columns
    safe = numbers[texts].map(lambda value: csv_cell(value) if isinstance(value, str) else value)
    return str(numbers.assign(**safe).to_csv(index=False, lineterminator="\n"))


def as_markdown(page: Page) -> str:
    lines = [f"# {markdown(page.title)}", "", "<!-- written by `sam-peft tables`; edit no number here -->"]
    if page.note:
        lines += ["", f"*{markdown(page.note)}*"]
    marks = {"": "{}", "best": "**{}**", "tied": "{} ≈"}
    for table in page.tables:
        lines += ["", f"{'#' * table.level} {markdown(table.heading)}", ""]
        lines += [f"- {markdown(line)}" for line in table.above] + ([""] if table.above else [])
        if table.columns:
            lines.append("| " + " | ".join(markdown(head.title) for head in table.columns) + " |")
            lines.append("|" + "|".join("---" if head.words else "---:" for head in table.columns) + "|")
            for row in table.rows:
                lines.append(
                    "| " + " | ".join(marks[_mark(value)].format(markdown(text_of(value))) for value in row) + " |"
                )
        lines += ([""] if table.below else []) + [f"{markdown(line)}  " for line in table.below]
    foot = [*page.foot, *_legend(page, best="Bold", tied="≈")]
    lines += ["", "---", "", *(f"{markdown(line)}  " for line in foot)] if foot else []
    return "\n".join(lines).rstrip() + "\n"


def _mark(value: Value) -> str:
    return value.mark if isinstance(value, Score) else ""


def _legend(page: Page, *, best: str, tied: str) -> list[str]:
    """The meaning of marks, in a format's own signs; nothing where no cell has one."""
    if not page.marks:
        return []
    return [
        f"{best}: the best row of its column. {tied}: not significantly different from it (0 lies in the 95 % interval of the difference,"
        " paired by seed and image). Single runs and rows with a gap are not ranked."
    ]


_MATHS = {
    "±": "pm", "↑": "uparrow", "↓": "downarrow", "‡": "ddagger", "·": "cdot", "≈": "approx", "≤": "le", "≥": "ge", "×": "times",
    "Δ": "Delta", "α": "alpha", "β": "beta", "γ": "gamma", "φ": "varphi", "ω": "omega", "σ": "sigma", "τ": "tau",
}  # fmt: skip
"""Commands of math mode."""
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        **{
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
            "–": "--",
            "…": r"\ldots{}",
            "−": "$-$",
            "§": r"\S{}",
        },
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''"},
        **{sign: rf"$\{name}$" for sign, name in _MATHS.items()},
    }
)
"""Characters that are special in LaTeX, or missing in some fonts."""


def as_latex(page: Page) -> str:
    """A table environment for each table; needs booktabs and graphicx. A table that is wider than the line is scaled down."""
    lines = [
        r"% written by `sam-peft tables --format latex`; needs \usepackage{booktabs,graphicx}",
        f"% {printable_line(page.title)}",
    ]
    marks = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"{} $\approx$"}
    notes = [*([page.note] if page.note else []), *page.foot, *_legend(page, best="Bold", tied="≈")]
    for table in page.tables:
        lines += ["", r"\begin{table}[htbp]", r"\centering", rf"\caption{{{tex(table.heading)}.}}"]
        if table.columns:
            sides = "".join("l" if head.words else "r" for head in table.columns)
            lines += [
                r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                rf"\begin{{tabular}}{{{sides}}}",
                r"\toprule",
            ]
            lines += [" & ".join(tex(head.title) for head in table.columns) + r" \\", r"\midrule"]
            lines += [
                " & ".join(marks[_mark(value)].format(tex(text_of(value))) for value in row) + r" \\"
                for row in table.rows
            ]
            lines += [r"\bottomrule", r"\end{tabular}}"]
        lines += [r"\par\raggedright\footnotesize " + tex(line) for line in (*table.above, *table.below)]
        lines.append(r"\end{table}")
    lines += [line for note in notes for line in ("", r"\noindent{\footnotesize " + tex(note) + "}")]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """The text as one line, escaped for TeX."""
    return printable_line(text).translate(_TEX)


def as_text(page: Page, *, width: int) -> str:
    """For a terminal: columns aligned, a table that is too wide split between its columns, long lines wrapped."""
    lines = [page.title, "=" * min(width, len(page.title)), *(_wrapped(page.note, width) if page.note else [])]
    for table in page.tables:
        lines += ["", *_wrapped(table.heading, width), "-" * min(width, len(table.heading))]
        lines += [part for line in table.above for part in _wrapped(line, width)]
        lines += ["", *fitted(table, width=width)] if table.columns else []
        lines += ["", *(part for line in table.below for part in _wrapped(line, width))] if table.below else []
    foot = [*page.foot, *_legend(page, best="*", tied="≈")]
    lines += ["", *(part for line in foot for part in _wrapped(line, width))] if foot else []
    return printable("\n".join(line.rstrip() for line in lines)) + "\n"


SIGNS = {"": "  ", "best": " *", "tied": " ≈"}


def fitted(table: Table, *, width: int) -> list[str]:
    """The lines of a table. One that is wider than ``width`` is split between its columns, with the rows' names in every part. ``*`` is
    bold; a column with a mark has room for it in every row."""
    import pandas as pd

    texts: list[list[str]] = []
    for head, values in zip(table.columns, zip(*table.rows, strict=True), strict=True):
        has_marks = any(map(_mark, values))
        column = [text_of(value) + SIGNS[_mark(value)] * has_marks for value in values]
        texts.append([text.ljust(max(map(len, column))) if head.words else text for text in column])
    names, *others = texts
    frame = pd.DataFrame(dict(enumerate(others)), index=names)
    frame.columns = [head.title for head in table.columns[1:]]
    with pd.option_context("display.unicode.east_asian_width", True):
        return [line.rstrip(" \\") for line in frame.to_string(line_width=width).splitlines()]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False) or [""]
