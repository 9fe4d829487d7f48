"""A page as markdown, LaTeX, tidy CSV, JSON, or text for a terminal: one module each."""

from __future__ import annotations

from harness.report.page import Format, Page
from harness.report.writing import data, latex, markdown, terminal, tidy


def write(page: Page, *, style: Format = "markdown", width: int = 100) -> str:
    """The page as one string that ends in a newline.

    Args:
        width: of a terminal, for ``text``.
    """
    if style == "text":
        return terminal.write(page, width=width)
    return {"markdown": markdown.write, "latex": latex.write, "csv": tidy.write, "json": data.write}[style](page)
