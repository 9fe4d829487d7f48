"""How a leaderboard is shown: its page, and its table for other pages."""

from __future__ import annotations

from collections.abc import Sequence

from harness.archive.archive import MISSING
from harness.comparison.leaderboard import Leaderboard
from harness.report.formats import Number, Page, Score, Table, Value, heads
from harness.report.scores import footnotes, rules_in_words
from harness.report.sentences import enumerated
from harness.studies import Study

SPREADS = {"pooled": "pooled over rows, Dunnett", "shrunk": "each row's own, shrunk towards that of all"}
STATE = "State: submitted (nobody else ran it), rerun by CI (one replicate), or rerun by maintainers (every run)."


def leaderboard_page(boards: Sequence[Leaderboard], study: Study) -> Page:
    """A table of methods for each leaderboard, best first."""
    import pandas as pd

    numbers = []
    for board in boards:
        tidy = board.grid.tidy()
        first = [(column.benchmark, column.metric) for column in board.columns.values()]
        shown = [column in first for column in zip(tidy["benchmark"], tidy["metric"], strict=True)]
        numbers.append(tidy[pd.Series(shown, index=tidy.index) & (tidy["code"] != MISSING)])
    drawn = [_table(board, study) for board in boards]
    return Page(
        title=study.title, tables=drawn, foot=footnotes(drawn, [record for board in boards for record in board.grid.records]),
        numbers=pd.concat(numbers, ignore_index=True), with_csv=True,
    )  # fmt: skip


def still_to_run(board: Leaderboard) -> list[str]:
    """What has not run: rows that lack runs on every benchmark, those that have begun with how far they are, and benchmarks on which no
    row is whole."""
    left = []
    for row in board.grid.rows:
        cells = [board.cell(row, name) for name in board.columns]
        if all(MISSING in cell.codes.values() or not cell.planned for cell in cells):
            most = max(cells, key=lambda cell: len(cell.values))
            left.append(f"{row} ({len(most.values)} of {len(most.planned)} seeds)" if most.values else row)
    return left + [column.title for name, column in board.grid.first_columns.items() if name not in board.columns]


def _table(board: Leaderboard, study: Study) -> Table:
    lines = [_line(board, row) for row in board.rows]
    has_states = any(line["state"] for line in lines)
    titles = [title for title in lines[0] if title != "state" or has_states]
    where = enumerated([board.columns[name].name for name in ([board.leading] if board.leading else board.complete)])
    where = where if board.leading else f"the mean over {where}, for rows with all seeds on each"
    setup = f" measured on {board.session.setup}{board.session.caveat}" if board.session else ""
    known = (board.difference(row, name) for row in board.rows for name in ("", *board.columns))
    over = sorted({each.over for each in known if each and each.low is not None})
    below = [
        f"Δ: difference to {board.baseline} in points, paired by seed, positive is better. The 95 % intervals"
        f" are over {', or '.join(over) or 'seeds'} and hold for all rows of a column at once"
        f" (max-T; the spread of runs is {SPREADS[board.spread]})."
        f" Verdict: on {where}, better or worse where the interval leaves out 0.",
        f"Step time and memory: of a training step over {board.baseline}'s, from one session of `sam-peft cost`{setup}. Merges: exact or"
        " calibrated, the merge after which nothing of the method is left.",
    ]
    if any(each.split_title.startswith("official") for name in board.columns for each in board.other_splits(name)):
        below.append(
            "Official: the given test images alone. The others are of the training part, and nothing trained on them; all of them rank."
        )
    below += [STATE] if has_states else []
    below += [f"Still to run: {', '.join(left)}."] if (left := still_to_run(board)) else []
    return Table(
        heading=board.grid.title, above=[*([study.note] if study.note else []), *rules_in_words(board.grid)],
        columns=heads(*titles, words=["verdict", "merges", "state"]), below=below,
        rows=[[line[title] for title in titles] for line in lines],
    )  # fmt: skip


def _line(board: Leaderboard, row: str) -> dict[str, Value]:
    """Heading -> value."""

    def change(benchmark: str) -> Value:
        return "baseline" if row == board.baseline else board.difference(row, benchmark)

    line: dict[str, Value] = {"method": row} if board.leading else {"method": row, "mean Δ": change("")}
    line["verdict"] = board.verdict(row, board.leading) or None
    for name, column in board.columns.items():
        line |= {f"{column.name} (%)": Score(cell=board.cell(row, name)), f"{column.name} Δ": change(name)}
        line |= {f"{other.name} (%)": Score(cell=board.grid.cells[row, other]) for other in board.other_splits(name)}
    for title, part in (("encoder params (M)", "encoder"), ("all trained (M)", "trainable")):
        line[title] = Number.span([board.parameters(row, part)], unit=1e6, form=".3f")
    for title, ratio in (("step time ×", board.ratio(row, "time")), ("memory ×", board.ratio(row, "memory"))):
        line[title] = Number(value=ratio.value, form=".2f", low=ratio.low, high=ratio.high) if ratio else None
    return {**line, "merges": board.merges(row) or None, "state": board.state(row) or None}
