"""What stands behind any cell of any page: the cell is found by its row and column, and tells it itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.comparison.provenance import Folder
from harness.report.page import Block, Page, Text
from harness.system.errors import UsageError, did_you_mean


def explain(page: Page, folder: Folder, *, row: str, column: str) -> str:
    """The explanation of the cell in every table of the page that has it, ending in a newline.

    Args:
        page: the page.
        folder: where its records lie.
        row: a row's label, as printed or any part of it that is unique.
        column: a column as printed (``Kvasir-SEG Sα``), or ``kvasir.s_measure``, or ``trans10k_v1.easy.miou``.

    Raises:
        UsageError: no such row or column, or several; or no table has both.
    """
    tables = [block for block in page.blocks if block.columns]
    rows = {row_label(line): {row_label(line), line[0].text} for block in tables for line in block.rows}
    label = _one("row", row, rows)
    columns: dict[str, set[str]] = {}
    for block in tables:
        for name in block.columns:
            columns.setdefault(name, {name}).update(block.aliases.get(name, ()))
    mine = {name for block in tables if label in map(row_label, block.rows) for name in block.columns}
    title = _one("column", column, {name: aliases for name, aliases in columns.items() if name in mine})
    found = [text for block in tables for text in _explained(block, folder, label=label, title=title)]
    if not found:
        raise UsageError(f"no table of this page has both the row {label!r} and the column {title!r}")
    return "\n".join(found)


def _explained(block: Block, folder: Folder, *, label: str, title: str) -> list[str]:
    if title not in block.columns:
        return []
    place = list(block.columns).index(title)
    found = []
    for line in block.rows:
        if row_label(line) != label:
            continue
        cell = line[place]
        head = " · ".join([block.heading, label, *words_before(line, place), f"{title}: {cell.text}"])
        found.append("\n".join([head, *behind(cell, folder)]) + "\n")
    return found


def behind(cell: Text, folder: Folder) -> Sequence[str]:
    """What a cell tells of itself, line by line."""
    return cell.behind(folder) if cell.behind else ["  nothing else is known of it"]


def words_before(line: Sequence[Text], place: int) -> list[str]:
    """The cells between a row's name and the one at ``place``, where they tell its rows apart."""
    return [one.text for one in line[1:place]] if place and _is_text(line) else []


def row_label(line: Sequence[Text]) -> str:
    """What a row is found by."""
    return line[0].name or line[0].text


def _is_text(line: Sequence[Text]) -> bool:
    """Whether the second cell tells the rows of one method apart (``Kvasir-SEG Sα``), as no number does."""
    return len(line) > 1 and line[1].text[:1].isalpha()


def _one(kind: str, asked: str, choices: Mapping[str, set[str]]) -> str:
    wanted = asked.strip().lower()
    for match in (
        [name for name, aliases in choices.items() if wanted in {alias.lower() for alias in aliases}],
        [name for name, aliases in choices.items() if any(wanted in alias.lower() for alias in aliases)],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise UsageError(f"{kind} {asked!r} fits {', '.join(sorted(match))}; give more of it")
    raise UsageError(f"no {kind} {asked!r}{did_you_mean(asked, choices)}")
