"""The answer that stands first: which rows are best, what they cost in parameters, under which budget, what is missing."""

from __future__ import annotations

from collections.abc import Mapping

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.grid import Grid, first_metrics, is_run, quoted
from harness.comparison.rules import HEADED, headed
from harness.comparison.sources import Sources
from harness.report.answers import MOST_NAMED, answers
from harness.report.extra_columns import updates_in_words
from harness.report.headings import Heading
from harness.report.html.content import Answer
from harness.report.marks import best_marks
from harness.report.page import Mark
from harness.report.tables import RANKS_NOTHING, is_generated

Marks = Mapping[tuple[int, int], Mark]
"""(row, column) -> mark"""
FIRST = ("best", "tied")
NO_TWO = "No two rows have two seeds each on one benchmark: nothing is ranked."


def answer(grid: Grid, heading: Heading, *, sources: Sources) -> Answer:
    """The sentences of one grid."""
    generated = is_generated(grid)
    marks = {} if generated else best_marks(grid, sources.images_of)
    ranked = [*_overall(grid, marks), *answers(grid, sources=sources), *_per_parameter(grid, marks)] if marks else []
    said = ranked or [RANKS_NOTHING if generated else NO_TWO]
    return Answer(heading=heading.title, sentences=[*said, *_budgets(grid), _missing(grid)], ranks=bool(ranked))


def _overall(grid: Grid, marks: Marks) -> list[str]:
    """On how many benchmarks a row is best or cannot be told from the best, for grids with several."""
    places = [place for place in first_metrics(grid) if any(at == place for _, at in marks)]
    if len(places) < 2:
        return []
    found: dict[int, tuple[int, int]] = {}
    for index in range(len(grid.rows)):
        ranked = [place for place in places if grid.cells[index, place].complete]
        found[index] = sum(marks.get((index, place)) in FIRST for place in ranked), len(ranked)
    order = sorted((index for index in found if found[index][0]), key=lambda index: (-found[index][0], found[index][1]))
    words = _some([f"{grid.rows[index].in_words} on {found[index][0]} of {found[index][1]}" for index in order])
    none = sum(1 for best, of in found.values() if of and not best)
    said = f"Over {len(places)} benchmarks, best or not distinguishable from the best: {words}"
    return [said + (f"; {none} other rows on none." if none else ".")]


def _per_parameter(grid: Grid, marks: Marks) -> list[str]:
    """Which of the rows that cannot be told from the best trains least in the encoder; one sentence an answer."""
    found: dict[str, list[str]] = {}
    for place in first_metrics(grid):
        column = grid.columns[place]
        counts = {}
        for index in range(len(grid.rows)):
            sizes = {one.parameters.get("encoder") for one in grid.cells[index, place].records} - {None}
            if marks.get((index, place)) in FIRST and len(sizes) == 1:
                counts[index] = sizes.pop() or 0
        best = [index for index in counts if marks[index, place] == "best"]
        if len(counts) < 2 or not best:
            continue
        least = min(counts, key=lambda index: (counts[index], index))
        words = f"{grid.rows[least].in_words} trains least in the encoder ({_millions(counts[least])})"
        if least != best[0]:
            words += f"; the best, {grid.rows[best[0]].in_words}, trains {_millions(counts[best[0]])}"
        found.setdefault(words, []).append(column.short)
    return [
        f"Per parameter, of the rows that cannot be told from the best on {', '.join(on)}: {words}."
        for words, on in found.items()
    ]


def _budgets(grid: Grid) -> list[str]:
    """What every row was given, one sentence for all benchmarks that it is the same on."""
    found: dict[str, list[str]] = {}
    for benchmark in dict.fromkeys(column.benchmark for column in grid.columns):
        updates: dict[str, list[str]] = {}
        some: list[Record] = []
        for index, row in enumerate(grid.rows):
            mine = [one for one in grid.members[index] if is_run(one) and one.run.benchmark == benchmark]
            if mine:
                updates.setdefault(updates_in_words([one for one in mine if one.code == "OK"]), []).append(
                    quoted(row.label)
                )
                some = some or mine
        if not some:
            continue
        words = _given(some[0])
        said = _updates({count: labels for count, labels in updates.items() if count != "–"})
        found.setdefault("; ".join(filter(None, (words, said))), []).append(names.benchmark_title(benchmark))
    return [f"Budget on {', '.join(on)}: {words}." for words, on in found.items() if words]


def _given(record: Record) -> str:
    """``100 training images, 224 px, 6 epochs``: the images that there were, not the most that the rules allow."""
    rules = record.run.rules
    words = headed([name for name in HEADED if name in rules and name != "train_limit"], rules)
    images = f"{record.counts['train']} training images" if "train" in record.counts else ""
    return ", ".join(filter(None, (images, words)))


def _updates(rows: dict[str, list[str]]) -> str:
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
    for (index, place), cell in sorted(grid.cells.items()):
        for seed, code in cell.codes.items():
            where = f"{quoted(grid.rows[index].label)} on {names.benchmark_title(grid.columns[place].benchmark)} ({code}, seed"
            gaps.setdefault(where, [])
            gaps[where] += [seed] if seed not in gaps[where] else []
    words = [f"{where}{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})" for where, seeds in gaps.items()]
    said = [f"without a score: {_some(words)}"] if words else ["every planned run has its score"]
    titles = [names.benchmark_title(name) for name in names.BENCHMARK_GROUPS]
    there = dict.fromkeys(names.benchmark_title(column.benchmark) for column in grid.columns)
    absent = [title for title in titles if title not in there]
    if absent and len(absent) < len(titles):
        said.append(f"not run under these rules: {', '.join(absent)}")
    for title in there:
        places = [place for place, one in enumerate(grid.columns) if names.benchmark_title(one.benchmark) == title]
        planned = sum(any(grid.cells[index, place].planned for place in places) for index in range(len(grid.rows)))
        if planned < len(grid.rows):
            said.append(f"{title} was planned for {planned} of {len(grid.rows)} rows")
    return "Missing: " + "; ".join(said) + "."


def _some(words: list[str]) -> str:
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return ", ".join(words[:MOST_NAMED]) + more


def _millions(count: float) -> str:
    return f"{count / 1e6:.3f} M"
