"""A page as markdown, LaTeX, tidy CSV, JSON, or text for a terminal."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from harness.report.page import Format, Head, Page, Shown, Table
from harness.system.tables import table_bytes
from harness.system.text import csv_cell, markdown, printable, printable_line


def write(page: Page, *, style: Format = "markdown", width: int = 100) -> str:
    """The page as one string that ends in a newline; ``width`` is that of a terminal, for ``text``."""
    if style == "text":
        return as_text(page, width=width)
    if style == "json":
        return json.dumps(as_data(page)) + "\n"
    return {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[style](page)


def as_data(page: Page) -> dict[str, Any]:
    """Title, lead, tables (cells as printed, by column) and numbers, JSON-ready."""
    tables = [
        {
            "heading": table.heading,
            "above": list(table.above),
            "rows": [
                {head.title: cell.text for head, cell in zip(table.columns, line.cells, strict=True)}
                for line in table.rows
            ],
            "below": list(table.below),
        }
        for table in page.tables
    ]
    return {
        "title": page.title,
        "note": page.note,
        "lead": list(page.lead),
        "tables": tables,
        "foot": list(page.foot),
        "numbers": [dict(row) for row in page.numbers],
    }


def as_csv(page: Page) -> str:
    """Long and tidy: a row a number, with everything that tells it from others, in the page's columns."""
    rows = ({name: csv_cell(value) for name, value in number.items()} for number in page.numbers)
    return table_bytes(rows, _columns(page)).decode()


NUMBERS = {"n", "mean", "sd", "low", "high", "median", "iqm", "value", "score", "frozen", "difference", "seed"}
NUMBERS |= {"image_size", "batch"}
"""Columns of numbers; all others are text, also where a hash is made of digits."""


def as_parquet(page: Page) -> bytes:
    """The same as Parquet: numbers are numbers, and an empty one is null."""
    rows = (
        {name: (float(text) if text else None) if name in NUMBERS else text for name, text in number.items()}
        for number in page.numbers
    )
    return table_bytes(rows, _columns(page), form="parquet")


def _columns(page: Page) -> list[str]:
    return list(dict.fromkeys(name for number in page.numbers for name in number))


def as_markdown(page: Page) -> str:
    written = f"<!-- written by `sam-peft {page.verb}`; edit no number here -->"
    lines = [f"# {markdown(page.title)}", "", written]
    if page.note:
        lines += ["", f"*{markdown(page.note)}*"]
    if page.lead:
        lines += ["", *(f"- {markdown(line)}" for line in page.lead)]
    for table in page.tables:
        lines += ["", f"{'#' * table.level} {markdown(table.heading)}", ""]
        lines += [f"- {markdown(line)}" for line in table.above] + ([""] if table.above else [])
        lines += markdown_table(table) if table.columns else []
        lines += ([""] if table.below else []) + [f"{markdown(line)}  " for line in table.below]
    foot = [*page.foot, *page.legend(best="Bold", tied="≈", second="Underlined")]
    lines += ["", "---", "", *(f"{markdown(line)}  " for line in foot)] if foot else []
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> list[str]:
    """The lines of a table that has columns."""
    return [
        "| " + " | ".join(markdown(head.title) for head in table.columns) + " |",
        "|" + "|".join("---" if head.words else "---:" for head in table.columns) + "|",
        *("| " + " | ".join(map(_in_markdown, line.cells)) + " |" for line in table.rows),
    ]


def _in_markdown(cell: Shown) -> str:
    return {"": "{}", "best": "**{}**", "tied": "{} ≈", "second": "<u>{}</u>"}[cell.mark].format(markdown(cell.text))


LATEX_HEAD = r"% written by `sam-peft tables --format latex`; needs \usepackage{booktabs,graphicx}"
LATEX_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
MOST_LETTERS = 95
"""Of a row in LaTeX, before a table is split between its columns: at a text width of 345 pt that is scaled to about two thirds."""
MOST_FLOATS = 12
"""Before they are all printed: LaTeX keeps few tables in mind."""
MOST_LINES = 30
"""Of a table's rows, before it is split between them."""
SIGNS = ("†", "‡", "§")
"""What a row's name may carry; the line below that begins with one says what it means."""
_BREAKS = re.compile(r"(\\_|=|,(?! )|\{\[\})")
"""Behind what a line of prose may break: a row's options are one long word."""
_TRIALS = re.compile(r", tuned, [\d–]+ trials")

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "µ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi",
    "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\ldots{}", "−": "$-$"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''"},
        **{"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "‡": r"$\ddagger$"},
        **{"·": r"$\cdot$", "≈": r"$\approx$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$"},
        **{"√": r"$\surd$", "→": r"$\to$", "←": r"$\leftarrow$", "∞": r"$\infty$", "§": r"\S{}", "⁻": "$^-$"},
        **{digit: f"$^{number}$" for number, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
    }
)
"""Characters that LaTeX reads otherwise, or that not every font has."""


