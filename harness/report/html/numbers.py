"""Every number of every grid as a row of one long table, and every gap with its message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison import names, provenance
from harness.comparison.grid import MISSING, Grid, GridCell, is_run
from harness.report.extra_columns import updates_in_words
from harness.report.headings import Heading
from harness.report.html.rates import how_chosen, of_all, rate
from harness.report.numbers import summary_of
from harness.report.page import Block, Text, texts

COLUMNS = (
    *("method", "benchmark", "metric", "mean (%)", "SD", "95 % CI", "n", "rank", "updates", "rate", "rate chosen by"),
    *("code", "rules"),
)
NOTES = (
    "SD over seeds (ddof = 1). 95 % CI: Student's t over the seeds, of this row alone: rows are compared by their paired"
    " differences. Rank: by mean among the rows of the column without a gap, 1 is best.",
    "Updates: of the weights, + those of α. Rows with different updates differ in their scores for this reason too.",
)
Headed = Sequence[tuple[Grid, Heading]]


def numbers_block(headed: Headed) -> Block:
    """A row a number that was planned."""
    rows = []
    for grid, heading in headed:
        for place, column in enumerate(grid.columns):
            ranks = _ranks(grid, place)
            for index, row in enumerate(grid.rows):
                cell = grid.cells[index, place]
                if cell.planned:
                    words = [
                        row.shown, names.benchmark_title(column.benchmark),
                        column.short.removeprefix(names.benchmark_title(column.benchmark)).strip(),
                        *_numbers(cell), ranks.get(index, "–"), *_made(grid.members[index], column.benchmark),
                        "; ".join(messages(cell).values()) or "OK", heading.title,
                    ]  # fmt: skip
                    first, *rest = texts(words, behind=partial(provenance.of_cell, grid=grid, index=index, place=place))
                    rows.append([replace(first, name=row.label), *rest])
    return Block(heading="Every number", columns=COLUMNS if rows else (), rows=rows, below=NOTES)


def gaps_block(headed: Headed) -> Block:
    """A row a planned run that gave no score."""
    rows: dict[tuple[str, ...], list[Text]] = {}
    for grid, heading in headed:
        for (index, place), cell in sorted(grid.cells.items()):
            column, row = grid.columns[place], grid.rows[index]
            for seed, message in messages(cell).items():
                words = (row.label, names.benchmark_title(column.benchmark), str(seed), cell.codes[seed], message)
                behind = partial(provenance.of_cell, grid=grid, index=index, place=place)
                rows.setdefault((heading.title, *words), texts([*words, heading.title], behind=behind))
    columns = ("method", "benchmark", "seed", "code", "message", "rules") if rows else ()
    return Block(heading="Gaps", columns=columns, rows=list(rows.values()))


def messages(cell: GridCell) -> dict[int, str]:
    """Seed -> ``OOM (seed 2): asked for 90 GiB`` of every run that gave no score."""
    found = {}
    for seed, code in sorted(cell.codes.items()):
        said = [one.message for one in cell.records if one.run.seed == seed and is_run(one) and one.message]
        words = said[0] if said else "no record" if code == MISSING else ""
        found[seed] = f"{code} (seed {seed})" + (f": {words}" if words else "")
    return found


def _numbers(cell: GridCell) -> list[str]:
    """Mean, SD, interval and n."""
    known = summary_of(cell)
    if not known.get("mean"):
        return ["–", "–", "–", f"{known['n']} of {len(cell.planned)}"]
    low, high = (f"{100 * float(known[name]):.2f}" if known[name] else "" for name in ("low", "high"))
    spread = f"{100 * float(known['sd']):.2f}" if known["sd"] else "–"
    return [f"{100 * float(known['mean']):.2f}", spread, f"[{low}, {high}]" if low else "–", known["n"]]


def _ranks(grid: Grid, place: int) -> dict[int, str]:
    lower = names.metric(grid.columns[place].metric).lower_is_better
    means = {
        index: (-1 if lower else 1) * cell.mean
        for index in range(len(grid.rows))
        if (cell := grid.cells[index, place]).complete
    }
    if len(means) < 2:
        return {}
    ranks = stats.average_ranks([list(means.values())])
    return {index: f"{rank:g} of {len(means)}" for index, rank in zip(means, ranks, strict=True)}


def _made(members: Sequence[Record], benchmark: str) -> list[str]:
    """Updates, rate and how it was chosen."""
    runs = [one for one in members if is_run(one) and one.run.benchmark == benchmark]
    if not runs:
        return ["–", "–", "–"]
    return [updates_in_words(runs), of_all([rate(one) for one in runs]), of_all([how_chosen(one) for one in runs])]
