"""Results in words: the sentence of a leaderboard, the gain from tuning on own images, captions and short numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.comparison.differences import Difference
from harness.comparison.grid import LEAST_IMAGES, LEAST_SEEDS, Column, Grid
from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import NOT_ADAPTED, TITLES
from harness.comparison.names import heading as heading
from harness.comparison.names import metric_title as metric_title


def compared_on(board: Leaderboard, benchmark: str) -> str:
    """``Kvasir-SEG IoU``, ``mean of 3 benchmarks``"""
    return board.columns[benchmark].name if benchmark else f"mean of {len(board.complete)} benchmarks"


def sentence(board: Leaderboard, benchmark: str, *, with_setting: bool = True) -> str:
    """The result in one sentence, on one benchmark or for the mean over benchmarks; with what all runs share in brackets."""
    what = compared_on(board, benchmark)
    what = what if benchmark else what.capitalize()
    if any(map(board.grid.generated_on, [benchmark] if benchmark else board.complete)):
        return "These images are generated: their scores show that everything works, but do not rank methods."
    if board.grid.is_own and benchmark and (text := gain(board.grid, board.columns[benchmark])):
        return text
    judged = {row: d for row in board.rows if board.verdict(row, benchmark) and (d := board.difference(row, benchmark))}
    if not judged:
        return f"{what}: {_without_interval(board, benchmark)}."
    better, worse = (
        sorted(
            (row for row in judged if board.verdict(row, benchmark) == which), key=lambda row: -abs(judged[row].mean)
        )
        for which in ("better", "worse")
    )
    alike = len(judged) - len(better) - len(worse)
    said = [f"{enumerated(better) or 'no method'} {'beat' if len(better) > 1 else 'beats'} {board.baseline}"]
    said += [f"{alike} method{'s' * (alike > 1)} cannot be told apart from it"] if alike else []
    said += [f"{enumerated(worse)} {'are' if len(worse) > 1 else 'is'} worse"] if worse else []
    shared = f" ({setting(board, benchmark)})" if with_setting else ""
    return f"{what}{shared}: {'; '.join(said)}."


def setting(board: Leaderboard, benchmark: str = "") -> str:
    """``MobileSAM, 256 px, 1,200 updates, 400 training images, 4 seeds``, as far as all runs share them."""
    records = [r for row in board.rows for r in board.grid.records_of(row, benchmark) if r.code == "OK"]
    facts: dict[str, list[Any]] = {
        "px": [r.run.rules.get("image_size") for r in records],
        "updates": [r.budget["weight_updates"] for r in records if r.budget.get("weight_updates")],
        "training images": [r.counts.get("train") for r in records],
    }
    shared = {name: values[0] for name, values in facts.items() if len(set(values)) == 1 and values[0]}
    seeds = len({record.run.seed for record in records})
    words = [f"{number:,.0f} {name}" for name, number in shared.items()]
    backbone = str(TITLES["backbones"].get(board.grid.backbone, board.grid.backbone))
    return ", ".join([backbone, *words, f"{seeds} seed{'s' * (seeds > 1)}"])


def enumerated(names: Sequence[str], *, most: int = 6) -> str:
    """``A, B and C``"""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), *names[-1:]])


_NEEDED = f"a verdict needs {LEAST_SEEDS} seeds and {LEAST_IMAGES} test images"


def _without_interval(board: Leaderboard, benchmark: str) -> str:
    columns = [board.columns[name] for name in ([benchmark] if benchmark else board.complete)]
    cells = {row: [board.grid.cells[row, column] for column in columns] for row in board.rows}
    whole = {row: here for row, here in cells.items() if all(cell.complete for cell in here)}
    others = [row for row in whole if row != board.baseline]
    if not whole:
        return "no row has all of its seeds yet, so nothing is ranked"
    if all(cell.empty for here in whole.values() for cell in here):
        return "the masks of every row are almost empty, so nothing is ranked"
    if board.baseline not in whole:
        why = f"{board.baseline} lacks seeds"
    elif not others:
        why = "no other row has all of its seeds"
    elif min(cell.n for here in whole.values() for cell in here) < 2:
        why = "too few seeds for a ranking"
    else:
        why = _flags(board.grid, [board.baseline], columns) or _flags(board.grid, others, columns) or _NEEDED
    ranked = [row for row in board.on(benchmark) if row in whole and not whole[row][0].empty] if benchmark else []
    return f"{ranked[0]} has the best score ({percent(whole[ranked[0]][0].mean)}); {why}" if ranked else why


def _flags(grid: Grid, rows: Sequence[str], columns: Sequence[Column]) -> str:
    """Why rows have no interval: ``a run of LoRA collapsed``"""
    words = {"COLLAPSED": "a run of {} collapsed", "EMPTY": "masks of {} are almost empty"}
    flags = [words[flag].format(row) for row in rows for column in columns for flag in grid.cells[row, column].flags]
    return " and ".join(dict.fromkeys(flags))


def gain(grid: Grid, column: Column) -> str:
    """Whether adapting the encoder helps on one's own images, on a leading column: the best row against the decoder alone, else against
    zero-shot. Empty where neither has a score."""
    complete = {row: cell for row in grid.rows if (cell := grid.cells[row, column]).complete}
    if complete and all(cell.empty for cell in complete.values()):
        return f"{column.name}: the masks of every row are almost empty, so nothing is ranked."
    cells = {row: cell for row, cell in complete.items() if not cell.empty}
    best = max(cells, key=lambda row: column.sign * cells[row].mean, default="")
    plain = [row for method in NOT_ADAPTED for row in complete if grid.rows[row].method == method]
    tuned = sorted(cells.keys() - set(plain), key=lambda row: -column.sign * cells[row].mean)
    other = next((row for row in [*plain, *tuned] if row != best), "")
    if not best or not plain or not other:
        return ""
    difference = Leaderboard(grid=grid, baseline=other).difference(best, column.benchmark)
    if difference is None:
        return ""
    seeds = f"{difference.n} seed{'s' * (difference.n > 1)}"
    compared = "but not significantly different from" if difference.is_none else "and significantly better than"
    points = f"{with_interval(difference)} points, {seeds}, "
    points += "no interval" if difference.low is None else f"95 % interval over {difference.over}"
    if difference.low is None or not grid.decides(column):
        images = grid.images_on(column)
        these = f"these {images} images" if images > 1 else "this image"
        why = _flags(grid, [best, other], [column]) or _NEEDED
        return f"{column.name}: {best} scores better than {other} on {these}: {points}; {why}."
    return f"{column.name}: {best} is best, {compared} {other}: {points}."


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def with_interval(difference: Difference) -> str:
    """``+1.2 [+0.3, +2.1]``"""
    # A bound below zero keeps its sign when it rounds to zero, since the verdict depends on it.
    bounds = "" if difference.low is None else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    return f"{difference.mean:+z.1f}{bounds}"


def caption(board: Leaderboard) -> str:
    """The end of every caption."""
    seeds = sorted({record.run.seed for record in board.grid.records})
    rules = f"protocol {board.grid.protocol}, hash {board.grid.protocol_hash}; backbone {board.grid.backbone}"
    return f"Seeds {', '.join(map(str, seeds))}; {rules}."


def short_number(value: float) -> str:
    """``22k``"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # what three digits round up to it
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
