"""The answer in sentences: which rows are best, what they cost in parameters, under which budget, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison.cells import Cell, Column, Difference, Grid
from harness.comparison.names import BENCHMARK_GROUPS, benchmark_title
from harness.comparison.rows import Row, quoted
from harness.comparison.rules import HEADED, headed
from harness.report.score_tables import updates_in_words

MOST_NAMED = 5
RANKS_NOTHING = (
    "These numbers show that the path from files to tables works. The images are generated: nothing is ranked."
)
NO_TWO = "No two rows have two seeds each on one benchmark: nothing is ranked."


def answer(grid: Grid) -> list[str]:
    """All that is to be said of one grid."""
    ranked = [*_overall(grid), *answers(grid), *(_per_parameter(grid) if grid.marks else [])]
    said = ranked or ([RANKS_NOTHING] if grid.is_generated else _highest(grid) or [NO_TWO])
    return [*said, *_budgets(grid), _missing(grid)]


def answers(grid: Grid) -> list[str]:
    """One sentence a benchmark that at least two rows have two seeds on."""
    sentences = []
    for column in grid.first_metrics:
        best, tied = (
            [cell for cell in grid.below(column) if grid.marks.get(cell) == mark] for mark in ("best", "tied")
        )
        if not best:
            if not grid.is_generated and len(grid.best_first(column)) > 1 and (unranked := grid.unranked(column)):
                sentences.append(f"{column.short}: nothing is ranked before all seeds of {_named(unranked)} are in.")
            continue
        tied.sort(key=lambda cell: -column.sign * cell.value)
        where = column.short + (f" ({column.note})" if column.note else "")
        sentence = f"{where}: {_named(best)} {'is' if len(best) == 1 else 'are'} best ({100 * best[0].value:.1f})"
        if tied:
            sentence += f"; not significantly different from it: {_named(tied)}"
        sentences.append(sentence + _worse(grid, column, {*best, *tied}) + ".")
    return sentences


def _highest(grid: Grid) -> list[str]:
    """Where no row has two seeds: what is highest of those on one benchmark, and by how much, which is no ranking."""
    sentences = []
    for column in grid.first_metrics:
        scored = sorted((cell for cell in grid.below(column) if cell.n), key=lambda cell: -column.sign * cell.value)
        if len(scored) > 1:
            first, second = scored[:2]
            word = "lowest" if column.sign < 0 else "highest"
            gap = 100 * abs(first.value - second.value)
            sentences.append(
                f"{column.short}: {word} here (1 seed): {first.row.in_words} ({100 * first.value:.1f}), {gap:.1f} points from"
                f" {second.row.in_words}; one seed ranks nothing."
            )
    return sentences


def _worse(grid: Grid, column: Column, others: set[Cell]) -> str:
    """``; 11 are worse, from samed (by 1.7 [0.6, 2.8] points) to full (by 27.8 [22.1, 33.5])``, and what is not: a row that
    has other seeds and is ahead on those that both have."""
    best = grid.best_first(column)[0].row  # of several that print alike
    rest = [cell for cell in grid.below(column) if cell.ranks and cell not in others]
    behind = [difference for cell in rest if (difference := grid.difference(best, cell.row, column)) is not None]
    ahead = [difference.second for difference in behind if difference.mean < 0]
    but = f"; on common seeds {_named(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of it" if ahead else ""
    order = sorted(
        (difference for difference in behind if difference.second not in ahead), key=lambda difference: difference.mean
    )
    if not order:
        return but
    first, last = order[0], order[-1]
    near = f"{first.second.row.in_words} (by {_points(first)} points)"
    if len(order) == 1:
        return f"; {near} is worse{but}"
    return f"; {len(order)} are worse, from {near} to {last.second.row.in_words} (by {_points(last)}){but}"


def _points(difference: Difference) -> str:
    interval = difference.interval
    assert interval is not None  # otherwise it would be among those that are not significantly different
    number = f".{stats.digits_of(interval, 1)}f"
    return f"{difference.mean:{number}} {interval:{number}}"


def _named(cells: Sequence[Cell]) -> str:
    labels = [cell.row.in_words for cell in cells]
    if len(labels) > MOST_NAMED:
        return f"{', '.join(labels[:MOST_NAMED])} and {len(labels) - MOST_NAMED} more"
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))


def _overall(grid: Grid) -> list[str]:
    """On how many benchmarks a row is best or not significantly different from the best, for grids with several."""
    columns = [column for column in grid.first_metrics if any(cell in grid.marks for cell in grid.below(column))]
    if len(columns) < 2:
        return []
    counts: dict[Row, tuple[int, int]] = {}
    for row in grid.rows:
        cells = [cell for column in columns if (cell := grid.cells[row, column]).complete]
        counts[row] = sum(grid.marks.get(cell) in ("best", "tied") for cell in cells), len(cells)
    order = sorted((row for row in counts if counts[row][0]), key=lambda row: (-counts[row][0], counts[row][1]))
    words = _some([f"{row.in_words} on {counts[row][0]} of {counts[row][1]}" for row in order])
    none = sum(1 for best, of in counts.values() if of and not best)
    said = f"Over {len(columns)} benchmarks, best or not significantly different from the best: {words}"
    return [said + (f"; {none} other rows on none." if none else ".")]


def _per_parameter(grid: Grid) -> list[str]:
    """Which of the rows that are best or tied trains least in the encoder; one sentence an answer."""
    on: dict[str, list[str]] = {}
    for column in grid.first_metrics:
        sizes: dict[Cell, int] = {}
        for cell in grid.below(column):
            counts = {record.parameters.get("encoder") for record in cell.records} - {None}
            if grid.marks.get(cell) in ("best", "tied") and len(counts) == 1:
                sizes[cell] = counts.pop() or 0
        best = [cell for cell in sizes if grid.marks[cell] == "best"]
        if len(sizes) < 2 or not best:
            continue
        least = min(sizes, key=lambda cell: sizes[cell])
        words = f"{least.row.in_words} trains least in the encoder ({_millions(sizes[least])})"
        if least is not best[0]:
            words += f"; the best, {best[0].row.in_words}, trains {_millions(sizes[best[0]])}"
        on.setdefault(words, []).append(column.short)
    return [
        f"Per parameter, of the rows that are not significantly different from the best on {', '.join(columns)}: {words}."
        for words, columns in on.items()
    ]


def _budgets(grid: Grid) -> list[str]:
    """What every row was given, one sentence for all benchmarks that it is the same on."""
    on: dict[str, list[str]] = {}
    for benchmark in grid.benchmarks:
        rows: dict[str, list[str]] = {}
        given: list[Record] = []
        for row in grid.rows:
            if runs := row.runs_on(benchmark):
                updates = updates_in_words([record for record in runs if record.code == "OK"])
                rows.setdefault(updates, []).append(quoted(row.label))
                given = given or runs
        if given:
            updates_said = _updates({count: labels for count, labels in rows.items() if count != "–"})
            words = "; ".join(filter(None, (_given(given[0]), updates_said)))
            on.setdefault(words, []).append(grid.title_of(benchmark))
    return [f"Budget on {', '.join(titles)}: {words}." for words, titles in on.items() if words]


def _given(record: Record) -> str:
    """``100 training images, 224 px, 6 epochs``: the images that there were, not the most that the rules allow."""
    rules = record.run.rules
    words = headed([name for name in HEADED if name in rules and name != "train_limit"], rules)
    images = f"{record.counts['train']} training images" if "train" in record.counts else ""
    return ", ".join(filter(None, (images, words)))


def _updates(rows: Mapping[str, list[str]]) -> str:
    """``300 weight updates in every row``, or which rows have others."""
    if not rows:
        return ""
    if len(rows) == 1:
        return f"{next(iter(rows))} weight updates in every row"
    usual, *others = sorted(rows, key=lambda count: -len(rows[count]))
    apart = "; ".join(f"{count} in {_some(rows[count])}" for count in others)
    return f"{usual} weight updates in most rows, but {apart}, whose scores differ for this reason too"


def _missing(grid: Grid) -> str:
    """Planned runs without a score, rows and benchmarks that nobody planned."""
    gaps: dict[str, list[int]] = {}
    for cell in grid.cells.values():
        for seed, code in cell.codes.items():
            where = f"{quoted(cell.row.label)} on {cell.column.benchmark_title} ({code}, seed"
            seeds = gaps.setdefault(where, [])
            seeds += [seed] if seed not in seeds else []
    words = [f"{where}{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})" for where, seeds in gaps.items()]
    said = [f"without a score: {_some(words)}"] if words else ["every planned run has its score"]
    absent = [benchmark_title(name) for name in BENCHMARK_GROUPS if name not in grid.benchmarks]
    if absent and len(absent) < len(BENCHMARK_GROUPS):
        said.append(f"not run under these rules: {', '.join(absent)}")
    for benchmark in grid.benchmarks:
        columns = [column for column in grid.columns if column.benchmark == benchmark]
        planned = sum(any(grid.cells[row, column].planned for column in columns) for row in grid.rows)
        if planned < len(grid.rows):
            said.append(f"{grid.title_of(benchmark)} was planned for {planned} of {len(grid.rows)} rows")
    return "Missing: " + "; ".join(said) + "."


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more


def _millions(count: float) -> str:
    return f"{count / 1e6:.3f} M"
