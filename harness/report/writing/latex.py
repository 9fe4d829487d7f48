"""A page as LaTeX: tabulars that need booktabs and graphicx, and fit the width of a page.

A wide table is split between benchmarks and a long one between rows; what is still too wide is scaled down to the line,
never up.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.page import Block, Page, Text, legend
from harness.system.text import printable_line

HEAD = r"% written by `sam-peft tables --format latex`; needs \usepackage{booktabs,graphicx}"
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
MOST_LETTERS = 90
"""Of a row, before a table is split between its columns: at a text width of 345 pt that is scaled to about 70 %."""
MOST_FLOATS = 12
"""Before they are all printed: LaTeX keeps few tables in mind."""
MOST_ROWS = 36
"""Before a table is split between its rows."""

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
    tables = 0
    for block in page.blocks:
        parts = [
            (places, block.rows[start : start + MOST_ROWS])
            for places in _columns(block)
            for start in range(0, max(len(block.rows), 1), MOST_ROWS)
        ]
        for number, (places, rows) in enumerate(parts):
            part = f" (part {number + 1} of {len(parts)})" if len(parts) > 1 else ""
            lines += ["", r"\begin{table}[htbp]", r"\centering", rf"\caption{{{_tex(block.heading)}{part}.}}"]
            if places:
                lines += [FIT, *_tabular(block, places, rows), "}"]
            said = [*block.above, *block.below] if number == len(parts) - 1 else []
            lines += [r"\par\raggedright\footnotesize " + _tex(line) for line in said]
            lines.append(r"\end{table}")
            tables += 1
            lines += [r"\clearpage"] if tables % MOST_FLOATS == 0 else []
    foot = [*page.foot, *legend(page, best="Bold", tied="≈", second="Underlined")]
    for line in foot:
        lines += ["", r"\noindent{\footnotesize " + _tex(line) + "}"]
    return "\n".join(lines) + "\n"


def _tabular(block: Block, places: Sequence[int], rows: Sequence[Sequence[Text]]) -> list[str]:
    return [
        rf"\begin{{tabular}}{{{''.join('l' if block.is_words(place) else 'r' for place in places)}}}",
        r"\toprule",
        " & ".join(_tex(block.columns[place]) for place in places) + r" \\",
        r"\midrule",
        *(" & ".join(_marked(row[place]) for place in places) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _columns(block: Block) -> list[list[int]]:
    """Of each part; none where the block is words alone."""
    if not block.columns:
        return [[]]
    widths = [
        max(len(heading), *(len(row[place].text) for row in block.rows), 0)
        for place, heading in enumerate(block.columns)
    ]
    return block.parts(widths, most=MOST_LETTERS)


def _marked(cell: Text) -> str:
    return _MARKS[cell.mark].format(_tex(cell.text))


def _tex(text: str) -> str:
    return printable_line(text).translate(_TEX)
