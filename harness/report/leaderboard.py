"""A leaderboard as people see it: its page, and its table for other pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.archive.archive import MISSING
from harness.comparison.grid import Grid
from harness.comparison.leaderboard import Leaderboard, leaderboards
from harness.report.formats import Number, Page, Score, Table, Value, heads
from harness.report.scores import footnotes, rules_in_words
from harness.report.sentences import percent, sentence, short_number, with_interval
from harness.studies import Study

SPREADS = {"pooled": "pooled over rows, Dunnett", "shrunk": "each row's own, shrunk towards that of all"}


def leaderboard_page(tables: Sequence[Grid], study: Study) -> Page:
    """A table of methods for each grid, best first."""
    import pandas as pd

    boards = leaderboards(tables, study)
    numbers = []
    for board in boards:
        tidy = board.grid.tidy()
        kept = {(column.benchmark, column.split, column.metric) for column in board.columns.values()}
        shown = [column in kept for column in zip(tidy["benchmark"], tidy["split"], tidy["metric"], strict=True)]
        numbers.append(tidy[pd.Series(shown, index=tidy.index) & (tidy["code"] != MISSING)])
    drawn = [_table(board, study) for board in boards]
    return Page(
        title=study.title, tables=drawn, foot=footnotes(drawn, [record for grid in tables for record in grid.records]),
        numbers=pd.concat(numbers, ignore_index=True), with_csv=True,
    )  # fmt: skip


def _table(board: Leaderboard, study: Study) -> Table:
    titles = [
        *([] if board.leading else ["mean Δ"]),
        *(title for column in board.columns.values() for title in (f"{column.name} (%)", f"{column.title} Δ")),
        *("encoder params (M)", "step time ×", "memory ×", "merges"),
    ]
    names = ", ".join(board.columns[name].title for name in board.complete)
    setup = f" measured on {board.session.setup}{board.session.caveat}" if board.session else ""
    below = [
        f"Δ: difference to {board.baseline} in points, paired by seed and image, positive is better. The 95 % intervals"
        f" hold for all rows of a column at once (max-T; the spread of runs is {SPREADS[board.spread]})."
        + ("" if board.leading else f" Mean: over {names}, complete for all rows."),
        f"Step time and memory: of a training step over {board.baseline}'s, from one session of `sam-peft cost`{setup}. Merges: exact or"
        " calibrated, the merge after which nothing of the method is left.",
    ]
    below += [f"Not run: {', '.join(board.not_run)}."] if board.not_run else []
    return Table(
        heading=board.grid.title, above=[*([study.note] if study.note else []), *rules_in_words(board.grid)],
        columns=heads("method", *titles, words=["merges"]), rows=[_line(board, row) for row in board.rows], below=below,
    )  # fmt: skip


def _line(board: Leaderboard, row: str) -> list[Value]:
    def change(benchmark: str) -> Value:
        return "baseline" if row == board.baseline else board.difference(row, benchmark)

    line: list[Value] = [row, *([] if board.leading else [change("")])]
    for name in board.columns:
        line += [Score(cell=board.cell(row, name)), change(name)]
    encoder = board.parameters(row)
    line.append(Number(value=None if encoder is None else encoder / 1e6, form=".3f"))
    for ratio in (board.ratio(row, "time"), board.ratio(row, "memory")):
        line.append(Number(value=ratio.value, form=".2f", low=ratio.low, high=ratio.high) if ratio else None)
    return [*line, board.merges(row) or None]


MARKS = "<!-- leaderboard: python results/analysis/answer.py --docs docs -->\n", "<!-- /leaderboard -->"
"""Between these lines of a page stands the leaderboard."""


def write_between_marks(page: Path, text: str) -> None:
    """``text`` in place of what stands between the two marks of ``page``."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")


def as_block(board: Leaderboard, rows: Sequence[str], benchmarks: Sequence[str]) -> str:
    """A markdown table for other pages: the mean difference to the baseline where there is one, else the difference on each benchmark
    named; scores; costs."""
    mean, titles = not board.leading, [board.columns[name].name for name in benchmarks]
    change = f"difference to {board.baseline}"
    scored = [f"mean {change}", *titles] if mean else [head for title in titles for head in (title, change)]
    heads = ["method", *scored, "encoder parameters", "step time", "merges"]
    table = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 2)}---|"]

    def difference_of(row: str, name: str) -> str:
        found = board.difference(row, name)
        return with_interval(found) if found else "" if row == board.baseline else "–"

    for row in rows:
        cells = [difference_of(row, "")] if mean else []
        for name in benchmarks:
            cell = board.cell(row, name)
            score = (
                f"{percent(cell.mean)} ± {percent(cell.sd or 0)}" if cell.values else cell.code.replace(MISSING, "–")
            )
            cells.append(score + " (collapsed)" * cell.collapsed)
            cells += [] if mean else [difference_of(row, name)]
        time, trained = board.ratio(row, "time"), board.parameters(row)
        step = "–" if time is None else "1×" if row == board.baseline else f"{time.value:.2f}×"
        cells += ["–" if trained is None else short_number(trained), step, board.merges(row) or "–"]
        table.append(f"| {' | '.join([row, *cells])} |")
    return "\n".join(table)


def summary(board: Leaderboard, *, most: int = 0, whole: str = "") -> str:
    """A block of the best rows, ``most`` in all (0: every one), with the baseline and the last two among them; then what they say.
    ``whole``: the address of the whole table, for the link to it."""
    rows, shown = board.rows, _benchmarks(board)
    kept = {*rows[: most - 3], *rows[-2:], board.baseline} if 0 < most < len(rows) else set(rows)
    below = [f"**{sentence(board, name)}**" for name in dict.fromkeys([board.leading, *shown])]
    for name in shown:
        count = sum(bool(board.cell(row, name).values) for row in rows)
        below += [f"{board.columns[name].name} has {count} of {len(rows)} rows so far."] if count < len(rows) else []
    if missing := len(rows) - len(kept):
        between = "1 row between these is" if missing == 1 else f"{missing} rows between these are"
        below.append(f"{between} in the [whole table]({whole}).")
    below += [f"Not run: {', '.join(board.not_run)}."] if board.not_run else []
    return "\n".join([as_block(board, [row for row in rows if row in kept], shown), "", " ".join(below)])


def _benchmarks(board: Leaderboard) -> list[str]:
    """Those on which at least a fifth of the rows have a score."""
    counts = {name: sum(bool(board.cell(row, name).values) for row in board.rows) for name in board.columns}
    return [name for name, count in counts.items() if 5 * count >= len(board.rows)]


def first_ten(board: Leaderboard) -> str:
    """A block of the ten best rows, with the baseline among them, on the benchmarks of the mean, else on the first."""
    best = board.rows[:10] if board.baseline in board.rows[:10] else [*board.rows[:9], board.baseline]
    return as_block(board, best, _benchmarks(board)[:1] if board.leading else board.complete)
