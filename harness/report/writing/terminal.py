"""A page for a terminal: columns aligned, a table that is too wide split between its columns, long lines wrapped."""

from __future__ import annotations

import re
import textwrap
import unicodedata

from harness.report.page import Block, Page, Text, legend
from harness.system.text import printable

GAP = "  "
SHORTEST_HEADING = 12
"""Letters before a heading is wrapped, however short its cells."""


def write(page: Page, *, width: int) -> str:
    lines = [page.title, "=" * min(width, _width(page.title)), ""]
    for line in ([page.note] if page.note else []) + list(page.lead):
        lines += _wrapped(line, width)
    for block in page.blocks:
        lines += ["", *_wrapped(block.heading, width), "-" * min(width, _width(block.heading))]
        for line in block.above:
            lines += _wrapped(line, width)
        if block.columns:
            lines += ["", *fitted(block, width=width)]
        lines += [""] if block.below else []
        for line in block.below:
            lines += _wrapped(line, width)
    foot = [*page.foot, *legend(page, best="*", tied="≈", second="'")]
    lines += [""] if foot else []
    for line in foot:
        lines += _wrapped(line, width)
    return printable("\n".join(line.rstrip() for line in lines)) + "\n"


def fitted(block: Block, *, width: int) -> list[str]:
    """The rows' names stand before every part of a split table; headings are wrapped to the width of their cells."""
    marked = [any(row[place].mark for row in block.rows) for place in range(len(block.columns))]
    body = [[_marked(cell, room=marked[place]) for place, cell in enumerate(row)] for row in block.rows]
    heads = [
        _heading(name, max([_width(row[place]) for row in body], default=0)) for place, name in enumerate(block.columns)
    ]
    widths = [
        max(_width(text) for text in [*heads[place], *(row[place] for row in body)]) for place in range(len(heads))
    ]
    depth = max(map(len, heads))
    top = [[([""] * (depth - len(head)) + head)[line] for head in heads] for line in range(depth)]
    rule = ["-" * one for one in widths]
    lines: list[str] = []
    for places in block.parts([one + len(GAP) for one in widths], most=width + len(GAP)):
        lines += [""] if lines else []
        for row in (*top, rule, *body):
            lines.append(GAP.join(_padded(row[place], widths[place], left=block.is_words(place)) for place in places))
    return lines


def _heading(name: str, cells: int) -> list[str]:
    kept = re.sub(r" (?=[↑↓])", "\N{NO-BREAK SPACE}", name)  # an arrow stays with its metric
    wrapped = textwrap.wrap(kept, max(cells, SHORTEST_HEADING), break_long_words=False) or [""]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]


def _marked(cell: Text, *, room: bool) -> str:
    """Signs instead of bold and underlined: ``*`` best, ``≈`` not distinguishable from it, ``'`` best of the rest.

    Args:
        room: keep the place of a sign where there is none, so that numbers stand below each other.
    """
    return cell.text + {"": "  " if room else "", "best": " *", "tied": " ≈", "second": " '"}[cell.mark]


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _width(text: str) -> int:
    """Columns on a terminal: wide letters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False) or [""]
