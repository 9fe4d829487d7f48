"""A page as LaTeX: tabulars that need booktabs and graphicx, and fit the width of a page.

A wide table is split between its columns; what is still too wide is scaled down to the line, never up.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.reporting.page import Block, Page, Text, legend
from harness.text import printable_line

HEAD = r"% written by `python -m harness.tables --format latex`; needs \usepackage{booktabs,graphicx}"
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
MOST_LETTERS = 110
"""Of a row, before a table is split: at a text width of 345 pt that is scaled to about 60 %."""

_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\ldots{}", "²": "$^2$", "−": "$-$"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", '"': "''"},
        **{"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "‡": r"$\ddagger$"},
        **{"·": r"$\cdot$", "≈": r"$\approx$", "≤": r"$\le$", "≥": r"$\ge$", "×": r"$\times$", "Σ": r"$\Sigma$"},
        **{"α": r"$\alpha$", "β": r"$\beta$", "φ": r"$\phi$", "ω": r"$\omega$", "Δ": r"$\Delta$", "§": r"\S{}"},
    }
)
"""Characters that LaTeX reads otherwise, or that not every font has."""

_MARKS = {"": "{}", "best": r"\textbf{{{}}}", "tied": r"{} $\approx$", "second": r"\underline{{{}}}"}


def write(page: Page) -> str:
    lines = [HEAD, f"% {printable_line(page.title)}"]
    for line in ([page.note] if page.note else []) + list(page.lead):
        lines += ["", r"\noindent " + _tex(line)]
    for block in page.blocks:
        parts = _parts(block) if block.columns else [[]]
        for number, places in enumerate(parts):
            part = f" (part {number + 1} of {len(parts)})" if len(parts) > 1 else ""
            above = block.above if number == 0 else ()
            lines += ["", r"\begin{table}[htbp]", r"\centering"]
            lines.append(rf"\caption{{{_tex(block.heading)}{part}. {' '.join(_tex(line) + '.' for line in above)}}}")
            if places:
                lines += [FIT, *_tabular(block, places), "}"]
            if number == len(parts) - 1:
                lines += [r"\par\raggedright\footnotesize " + _tex(line) for line in block.below]
            lines.append(r"\end{table}")
    foot = [*page.foot, *legend(page, best="Bold", tied="≈", second="Underlined")]
    for line in foot:
        lines += ["", r"\noindent{\footnotesize " + _tex(line) + "}"]
    return "\n".join(lines) + "\n"


def _tabular(block: Block, places: Sequence[int]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{l{'r' * (len(places) - 1)}}}",
        r"\toprule",
        " & ".join(_tex(block.columns[place]) for place in places) + r" \\",
        r"\midrule",
        *(" & ".join(_marked(row[place]) for place in places) + r" \\" for row in block.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _parts(block: Block) -> list[list[int]]:
    """Columns by part, the first one in each."""
    widths = [
        max(len(heading), *(len(row[place].text) for row in block.rows), 0)
        for place, heading in enumerate(block.columns)
    ]
    parts: list[list[int]] = [[0]]
    for place in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[one] for one in parts[-1]) + widths[place] > MOST_LETTERS:
            parts.append([0])
        parts[-1].append(place)
    return parts


def _marked(cell: Text) -> str:
    return _MARKS[cell.mark].format(_tex(cell.text))


def _tex(text: str) -> str:
    return printable_line(text).translate(_TEX)