def as_latex(page: Page) -> str:
    """Tabulars that need booktabs and graphicx, and fit the width of a page: a wide table is split between benchmarks and a
    long one between rows; what is still too wide is scaled down to the line, never up. Each says what its own marks mean, and
    its names are without how many trials tuned a row, which a table of its own tells."""
    lines = [LATEX_HEAD, f"% {printable_line(page.title)}"]
    for line in ([page.note] if page.note else []) + list(page.lead):
        lines += ["", r"{\sloppy\noindent " + _BREAKS.sub(r"\1\\allowbreak{}", tex(line)) + r"\par}"]
    floats = 0
    for table in page.tables:
        body, heads = _latex_cells(table)
        parts = [(places, rows) for places in _latex_columns(table, body, heads) for rows in _latex_rows(body)]
        for number, (places, rows) in enumerate(parts):
            part = f" (part {number + 1} of {len(parts)})" if len(parts) > 1 else ""
            lines += ["", r"\begin{table}[htbp]", r"\centering", rf"\caption{{{tex(table.heading)}{part}.}}"]
            if places:
                lines += [LATEX_FIT, *_tabular(table, body, heads, places, rows), "}"]
            said = [*table.above, *table.below] if number == len(parts) - 1 else []
            cells = [table.rows[row].cells[place] for row in rows for place in places]
            said += [
                note for note in page.foot if note.startswith(SIGNS) and any(note[0] in cell.text for cell in cells)
            ]
            if any(cell.mark for cell in cells):
                said += page.legend(best="Bold", tied="≈", second="Underlined")
            lines += [r"\par\raggedright\footnotesize " + tex(line) for line in said]
            lines.append(r"\end{table}")
            floats += 1
            lines += [r"\clearpage"] if floats % MOST_FLOATS == 0 else []
    for line in (note for note in page.foot if not note.startswith(SIGNS)):
        lines += ["", r"\noindent{\footnotesize " + tex(line) + "}"]
    return "\n".join(lines) + "\n"


def _latex_cells(table: Table) -> tuple[list[list[list[str]]], list[list[str]]]:
    """The lines of every cell, row by row, and of every heading: words are folded to a third of the page, headings to their
    column."""
    names = [line.cells[0].text for line in table.rows]
    short = [_TRIALS.sub("", name) for name in names]
    names = short if len(set(short)) == len(set(names)) else names
    body = [
        [[name], *(_latex_lines(cell, head) for cell, head in zip(line.cells[1:], table.columns[1:], strict=True))]
        for name, line in zip(names, table.rows, strict=True)
    ]
    heads = [
        _heading(head.title, max([len(line) for row in body for line in row[place]], default=0))
        for place, head in enumerate(table.columns)
    ]
    return body, heads


