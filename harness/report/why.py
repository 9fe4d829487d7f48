"""What stands behind any cell of any page: the cell is found by its row and column, and tells it itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.archive.archive import Archive
from harness.report.page import Line, Page, Shown, Table
from harness.system.errors import UsageError, did_you_mean


def explain(page: Page, archive: Archive, *, row: str, column: str) -> str:
    """The explanation of the cell in every table of the page that has it, ending in a newline.

    Args:
        row: a row's label, as printed or any part of it that is unique.
        column: a column as printed (``Kvasir-SEG Sα``), or ``kvasir.s_measure``, or ``trans10k_v1.easy.miou``.

    Raises:
        UsageError: no such row or column, or several; or no table has both.
    """
    tables = [table for table in page.tables if table.columns]
    rows = {line.label: {line.label, line.cells[0].text} for table in tables for line in table.rows}
    label = _choose("row", row, rows)
    columns: dict[str, set[str]] = {}
    for table in (table for table in tables if any(line.label == label for line in table.rows)):
        for head in table.columns:
            columns.setdefault(head.title, set()).update(head.names)
    title = _choose("column", column, columns)
    told = [text for table in tables for text in _explained(table, archive, label=label, title=title)]
    if not told:
        raise UsageError(f"no table of this page has both the row {label!r} and the column {title!r}")
    return "\n".join(told)


def _explained(table: Table, archive: Archive, *, label: str, title: str) -> list[str]:
    titles = [head.title for head in table.columns]
    if title not in titles:
        return []
    place = titles.index(title)
    told = []
    for line in (line for line in table.rows if line.label == label):
        cell = line.cells[place]
        head = " · ".join([table.heading, label, *words_before(table, line, place), f"{title}: {cell.text}"])
        told.append("\n".join([head, *behind(cell, archive)]) + "\n")
    return told


def behind(cell: Shown, archive: Archive) -> Sequence[str]:
    """What a cell tells of itself, line by line."""
    return cell.of.why(archive) if cell.of else ["  nothing else is known of it"]


def words_before(table: Table, line: Line, place: int) -> list[str]:
    """The cells between a row's name and the one at ``place``, where they tell its rows apart (``Kvasir-SEG Sα``), as no
    number does."""
    tells = len(table.columns) > 1 and table.columns[1].words
    return [cell.text for cell in line.cells[1:place]] if place and tells else []


def _choose(kind: str, asked: str, choices: Mapping[str, set[str]]) -> str:
    given = asked.strip().lower()
    for match in (
        [name for name, aliases in choices.items() if given in {alias.lower() for alias in aliases}],
        [name for name, aliases in choices.items() if any(given in alias.lower() for alias in aliases)],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise UsageError(f"{kind} {asked!r} fits {', '.join(sorted(match))}; give more of it")
    raise UsageError(f"no {kind} {asked!r}{did_you_mean(asked, choices)}")
