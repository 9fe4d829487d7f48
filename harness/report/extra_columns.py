"""What stands beside scores in a table: trained parameters, updates where rows differ, memory where a GPU measured it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.archive.schema import Record
from harness.comparison.grid import Grid, is_run

PARAMETERS, ENCODER, UPDATES, PEAK = "params (M)", "encoder (M)", "updates", "peak (GiB)"

EXTRA_NOTES: Mapping[str, str] = {
    PARAMETERS: "params: trained parameters with the mask decoder, as the papers count; encoder: without it.",
    UPDATES: "updates: of the weights, + those of α. Rows differ here, and so do their scores for this reason too.",
    PEAK: "peak: GPU memory of training; compare costs with the cost table only.",
}
"""What a page says of each, once."""


def extra_columns(grid: Grid, rows: Sequence[int], places: Sequence[int]) -> list[tuple[str, Callable[[int], str]]]:
    """Heading, and text by row, of the runs of these rows on the benchmarks of these columns."""
    benchmarks = {grid.columns[place].benchmark for place in places}
    runs = {
        index: [one for one in grid.members[index] if is_run(one) and one.run.benchmark in benchmarks] for index in rows
    }
    here = [record for members in runs.values() for record in members]
    if not here:
        return []
    found: list[tuple[str, Callable[[int], str]]] = [
        (PARAMETERS, lambda index: _span([one.parameters.get("trainable") for one in runs[index]], unit=1e6, digits=3)),
        (ENCODER, lambda index: _span([one.parameters.get("encoder") for one in runs[index]], unit=1e6, digits=3)),
    ]
    if updates_differ(here):
        found.append((UPDATES, lambda index: updates_in_words(runs[index])))
    if any(record.environment.get("driver") and record.cost.get("peak_memory_bytes") for record in here):
        peaks = {index: [one.cost.get("peak_memory_bytes") for one in members] for index, members in runs.items()}
        found.append((PEAK, lambda index: _span(peaks[index], unit=2**30, digits=2)))
    return found


def updates_differ(records: Iterable[Record]) -> bool:
    """Whether the weights had more updates in one row than in another, on the same benchmark."""
    counts: dict[str, set[float | None]] = {}
    for record in records:
        if record.code == "OK":
            counts.setdefault(record.run.benchmark, set()).add(record.budget.get("weight_updates"))
    return any(len(found) > 1 for found in counts.values())


def updates_in_words(records: Sequence[Record]) -> str:
    """``400``, ``400 + 300 α``; a range where the row's runs differ."""
    weights = _span([record.budget.get("weight_updates") for record in records], unit=1, digits=0)
    alpha = [record.budget.get("alpha_updates") for record in records]
    return weights + (f" + {_span(alpha, unit=1, digits=0)} α" if any(alpha) else "")


def _span(values: Sequence[float | None], *, unit: float, digits: int) -> str:
    known = sorted({f"{value / unit:.{digits}f}" for value in values if value is not None}, key=float)
    return "–" if not known else known[0] if len(known) == 1 else f"{known[0]}–{known[-1]}"
