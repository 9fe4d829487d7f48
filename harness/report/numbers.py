"""A grid as tidy rows for CSV: one number a row, with everything that tells it from others, in plain units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median

from harness import statistics as stats
from harness.comparison.columns import Column
from harness.comparison.grid import Grid, GridCell, is_run
from harness.report.differences import Comparison
from harness.report.headings import Heading

COLUMNS = (
    *("quantity", "protocol", "protocol_hash", "overrides", "backbone", "checkpoint", "benchmark", "split", "metric"),
    *("manifest", "data_note", "row", "method", "options", "model", "n", "mean", "sd", "low", "high", "median", "iqm"),
    *("seeds", "planned", "code"),
)


def numbers_of(grid: Grid, against: Comparison | None, *, heading: Heading) -> list[dict[str, str]]:
    """Scores in [0, 1] with Student's 95 % interval over seeds; trained parameters as counts; paired differences to the
    baseline in the same unit, positive is better, with the interval of the pages.

    ``code`` holds the reasons of a gap (then there is no mean), ``seeds`` those that are in, ``planned`` those asked for.
    """
    sheet = {
        "protocol": grid.protocol,
        "protocol_hash": grid.protocol_hash,
        "overrides": "card not known" if heading.overrides is None else heading.overrides,
        "backbone": grid.backbone,
        "checkpoint": grid.checkpoint,
    }
    rows = [
        {
            **sheet,
            "row": row.label,
            "method": row.method,
            "options": json.dumps(row.options, sort_keys=True) if row.options else "",
            "model": row.score,
        }
        for row in grid.rows
    ]
    found: list[Mapping[str, str]] = []
    for index, row in enumerate(rows):
        for place, column in enumerate(grid.columns):
            if grid.cells[index, place].planned:
                found.append({"quantity": "score", **row, **_of_column(column), **summary_of(grid.cells[index, place])})
        counts = sorted({one.parameters.get("trainable", 0) for one in grid.members[index] if is_run(one)} - {0})
        found += [{"quantity": "trained parameters", **row, "mean": str(count)} for count in counts]
    for one in against.found if against else ():
        interval = one.difference.interval
        low, high = (interval.low, interval.high) if interval else (None, None)
        numbers = {"mean": one.difference.mean, "low": low, "high": high}
        quantity = f"difference to {grid.rows[against.base].label}" if against else ""
        found.append(
            {"quantity": quantity, **rows[one.row], **_of_column(grid.columns[one.place])}
            | {"n": str(len(one.difference.by_seed))}
            | {name: _number(None if value is None else value / 100) for name, value in numbers.items()}
        )
    return [{name: number.get(name, "") for name in COLUMNS} for number in found]


def _of_column(column: Column) -> dict[str, str]:
    return {
        "benchmark": column.benchmark,
        "split": column.split,
        "metric": column.metric,
        "manifest": column.manifest,
        "data_note": column.note,
    }


def summary_of(cell: GridCell) -> Mapping[str, str]:
    """What is known of one number, as the columns from ``n`` on; no mean over a gap."""
    seeds = sorted(cell.values.keys() - cell.codes.keys())
    content = {
        "n": str(len(seeds)),
        "seeds": " ".join(map(str, seeds)),
        "planned": " ".join(map(str, cell.planned)),
        "code": "/".join(sorted(set(cell.codes.values()))),
    }
    if not cell.complete:
        return content
    values = [cell.values[seed] for seed in seeds]
    interval = stats.t_interval(values)
    return content | {
        "mean": _number(cell.mean),
        "sd": _number(cell.sd),
        "low": _number(interval.low if interval else None),
        "high": _number(interval.high if interval else None),
        "median": _number(median(values)),
        "iqm": _number(stats.iqm(values)),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
