"""How a leaderboard is shown: its page, and its table for other pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from harness.archive.archive import MISSING
from harness.comparison.leaderboard import Leaderboard
from harness.report.formats import Number, Page, Score, Table, Value, heads
from harness.report.scores import footnotes, rules_in_words
from harness.report.sentences import compared_on, enumerated, percent, sentence, short_number, with_interval
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
        if all(cell.code == MISSING or not cell.planned for cell in cells):
            most = max(cells, key=lambda cell: len(cell.values))
            left.append(f"{row} ({len(most.values)} of {len(most.planned)} seeds)" if most.values else row)
    return left + [column.title for name, column in board.grid.first_columns.items() if name not in board.columns]


def _table(board: Leaderboard, study: Study) -> Table:
    lines = [_line(board, row) for row in board.rows]
    has_states = any(line["state"] for line in lines)
    titles = [title for title in lines[0] if title != "state" or has_states]
    where = enumerated([board.columns[name].title for name in ([board.leading] if board.leading else board.complete)])
    where = where if board.leading else f"the mean over {where}, for rows with all seeds on each"
    setup = f" measured on {board.session.setup}{board.session.caveat}" if board.session else ""
    below = [
        f"Δ: difference to {board.baseline} in points, paired by seed and image, positive is better. The 95 % intervals"
        f" hold for all rows of a column at once (max-T; the spread of runs is {SPREADS[board.spread]})."
        f" Verdict: on {where}, better or worse where the interval leaves out 0.",
        f"Step time and memory: of a training step over {board.baseline}'s, from one session of `sam-peft cost`{setup}. Merges: exact or"
        " calibrated, the merge after which nothing of the method is left.",
    ]
    if any(map(board.other_splits, board.columns)):
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
        line |= {f"{column.name} (%)": Score(cell=board.cell(row, name)), f"{column.title} Δ": change(name)}
        line |= {f"{other.name} (%)": Score(cell=board.grid.cells[row, other]) for other in board.other_splits(name)}
    for title, part in (("encoder params (M)", "encoder"), ("all trained (M)", "trainable")):
        line[title] = Number.span([board.parameters(row, part)], unit=1e6, form=".3f")
    for title, ratio in (("step time ×", board.ratio(row, "time")), ("memory ×", board.ratio(row, "memory"))):
        line[title] = Number(value=ratio.value, form=".2f", low=ratio.low, high=ratio.high) if ratio else None
    return {**line, "merges": board.merges(row) or None, "state": board.state(row) or None}


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
        whole = [row for row in board.rows if any(board.cell(row, name).code != MISSING for name in board.columns)]
        rows = [row for row in whole if verdicts[row] == verdict]
        shown = [row for row in rows if not most or row in rows[:most] or row in (board.baseline, *named)]
        shown = rows if len(rows) == len(shown) + 1 else shown
        lines += [f"| {' | '.join([row, *_cells(board, row)])} |" for row in shown]
        if left := len(rows) - len(shown):
            lines.append(f"| *and {left} more* |  | {verdict} |{' |' * (len(titles) - 2)}")
    return "\n".join(lines)


def _cells(board: Leaderboard, row: str) -> list[str]:
    found, is_baseline = board.difference(row, board.leading), row == board.baseline
    cells = [
        "baseline" if is_baseline else with_interval(found) if found else "–",
        board.verdict(row, board.leading) or ("" if is_baseline else "no interval"),
    ]
    for name in board.columns:
        cell = board.cell(row, name)
        score = (
            f"{percent(cell.mean)} ± {percent(cell.sd or 0)}"
            if cell.complete
            else cell.code.replace(MISSING, "–") or "–"
        )
        cells.append(score + " (collapsed)" * cell.collapsed)
    for count in (board.parameters(row), board.parameters(row, "trainable")):
        cells.append("–" if count is None else short_number(count))
    for ratio in (board.ratio(row, "time"), board.ratio(row, "memory")):
        cells.append("–" if ratio is None else "1×" if is_baseline else f"{ratio.value:.2f}×")
    return [*cells, board.merges(row) or "–"]


def summary(board: Leaderboard, *, named: Collection[str] = (), most: int = 0, whole: str = "") -> str:
    """A block (`as_block`) with its result in a sentence below. ``whole``: the address of the whole table, for the link to it."""
    shown = dict.fromkeys([board.leading, *board.columns])
    below = [f"**{sentence(board, name, with_setting=name == board.leading)}**" for name in shown]
    for name in board.columns:
        count = sum(bool(board.cell(row, name).values) for row in board.rows)
        if count < len(board.rows):
            below.append(f"{board.columns[name].name} has {count} of {len(board.rows)} rows so far.")
    below += [f"All rows are in the [whole table]({whole})."] if whole else []
    below += [f"Still to run: {', '.join(left)}."] if (left := still_to_run(board)) else []
    return "\n".join([as_block(board, named=named, most=most), "", " ".join(below)])