def _latex_lines(cell: Shown, head: Head) -> list[str]:
    if not head.words:
        return [cell.text]
    kept = cell.text.replace(": ", ":\N{NO-BREAK SPACE}")  # a number stays with what it is of
    lines = textwrap.wrap(kept, MOST_LETTERS // 3, break_long_words=False, break_on_hyphens=False) or [""]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _latex_columns(table: Table, body: Sequence[Sequence[list[str]]], heads: Sequence[list[str]]) -> list[list[int]]:
    """Of each part; none where there are words alone."""
    if not table.columns:
        return [[]]
    widths = [max(map(len, itertools.chain(head, *(row[place] for row in body)))) for place, head in enumerate(heads)]
    return table.parts(widths, most=MOST_LETTERS)


def _latex_rows(body: Sequence[Sequence[list[str]]]) -> list[list[int]]:
    """Of each part, as many as `MOST_LINES` hold."""
    parts: list[list[int]] = [[]]
    room = MOST_LINES
    for number, row in enumerate(body):
        depth = max(map(len, row))
        if parts[-1] and depth > room:
            parts.append([])
            room = MOST_LINES
        parts[-1].append(number)
        room -= depth
    return parts


def _tabular(
    table: Table,
    body: Sequence[Sequence[list[str]]],
    heads: Sequence[list[str]],
    places: Sequence[int],
    rows: Sequence[int],
) -> list[str]:
    sides = {place: "l" if table.columns[place].words else "r" for place in places}
    marks = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"{} $\approx$", "second": r"\underline{{{}}}"}

    def stacked(lines: Sequence[str], place: int, *, at: str) -> str:
        text = r" \\ ".join(map(tex, lines))
        side = f"@{{}}{sides[place]}@{{}}"
        return text if len(lines) == 1 else rf"\begin{{tabular}}[{at}]{{{side}}}{text}\end{{tabular}}"

    return [
        rf"\begin{{tabular}}{{{''.join(sides.values())}}}",
        r"\toprule",
        " & ".join(stacked(heads[place], place, at="b") for place in places) + r" \\",
        r"\midrule",
        *(
            " & ".join(
                marks[table.rows[row].cells[place].mark].format(stacked(body[row][place], place, at="t"))
                for place in places
            )
            + r" \\"
            for row in rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def tex(text: str) -> str:
    """One line whose characters mean themselves in TeX."""
    return printable_line(text).translate(_TEX)


GAP = "  "
SHORTEST_HEADING = 12
"""Letters before a heading is wrapped, however short its cells."""


def as_text(page: Page, *, width: int) -> str:
    """For a terminal: columns aligned, a table that is too wide split between its columns, long lines wrapped."""
    lines = [page.title, "=" * min(width, _width(page.title)), ""]
    for line in ([page.note] if page.note else []) + list(page.lead):
        lines += _wrapped(line, width)
    for table in page.tables:
        lines += ["", *_wrapped(table.heading, width), "-" * min(width, _width(table.heading))]
        for line in table.above:
            lines += _wrapped(line, width)
        if table.columns:
            lines += ["", *fitted(table, width=width)]
        lines += [""] if table.below else []
        for line in table.below:
            lines += _wrapped(line, width)
    foot = [*page.foot, *page.legend(best="*", tied="≈", second="'")]
    lines += [""] if foot else []
    for line in foot:
        lines += _wrapped(line, width)
    return printable("\n".join(line.rstrip() for line in lines)) + "\n"


def fitted(table: Table, *, width: int) -> list[str]:
    """The lines of a table; the rows' names stand before every part of a split one, headings are wrapped to the width of
    their cells, and words to half of ``width`` (a number is never wrapped).

    Signs stand for bold and underlined: ``*`` best, ``≈`` not significantly different from it, ``'`` best of the rest. A
    column with one keeps its place everywhere, so that numbers stand below each other.
    """
    places = range(len(table.columns))
    marked = [any(line.cells[place].mark for line in table.rows) for place in places]
    signs = {"": "", "best": " *", "tied": " ≈", "second": " '"}
    body: list[list[str]] = []
    for row in table.rows:
        texts = [cell.text + (signs[cell.mark] or "  " * marked[place]) for place, cell in enumerate(row.cells)]
        folded = [
            textwrap.wrap(text, max(width // 2, SHORTEST_HEADING), break_long_words=False, break_on_hyphens=False)
            or [""]
            if table.columns[place].words or not place
            else [text]
            for place, text in enumerate(texts)
        ]
        body += map(list, zip_longest(*folded, fillvalue=""))
    titles = [
        _heading(head.title, max([_width(line[place]) for line in body], default=0))
        for place, head in enumerate(table.columns)
    ]
    widths = [max(_width(text) for text in [*titles[place], *(line[place] for line in body)]) for place in places]
    depth = max(map(len, titles))
    top = [[([""] * (depth - len(title)) + title)[line] for title in titles] for line in range(depth)]
    rule = ["-" * each for each in widths]
    lines: list[str] = []
    for part in table.parts([each + len(GAP) for each in widths], most=width + len(GAP)):
        lines += [""] if lines else []
        for line in (*top, rule, *body):
            cells = (_padded(line[place], widths[place], left=table.columns[place].words) for place in part)
            lines.append(GAP.join(cells))
    return lines


def _heading(name: str, cells: int) -> list[str]:
    kept = re.sub(r" (?=[↑↓])", "\N{NO-BREAK SPACE}", name)  # an arrow stays with its metric
    wrapped = textwrap.wrap(kept, max(cells, SHORTEST_HEADING), break_long_words=False) or [""]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _width(text: str) -> int:
    """Columns on a terminal: wide letters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False) or [""]
