"""A page as data: its tables as printed, and its numbers as tidy rows."""

from __future__ import annotations

import json
from typing import Any

from harness.report.page import Page


def write(page: Page) -> str:
    """One JSON object on one line."""
    return json.dumps(as_data(page)) + "\n"


def as_data(page: Page) -> dict[str, Any]:
    """Title, lead, tables (cells as printed, by column) and numbers, JSON-ready."""
    tables = [
        {
            "heading": block.heading,
            "above": list(block.above),
            "rows": [dict(zip(block.columns, (cell.text for cell in row), strict=True)) for row in block.rows],
            "below": list(block.below),
        }
        for block in page.blocks
    ]
    return {
        "title": page.title,
        "note": page.note,
        "lead": list(page.lead),
        "tables": tables,
        "foot": list(page.foot),
        "numbers": [dict(row) for row in page.numbers],
    }
