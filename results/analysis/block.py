"""A leaderboard as a block of markdown, for the README and the pages on results."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from harness.archive.archive import MISSING
from harness.comparison.leaderboard import Leaderboard
from harness.report.leaderboard import still_to_run
from harness.report.sentences import compared_on, percent, sentence, short_number, with_interval

_MARKS = "<!-- leaderboard: python results/analysis/answer.py --docs docs -->\n", "<!-- /leaderboard -->"
"""Between these lines of a page stands the leaderboard."""


def write_between_marks(page: Path, text: str) -> None:
    """``text`` in place of what stands between the two marks of ``page``."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_MARKS[0])
    page.write_text(f"{before}{_MARKS[0]}{text}\n{_MARKS[1]}{rest.partition(_MARKS[1])[2]}", encoding="utf-8")


_BLOCKS = ("better", "not distinguishable", "worse", "")
"""The order of rows in a block; those without an interval stand last."""


def as_block(board: Leaderboard, *, named: Collection[str] = (), most: int = 0) -> str:
    """A markdown table for other pages: in three blocks by verdict the difference to the baseline, scores, parameters and costs.

    Args:
        named: rows that are always shown, as the baseline is.
        most: how many of each block are shown besides; 0 for all. The others are counted.
    """
    device = f" ({board.session.comparability.device})" if board.session else ""
    on = f", {compared_on(board, board.leading)}" if len(board.columns) > 1 else ""
    titles = [f"Δ to {board.baseline}{on}", "verdict", *(column.name for column in board.columns.values())]
    titles += ["parameters trained in the encoder", "in all", f"step time{device}", "memory", "merges"]
    lines = [f"| method | {' | '.join(titles)} |", f"|---|---:|---|{'---:|' * (len(titles) - 3)}---|"]
    verdicts = {row: board.verdict(row, board.leading) for row in board.rows} | {board.baseline: "not distinguishable"}
    for verdict in _BLOCKS:
        rows = [row for row in _ended(board) if verdicts[row] == verdict]
        shown = [row for row in rows if not most or row in rows[:most] or row in (board.baseline, *named)]
        shown = rows if len(rows) == len(shown) + 1 else shown
        lines += [f"| {' | '.join([row, *_cells(board, row)])} |" for row in shown]
        if left := len(rows) - len(shown):
            lines.append(f"| *and {left} more* |  | {verdict} |{' |' * (len(titles) - 2)}")
    return "\n".join(lines)


def _ended(board: Leaderboard) -> list[str]:
    """Rows of which all runs have ended on at least one benchmark."""
    return [row for row in board.rows if any(board.cell(row, name).code != MISSING for name in board.columns)]


def _cells(board: Leaderboard, row: str) -> list[str]:
    found, is_baseline = board.difference(row, board.leading), row == board.baseline
    unranked = "" if is_baseline else "no interval" if found is None or found.low is None else "not ranked"
    cells = [
        "baseline" if is_baseline else with_interval(found) if found else "–",
        board.verdict(row, board.leading) or unranked,
    ]
    for name in board.columns:
        cell = board.cell(row, name)
        score = (
            percent(cell.mean) + ("" if cell.sd is None else f" ± {percent(cell.sd)}")
            if cell.complete
            else cell.code.replace(MISSING, "–") or "–"
        )
        cells.append(score + "".join(f" ({flag.lower()})" for flag in cell.flags))
    for count in (board.parameters(row), board.parameters(row, "trainable")):
        cells.append("–" if count is None else short_number(count))
    for ratio in (board.ratio(row, "time"), board.ratio(row, "memory")):
        cells.append("–" if ratio is None else "1×" if is_baseline else f"{ratio.value:.2f}×")
    return [*cells, board.merges(row) or "–"]


def summary(board: Leaderboard, *, named: Collection[str] = (), most: int = 0, whole: str = "") -> str:
    """A block (`as_block`) with its result in a sentence below, and in another where a benchmark says something else.

    Args:
        whole: the address of the whole table, for the link to it.
    """
    result = sentence(board, board.leading, with_setting=False).partition(": ")[2]
    below = [f"**{sentence(board, board.leading)}**"]
    for name in (name for name in board.complete if name != board.leading):
        alone = sentence(board, name, with_setting=False)
        is_same = alone.partition(": ")[2] == result
        below.append(f"**On {compared_on(board, name)} the same holds.**" if is_same else f"**{alone}**")
    rows = _ended(board)
    for name in board.columns:
        count = sum(board.cell(row, name).complete for row in rows)
        if count < len(rows):
            below.append(f"{board.columns[name].name} has {count} of {len(rows)} rows so far.")
    below += [f"All rows are in the [whole table]({whole})."] if whole else []
    below += [f"Still to run: {', '.join(left)}."] if (left := still_to_run(board)) else []
    return "\n".join([as_block(board, named=named, most=most), "", " ".join(below)])
