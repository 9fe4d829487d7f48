"""Blocks of pages as tables of the report: every row and column tagged for the filters, every cell with what is behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.comparison import names
from harness.comparison.grid import Grid
from harness.comparison.provenance import Folder
from harness.report.html.content import Head, Line, PageCell, Table, Tags
from harness.report.page import Behind, Block, Text
from harness.report.why import behind, row_label
from harness.system.text import printable_line


class Explained:
    """What stands behind cells, each different text once and each different line once.

    Args:
        folder: where the records lie.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._lines: dict[str, int] = {}
        self._texts: dict[tuple[int, ...], int] = {}
        self._of: dict[int, tuple[Behind, int]] = {}

    def place_of(self, cell: Text) -> int:
        """Where its explanation stands in `texts`."""
        explain = cell.behind
        if explain is not None and id(explain) in self._of:  # the cells of a row often share theirs
            return self._of[id(explain)][1]
        lines = tuple(
            self._lines.setdefault(printable_line(line), len(self._lines)) for line in behind(cell, self._folder)
        )
        place = self._texts.setdefault(lines, len(self._texts))
        if explain is not None:
            self._of[id(explain)] = (explain, place)  # kept alive, so that the id stays its own
        return place

    @property
    def texts(self) -> list[tuple[int, ...]]:
        return list(self._texts)

    @property
    def lines(self) -> list[str]:
        return list(self._lines)


@dataclass(frozen=True, kw_only=True)
class Known:
    """The words by which tables name methods, benchmarks and metrics.

    Args:
        methods: as printed -> the row's label.
        numbers: as printed -> benchmark and metric; a benchmark alone has no metric.
    """

    methods: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Tags] = field(default_factory=dict)

    @classmethod
    def of(cls, grids: Iterable[Grid], variants: Iterable[str] = ()) -> Known:
        """From grids, and from the names that cost sessions give their methods."""
        known = cls()
        for grid in grids:
            for row in grid.rows:
                known.methods.update(dict.fromkeys((row.label, row.named, row.shown), row.label))
            for column in grid.columns:
                tags = Tags(benchmark=column.benchmark, metric=column.metric)
                known.numbers[column.short] = tags
                known.numbers[names.benchmark_title(column.benchmark)] = Tags(benchmark=column.benchmark)
        for name in variants:
            known.methods.setdefault(name, name)
        return known

    def of_row(self, row: Sequence[Text]) -> Tags:
        """The tags of a row, from its name and the words behind it."""
        name = row_label(row[0:1])
        method = self.methods.get(name) or self.methods.get(re.sub(r" #[0-9a-f]{6}$", "", name), "")
        found = [tags for cell in row[1:3] if (tags := self.numbers.get(cell.text))]
        benchmark = next((tags.benchmark for tags in found), "")
        return Tags(method=method, benchmark=benchmark, metric=next((tags.metric for tags in found if tags.metric), ""))


def laid_out(
    block: Block, known: Known, explained: Explained, *, name: str, level: int = 3, words: int | None = None
) -> Table:
    """A block as a table of the report.

    Args:
        name: unique in the report.
        level: of a block of level 2.
        words: see `Table`.
    """
    heads = []
    for place, title in enumerate(block.columns):
        alias = next((alias for alias in block.aliases.get(title, ()) if alias.count(".") == 1), "")
        benchmark, _, metric = alias.partition(".")
        heads.append(Head(title=title, tags=Tags(benchmark=benchmark, metric=metric), words=block.is_words(place)))
    rows = [
        Line(
            label=row_label(row),
            tags=known.of_row(row),
            cells=[PageCell(text=cell.text, mark=cell.mark, why=explained.place_of(cell)) for cell in row],
        )
        for row in block.rows
    ]
    return Table(
        name=name, heading=block.heading, level=level + block.level - 2, above=block.above, columns=heads, rows=rows,
        below=block.below, words=words,
    )  # fmt: skip
