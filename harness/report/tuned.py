"""What was tried and chosen, a row a method and choice: the rates behind a table of tuned methods."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

from harness.comparison import names, provenance
from harness.comparison.grid import Grid
from harness.report.headings import Heading
from harness.report.page import Block, texts

NOTES = [
    "Score: of the validation images, mean over the trials' seeds; the tests were not looked at.",
    "Edge: the chosen value is the first or last of its grid, and a better one may lie beyond.",
]


def tuning_blocks(grid: Grid, *, heading: Heading) -> list[Block]:
    """One block, or none where nothing was tuned."""
    chosen: dict[tuple[int, str], Mapping[str, Any]] = {}
    for index in range(len(grid.rows)):
        for record in grid.members[index]:
            if "chosen" in record.run.tuning:
                chosen.setdefault((index, record.run.benchmark), record.run.tuning)
    told: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    benchmarks = dict.fromkeys(column.benchmark for column in grid.columns)
    for index, benchmark in itertools.product(range(len(grid.rows)), benchmarks):
        if tuning := chosen.get((index, benchmark)):
            told.setdefault((index, _choice(tuning)), []).append(names.benchmark_title(benchmark))
    rows = [
        texts(
            [grid.rows[index].label, ", ".join(where), *choice],
            behind=partial(provenance.of_row, grid=grid, index=index),
        )
        for (index, choice), where in told.items()
    ]
    if not rows:
        return []
    return [
        Block(
            heading=f"{heading.title}: tuned",
            level=3,
            columns=["method", "benchmark", "score", "trials", "chosen", "edge", "hours"],
            rows=rows,
            below=NOTES,
        )
    ]


def _choice(tuning: Mapping[str, Any]) -> tuple[str, ...]:
    """What chose, what was tried, the choice, its edges and hours."""
    metric = names.metric(str(tuning["metric"]))
    where = ", ".join(names.benchmark_title(name) for name in tuning["on"])
    tried = [f"{_words(one['options'])}: {_score(one['score'])}" for one in tuning["trials"]]
    return (
        f"{metric.heading} on {where}",
        "; ".join(tried),
        _words(tuning["chosen"]),
        ", ".join(tuning["edge"]) or "–",
        f"{tuning['hours']:.2f}",
    )


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _score(score: float | None) -> str:
    return "diverged" if score is None else f"{100 * score:.1f}"
