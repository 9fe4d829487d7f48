"""What was tried and chosen, a row a method and benchmark: the rates behind a table of tuned methods."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from harness.comparison import names, provenance
from harness.comparison.grid import Grid
from harness.reporting.headings import Heading
from harness.reporting.page import Block, Text, texts

NOTES = [
    "Score: of the validation images, mean over the trials' seeds; the tests were not looked at.",
    "Edge: the chosen value is the first or last of its grid, and a better one may lie beyond.",
]


def tuning_blocks(grid: Grid, *, heading: Heading) -> list[Block]:
    """One block, or none where nothing was tuned."""
    rows: dict[tuple[str, str], list[Text]] = {}
    for index, row in enumerate(grid.rows):
        for record in grid.members[index]:
            tuning = record.run.tuning
            if "chosen" in tuning:
                place, behind = (row.label, record.run.benchmark), partial(provenance.of_row, grid=grid, index=index)
                rows.setdefault(place, texts(_row(*place, tuning), behind=behind))
    if not rows:
        return []
    return [
        Block(
            heading=f"{heading.title}: tuned",
            level=3,
            columns=["method", "benchmark", "score", "trials", "chosen", "edge", "hours"],
            rows=list(rows.values()),
            below=NOTES,
        )
    ]


def _row(label: str, benchmark: str, tuning: Mapping[str, Any]) -> list[str]:
    """A label's row."""
    metric = names.metric(str(tuning["metric"]))
    where = ", ".join(names.benchmark_title(name) for name in tuning["on"])
    tried = [f"{_words(one['options'])}: {_score(one['score'])}" for one in tuning["trials"]]
    return [
        label,
        names.benchmark_title(benchmark),
        f"{metric.heading} on {where}",
        "; ".join(tried),
        _words(tuning["chosen"]),
        ", ".join(tuning["edge"]) or "–",
        f"{tuning['hours']:.2f}",
    ]


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _score(score: float | None) -> str:
    return "diverged" if score is None else f"{100 * score:.1f}"
