"""Text that others wrote, escaped for a terminal, a page or a spreadsheet; and plurals."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ud800-\udfff]"
)
"""Control characters (a terminal obeys them), marks that reverse or hide text, halves of surrogate pairs (they cannot be
encoded). Tabs and line feeds are not among them."""

_FORMULA = re.compile(r"[=@\t\r]|[+\-](?!\d[\d.]*([eE][+\-]?\d+)?$)(?=.*[A-Za-z|!])", re.DOTALL)
"""Cells that a spreadsheet computes; a signed number is not one."""


def printable(text: str) -> str:
    r"""``text`` with every control character escaped (``\x1b``); line feeds and tabs stay."""
    return _HIDDEN.sub(lambda match: _escaped(match[0]), text)


def printable_line(text: str) -> str:
    r"""As `printable`, and on one line: line feeds and tabs are escaped as well (``\n``)."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """A line of text escaped for a markdown page: no HTML, no links or pictures, no end of a table's cell."""
    return printable_line(text).replace("<", "&lt;").replace("|", "\\|").replace("](", "]\\(")


def counted(number: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {word}{'s' if number != 1 else ''}"


def limited_to(there: int, used: int) -> str:
    """``407 → 400``, or ``83`` where all are used."""
    return f"{there} → {used}" if there != used else str(used)


def first_of(words: Sequence[str]) -> str:
    """``a; b; c; and 2 more``."""
    return "; ".join([*words[:3], *([f"and {len(words) - 3} more"] if len(words) > 3 else [])])


def csv_cell(text: str) -> str:
    """``text`` as a cell that no spreadsheet takes for a formula: where one would, with a leading apostrophe."""
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
