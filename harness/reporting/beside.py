"""Published numbers beside ours: value, ours, difference, interval, verdict."""

from __future__ import annotations

from collections.abc import Iterable

from harness.reporting import names
from harness.reporting.grid import Grid, is_run
from harness.reporting.page import Block, Text
from harness.reporting.published import PARAMETERS, Published, by_row
from harness.reporting.statistics import Interval, t_interval
from harness.reporting.verdicts import judge

TOLERANCE = 1.0
"""Percentage points around a published score that count as the same: our choice, no paper states one."""

FOOTNOTES = (
    f"Verdict: reproduced if our 95 % t interval over seeds lies inside paper ± {TOLERANCE:g} points, not reproduced if"
    " wholly outside, else inconclusive; parameters must agree in every printed digit.",
    "Marks of sources: P a public page about the paper, S quoted by third parties that had it (a typo is possible).",
)


def published_block(grid: Grid, cells: Iterable[Published]) -> Block | None:
    """One row for every number that a paper has for a cell of the grid; None where there is no such number."""
    known = by_row(cells)
    rows = []
    for index, row in enumerate(grid.rows):
        if row.score != "best":
            continue
        for place, column in enumerate(grid.columns):
            for published in known.get((row.method, column.benchmark, column.split, column.metric), []):
                cell = grid.cells[index, place]
                ours = [100 * cell.values[seed] for seed in sorted(cell.values)] if cell.complete else []
                title = f"{names.benchmark_title(column.benchmark)} {names.metric(column.metric).title}"
                title += f" {column.split}" if column.split != "test" else ""
                other_data = f"other data ({column.note})" if column.note else ""
                rows.append(_score_row(row.shown, title, published, ours, other_data=other_data))
        for published in known.get((row.method, "", "", PARAMETERS), []):
            counts = sorted({r.parameters["trainable"] for r in grid.members[index] if is_run(r) and r.parameters})
            rows.append(_parameter_row(row.shown, published, counts))
    if not rows:
        return None
    return Block(
        heading=f"{grid.protocol} · {grid.backbone}: beside the papers",
        above=[f"Protocol: {grid.protocol}, hash {grid.protocol_hash}"],
        columns=["method", "number", "paper", "source", "ours", "Δ", "95 % CI", "verdict"],
        rows=rows,
        below=FOOTNOTES,
    )


def _score_row(label: str, title: str, published: Published, ours: list[float], *, other_data: str) -> list[Text]:
    assert published.number is not None
    start = [label, title, published.text, f"{published.paper}, {published.table} [{published.mark}]"]
    if not ours:
        return [Text(text=text) for text in (*start, "–", "–", "–", "inconclusive (no score)")]
    mean = sum(ours) / len(ours)
    interval = t_interval(ours)
    verdict: str = judge(interval, low=published.number - TOLERANCE, high=published.number + TOLERANCE)
    if interval is None:
        verdict += " (n too small)"
    numbers = [f"{mean:.1f} ({len(ours)})", f"{mean - published.number:+.1f}", interval_text(interval)]
    return [Text(text=text) for text in (*start, *numbers, other_data or verdict)]


def _parameter_row(label: str, published: Published, counts: list[int]) -> list[Text]:
    assert published.number is not None
    start = [label, "params (M)", published.text, f"{published.paper}, {published.table} [{published.mark}]"]
    if not counts:
        return [Text(text=text) for text in (*start, "–", "–", "–", "inconclusive (no run)")]
    millions = counts[0] / 1e6
    agrees = all(abs(count / 1e6 - published.number) <= published.half_digit for count in counts)
    verdict = "reproduced" if agrees else "not reproduced"
    return [
        Text(text=text) for text in (*start, f"{millions:.3f}", f"{millions - published.number:+.3f}", "exact", verdict)
    ]


def interval_text(interval: Interval | None) -> str:
    return "–" if interval is None else f"[{interval.low:.1f}, {interval.high:.1f}]"
