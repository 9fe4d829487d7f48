"""A grid as tables of scores: one for the benchmarks that most rows share, one more for what only some rows were run on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.archive.schema import Record
from harness.comparison import provenance
from harness.comparison.alpha import MEANINGS as ALPHA_MEANINGS
from harness.comparison.code_versions import CodeDifferences, code_differences
from harness.comparison.columns import column_names, column_title
from harness.comparison.grid import Grid, GridCell, is_run
from harness.comparison.sources import Sources
from harness.registry import never_reached
from harness.report.extra_columns import EXTRA_NOTES, extra_columns
from harness.report.headings import Heading, lines_above
from harness.report.marks import best_marks
from harness.report.page import Behind, Block, Text

CELLS = "Cells: mean over seeds in %, ± SD over seeds (ddof = 1), (n)."
GAP = "No mean is taken over a gap: CODE (done/planned) says why a number is missing."
NOT_PLANNED = "–: this row was not planned on this benchmark."


def score_blocks(grid: Grid, *, heading: Heading, sources: Sources, rank: bool) -> list[Block]:
    """The tables of one grid.

    Args:
        rank: mark best cells; of generated images none is better than another.
    """
    marks = best_marks(grid, sources.images_of) if rank else {}
    code = code_differences(grid.records)
    blocks = []
    for number, (rows, places) in enumerate(_parts(grid)):
        benchmarks = dict.fromkeys(grid.columns[place].benchmark_title for place in places)
        title = heading.title + (f": {', '.join(benchmarks)}" if number else "")
        columns = [column_title(grid.columns[place], grid.columns) for place in places]
        extra = extra_columns(grid, rows, places)
        blocks.append(
            Block(
                heading=title,
                level=3 if number else 2,
                above=lines_above(grid, heading) if number == 0 else (),
                columns=["method", *columns, *(name for name, _ in extra)],
                aliases={
                    title: sorted(column_names(grid.columns[place]))
                    for title, place in zip(columns, places, strict=True)
                },
                rows=[
                    [
                        _name(grid, index, code, sources),
                        *(
                            Text(
                                text=cell_text(grid.cells[index, place]),
                                mark=marks.get((index, place), ""),
                                behind=_behind_cell(grid, index, place),
                            )
                            for place in places
                        ),
                        *(Text(text=text_of(index), behind=_behind_row(grid, index)) for _, text_of in extra),
                    ]
                    for index in rows
                ],
                below=_notes(grid, code, sources) if number == 0 else (),
            )
        )
    return blocks


def _parts(grid: Grid) -> list[tuple[list[int], list[int]]]:
    """(rows, columns) of each table: a benchmark that under half of the rows were planned for has a table of its own."""
    planned: dict[str, list[int]] = {}
    for place, column in enumerate(grid.columns):
        rows = [index for index in range(len(grid.rows)) if grid.cells[index, place].planned]
        planned[column.benchmark] = sorted({*planned.get(column.benchmark, []), *rows})
    most = max(map(len, planned.values()), default=0)
    common = [name for name, rows in planned.items() if 2 * len(rows) >= most]
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, rows in planned.items():
        if name not in common:
            groups.setdefault(tuple(rows), []).append(name)
    together = tuple(sorted({row for name in common for row in planned[name]}))
    parts = [(together, common), *sorted(groups.items(), key=lambda item: -len(item[0]))]
    return [
        (list(rows), [place for place, column in enumerate(grid.columns) if column.benchmark in names])
        for rows, names in parts
    ]


def _name(grid: Grid, index: int, code: CodeDifferences, sources: Sources) -> Text:
    mine = [record for record in grid.members[index] if is_run(record)]
    sign = "†" if any(record.key in code.touched | code.mixed for record in mine) else ""
    sign += "‡" if any(selected_on_test(record.run.rules) for record in mine) else ""
    sign += "§" if any(chose_an_edge(record) for record in mine) else ""
    row = grid.rows[index]
    flags = " ".join([sign, *alpha_codes(grid, index, sources)]).strip()
    return Text(text=f"{row.shown} {flags}".rstrip(), name=row.label, behind=_behind_row(grid, index))


def alpha_codes(grid: Grid, index: int, sources: Sources) -> list[str]:
    """The codes of a row whose runs' α says nothing, each once."""
    return sorted({code for one in grid.members[index] if (code := sources.alpha_of(one))})


