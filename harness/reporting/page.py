"""A table as text cells, and the three ways to write it: markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.text import csv_cell, markdown, printable_line

Format = Literal["markdown", "latex", "csv"]
Mark = Literal["", "best", "second"]
SUFFIX: Mapping[str, str] = {"markdown": ".md", "latex": ".tex", "csv": ".csv"}


@dataclass(frozen=True, kw_only=True)
class Text:
    """One cell."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading, lines above the table, the table, lines below it."""

    heading: str
    above: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Text]] = ()
    below: Sequence[str] = ()


def write(title: str, blocks: Sequence[Block], *, style: Format = "markdown") -> str:
    """The page as one string that ends in a newline."""
    writers = {"markdown": _markdown, "latex": _latex, "csv": _csv}
    return writers[style](title, blocks)


def _markdown(title: str, blocks: Sequence[Block]) -> str:
    lines = [f"# {markdown(title)}", "", "<!-- written by `python -m harness.tables`; edit no number here -->"]
    for block in blocks:
        lines += ["", f"## {markdown(block.heading)}", ""]
        lines += [f"- {markdown(line)}" for line in block.above] + ([""] if block.above else [])
        if block.columns:
            lines.append("| " + " | ".join(markdown(name) for name in block.columns) + " |")
            lines.append("|" + "|".join(["---"] + ["---:"] * (len(block.columns) - 1)) + "|")
            lines += ["| " + " | ".join(_marked(cell) for cell in row) + " |" for row in block.rows]
        lines += ([""] if block.below else []) + [f"{markdown(line)}  " for line in block.below]
    return "\n".join(lines).rstrip() + "\n"


def _marked(cell: Text) -> str:
    return {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}[cell.mark].format(markdown(cell.text))


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "…": r"\ldots{}", "²": "$^2$", "−": "$-$"},
        **{
            "±": r"$\pm$",
            "↑": r"$\uparrow$",
            "↓": r"$\downarrow$",
            "†": r"$\dagger$",
            "‡": r"$\ddagger$",
            "·": r"$\cdot$",
        },
        **{"α": r"$\alpha$", "β": r"$\beta$", "φ": r"$\phi$", "ω": r"$\omega$", "Δ": r"$\Delta$", "×": r"$\times$"},
    }
)
"""Characters that LaTeX reads otherwise, or that not every font has."""


def _tex(text: str) -> str:
    return printable_line(text).translate(_TEX)


def _latex(title: str, blocks: Sequence[Block]) -> str:
    """Tabulars that need only booktabs."""
    marks = {"": "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}
    lines = [
        "% written by `python -m harness.tables --format latex`; needs \\usepackage{booktabs}",
        f"% {printable_line(title)}",
    ]
    for block in blocks:
        lines += [
            "",
            r"\begin{table}",
            rf"\caption{{{_tex(block.heading)}. {' '.join(_tex(line) + '.' for line in block.above)}}}",
        ]
        if block.columns:
            lines += [rf"\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", r"\toprule"]
            lines += [" & ".join(_tex(name) for name in block.columns) + r" \\", r"\midrule"]
            lines += [
                " & ".join(marks[cell.mark].format(_tex(cell.text)) for cell in row) + r" \\" for row in block.rows
            ]
            lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [r"\par\footnotesize " + _tex(line) for line in block.below]
        lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _csv(title: str, blocks: Sequence[Block]) -> str:
    """One rectangle a block, each row led by the block's heading, as the cells are printed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for block in blocks:
        writer.writerow(["table", *map(csv_cell, block.columns)])
        for row in block.rows:
            writer.writerow(map(csv_cell, [block.heading, *(cell.text for cell in row)]))
    return out.getvalue()
