"""A page as long, tidy CSV: a row a number, with everything that tells it from others."""

from __future__ import annotations

import csv
import io

from harness.report.page import Page
from harness.system.text import csv_cell


def write(page: Page) -> str:
    """Columns are those of the page's numbers, in the order in which they come."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for number in page.numbers for name in number))
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in number.items()} for number in page.numbers)
    return out.getvalue()