def chose_an_edge(record: Record) -> bool:
    """Whether a tuned value is the first or last of its grid."""
    return bool(record.run.tuning.get("edge"))


def selected_on_test(rules: dict) -> bool:
    """Whether the checkpoint was chosen on the test split, as some released code does."""
    return rules.get("quirks", {}).get("selection") == "released"


def _behind_cell(grid: Grid, index: int, place: int) -> Behind:
    return partial(provenance.of_cell, grid=grid, index=index, place=place)


def _behind_row(grid: Grid, index: int) -> Behind:
    return partial(provenance.of_row, grid=grid, index=index)


def cell_text(cell: GridCell) -> str:
    """``91.2 ± 0.3 (3)``, or the reason codes with how many seeds are in."""
    if not cell.planned:
        return "–"
    if cell.codes:
        codes = sorted(set(cell.codes.values()))
        done = len(cell.values.keys() - cell.codes.keys())
        return f"{'/'.join(codes)} ({done}/{len(cell.planned)})"
    spread = f" ± {100 * cell.sd:.1f}" if cell.sd is not None else ""
    return f"{100 * cell.mean:.1f}{spread} ({len(cell.values)})"


def footnotes(grids: Sequence[Grid]) -> list[str]:
    """How to read all tables of a page."""
    cells = [cell for grid in grids for cell in grid.cells.values()]
    records = [record for grid in grids for record in grid.records]
    lines = [CELLS] if cells else []
    if any(cell.codes for cell in cells):
        lines.append(GAP)
    shown = [
        grid.cells[row, place] for grid in grids for rows, places in _parts(grid) for row in rows for place in places
    ]
    if any(not cell.planned for cell in shown):
        lines.append(NOT_PLANNED)
    extra = {name for grid in grids for rows, places in _parts(grid) for name, _ in extra_columns(grid, rows, places)}
    lines += [text for name, text in EXTRA_NOTES.items() if name in extra]
    if any(code_differences(grid.records).touched for grid in grids):
        lines.append("† some runs were made by other code, in parts that make numbers, than the latest of the table.")
    if any(code_differences(grid.records).mixed for grid in grids):
        lines.append("† some runs were begun by other code, in parts that make numbers, than finished them.")
    if any(selected_on_test(record.run.rules) for record in records):
        lines.append("‡ the checkpoint was selected on the test split, as some released code does.")
    if any(map(chose_an_edge, records)):
        lines.append("§ a chosen value is the first or last of its grid: a better one may lie beyond; see the rates.")
    return lines


def _notes(grid: Grid, code: CodeDifferences, sources: Sources) -> list[str]:
    """What must be known of this table alone."""
    untold = (
        f"Other versions of the code ({', '.join(code.untold)}) made some of these runs, before records told whether what"
        " differs makes numbers."
    )
    flagged = {flag for index in range(len(grid.rows)) for flag in alpha_codes(grid, index, sources)}
    alpha = [f"{flag}: {ALPHA_MEANINGS[flag]}." for flag in sorted(flagged)]
    return [untold] * bool(code.untold) + alpha + _warnings(grid)


def _warnings(grid: Grid) -> list[str]:
    """Rows that never came to a part of their method."""
    found = []
    for index, row in enumerate(grid.rows):
        words = [
            never_reached(row.method, one.run.method_config, epochs=int(one.run.rules.get("epochs", 0)))
            for one in grid.members[index]
        ]
        found += [f"{row.label}: {text}." for text in dict.fromkeys(words) if text]
    return found
