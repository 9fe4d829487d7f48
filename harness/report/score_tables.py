"""A grid as tables of scores, with what stands beside scores (parameters, updates, memory), what was tuned, and tidy numbers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison.alpha import MEANINGS as ALPHA_MEANINGS
from harness.comparison.alpha import alpha_codes, without_search
from harness.comparison.cells import Cell, Column, Grid
from harness.comparison.grids import Contrast
from harness.comparison.names import benchmark_title, metric
from harness.comparison.rows import CodeDifferences, Row, code_differences
from harness.report.page import Head, Line, Shown, Table, heads
from harness.report.titles import Titled

CELLS = "Cells: mean over seeds in %, ± SD over seeds (ddof = 1), (n)."
GAP = "No mean is taken over a gap: CODE (done/planned) says why a number is missing."
NOT_PLANNED = "–: this row was not planned on this benchmark."
PARAMETERS, ENCODER, UPDATES, PEAK = "params (M)", "encoder (M)", "updates", "peak (GiB)"
BESIDE_NOTES: Mapping[str, str] = {
    PARAMETERS: "params: trained parameters with the mask decoder, as the papers count; encoder: without it.",
    UPDATES: "updates: of the weights, + those of α. Rows differ here, and so do their scores for this reason too.",
    PEAK: "peak: GPU memory of training; compare costs with the cost table only.",
}
"""What a page says of a column beside the scores, once."""
TUNING_NOTES = (
    "Score: of the validation images, mean over the trials' seeds; nothing chooses by the tests.",
    "Edge: the chosen value is the first or last of its grid, and a better one may lie beyond.",
)


def score_tables(titled: Titled) -> list[Table]:
    """One for the benchmarks that most rows share, one more for what only some rows were run on."""
    grid = titled.grid
    code = code_differences(grid.records)
    tables = []
    for number, (rows, columns) in enumerate(_parts(grid)):
        benchmarks = dict.fromkeys(column.benchmark_title for column in columns)
        beside = _beside(rows, columns)
        lines = []
        for row in rows:
            cells = [grid.cells[row, column] for column in columns]
            scores = [Shown(text=cell_text(cell), mark=grid.marks.get(cell, ""), of=cell) for cell in cells]
            name = Shown(text=f"{row.shown} {_signs(grid, row, code)}".rstrip(), of=row)
            others = [Shown(text=text_of(row), of=row) for _, text_of in beside]
            lines.append(Line(label=row.label, method=row.label, cells=[name, *scores, *others]))
        tables.append(
            Table(
                heading=titled.title + (f": {', '.join(benchmarks)}" if number else ""),
                level=3 if number else 2,
                above=titled.above() if number == 0 else (),
                columns=[
                    Head(title="method", words=True),
                    *(Head.of_column(column, grid.columns) for column in columns),
                    *(Head(title=name) for name, _ in beside),
                ],
                rows=lines,
                below=_notes(grid, code) if number == 0 else (),
            )
        )
    return tables


def _parts(grid: Grid) -> list[tuple[list[Row], list[Column]]]:
    """(rows, columns) of each table: a benchmark that under half of the rows were planned for has a table of its own."""
    planned: dict[str, list[Row]] = {name: [] for name in grid.benchmarks}
    for name, rows in planned.items():
        columns = [column for column in grid.columns if column.benchmark == name]
        rows += [row for row in grid.rows if any(grid.cells[row, column].planned for column in columns)]
    most = max(map(len, planned.values()), default=0)
    common = [name for name, rows in planned.items() if 2 * len(rows) >= most]
    together = [row for row in grid.rows if any(row in planned[name] for name in common)]
    apart: dict[tuple[Row, ...], list[str]] = {}
    for name, rows in planned.items():
        if name not in common:
            apart.setdefault(tuple(rows), []).append(name)
    parts = [(tuple(together), common), *sorted(apart.items(), key=lambda part: -len(part[0]))]
    return [(list(rows), [column for column in grid.columns if column.benchmark in names]) for rows, names in parts]


def _signs(grid: Grid, row: Row, code: CodeDifferences) -> str:
    """What a row's name carries."""
    signs = "†" if any(record.key in code.touched | code.mixed for record in row.runs) else ""
    signs += "‡" if any(_selected_on_test(record) for record in row.runs) else ""
    signs += "§" if any(_chose_an_edge(record) for record in row.runs) else ""
    return " ".join([signs, *alpha_codes(row.records, grid.archive)]).strip()


def _chose_an_edge(record: Record) -> bool:
    """Whether a tuned value is the first or last of its grid."""
    return bool(record.run.tuning.get("edge"))


def _selected_on_test(record: Record) -> bool:
    """Whether the checkpoint was chosen on the test split, as some released code does."""
    return bool(record.run.rules.get("quirks", {}).get("selection") == "released")


def cell_text(cell: Cell) -> str:
    """``91.2 ± 0.3 (3)``, or the reason codes with how many seeds are in."""
    if not cell.planned:
        return "–"
    if cell.codes:
        return f"{cell.code} ({len(cell.seeds)}/{len(cell.planned)})"
    spread = f" ± {100 * cell.spread:.1f}" if cell.spread is not None else ""
    return f"{100 * cell.value:.1f}{spread} ({cell.n})"


def footnotes(grids: Sequence[Grid]) -> list[str]:
    """How to read all tables of a page."""
    cells = [cell for grid in grids for cell in grid.cells.values()]
    records = [record for grid in grids for record in grid.records]
    parts = [(grid, rows, columns) for grid in grids for rows, columns in _parts(grid)]
    lines = [CELLS] if cells else []
    if any(cell.codes for cell in cells):
        lines.append(GAP)
    if any(not grid.cells[row, column].planned for grid, rows, columns in parts for row in rows for column in columns):
        lines.append(NOT_PLANNED)
    beside = {name for _, rows, columns in parts for name, _ in _beside(rows, columns)}
    lines += [text for name, text in BESIDE_NOTES.items() if name in beside]
    if any(code_differences(grid.records).touched for grid in grids):
        lines.append("† some runs were made by other code, in parts that make numbers, than the latest of the table.")
    if any(code_differences(grid.records).mixed for grid in grids):
        lines.append("† some runs were begun by other code, in parts that make numbers, than finished them.")
    if any(map(_selected_on_test, records)):
        lines.append("‡ the checkpoint was selected on the test split, as some released code does.")
    if any(map(_chose_an_edge, records)):
        lines.append("§ a chosen value is the first or last of its grid: a better one may lie beyond; see the rates.")
    return lines


def _notes(grid: Grid, code: CodeDifferences) -> list[str]:
    """What must be known of this table alone."""
    lines = []
    if code.untold:
        lines.append(
            f"Other versions of the code ({', '.join(code.untold)}) made some of these runs, before records told whether"
            " what differs makes numbers."
        )
    flags = sorted({flag for row in grid.rows for flag in alpha_codes(row.records, grid.archive)})
    lines += [f"{flag}: {ALPHA_MEANINGS[flag]}." for flag in flags]
    for row in grid.rows:
        lines += [f"{row.label}: {text}." for text in dict.fromkeys(map(without_search, row.records)) if text]
    return lines + _other_files(grid)


def _other_files(grid: Grid) -> list[str]:
    """Where a column's runs were made from different copies of a benchmark: equal names, other sizes."""
    lines = []
    for column in {column.benchmark: column for column in grid.columns}.values():
        rows: dict[str, list[str]] = {}
        for row in grid.rows:
            for run in (record.run for record in row.runs if column.holds(record.run)):
                rows.setdefault(run.data_fingerprint, []).append(row.label)
        rows.pop("", None)  # older records do not tell
        if len(rows) > 1:
            copies = "; ".join(
                f"{mark[:8]}: {', '.join(dict.fromkeys(labels))}" for mark, labels in sorted(rows.items())
            )
            lines.append(
                f"{column.benchmark_title}: runs of one split read files of different sizes, so these rows are not of the"
                f" same data ({copies})."
            )
    return lines


def _beside(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[str, Callable[[Row], str]]]:
    """Heading, and text by row, of what stands beside scores, from the runs on the benchmarks of these columns."""
    benchmarks = {column.benchmark for column in columns}
    runs = {row: [record for record in row.runs if record.run.benchmark in benchmarks] for row in rows}
    here = [record for members in runs.values() for record in members]
    if not here:
        return []
    beside: list[tuple[str, Callable[[Row], str]]] = [
        (PARAMETERS, lambda row: _span([run.parameters.get("trainable") for run in runs[row]], unit=1e6, digits=3)),
        (ENCODER, lambda row: _span([run.parameters.get("encoder") for run in runs[row]], unit=1e6, digits=3)),
    ]
    if _updates_differ(here):
        beside.append((UPDATES, lambda row: updates_in_words(runs[row])))
    if any(record.environment.get("driver") and record.cost.get("peak_memory_bytes") for record in here):
        beside.append(
            (PEAK, lambda row: _span([run.cost.get("peak_memory_bytes") for run in runs[row]], unit=2**30, digits=2))
        )
    return beside


def _updates_differ(records: Iterable[Record]) -> bool:
    """Whether the weights had more updates in one row than in another, on the same benchmark."""
    counts: dict[str, set[float | None]] = {}
    for record in records:
        if record.code == "OK":
            counts.setdefault(record.run.benchmark, set()).add(record.budget.get("weight_updates"))
    return any(len(updates) > 1 for updates in counts.values())


def updates_in_words(records: Sequence[Record]) -> str:
    """``400``, ``400 + 300 α``; a range where the row's runs differ."""
    weights = _span([record.budget.get("weight_updates") for record in records], unit=1, digits=0)
    alpha = [record.budget.get("alpha_updates") for record in records]
    return weights + (f" + {_span(alpha, unit=1, digits=0)} α" if any(alpha) else "")


def _span(values: Sequence[float | None], *, unit: float, digits: int) -> str:
    known = sorted({f"{value / unit:.{digits}f}" for value in values if value is not None}, key=float)
    return "–" if not known else known[0] if len(known) == 1 else f"{known[0]}–{known[-1]}"


def tuning_tables(titled: Titled) -> list[Table]:
    """What was tried and chosen, a line a row and choice; none where nothing was tuned."""
    grid = titled.grid
    chosen: dict[tuple[Row, str], Mapping[str, Any]] = {}
    for row in grid.rows:
        for record in row.records:
            if "chosen" in record.run.tuning:
                chosen.setdefault((row, record.run.benchmark), record.run.tuning)
    on: dict[tuple[Row, tuple[str, ...]], list[str]] = {}
    for row, benchmark in itertools.product(grid.rows, grid.benchmarks):
        if tuning := chosen.get((row, benchmark)):
            on.setdefault((row, _choice(tuning)), []).append(benchmark)
    if not on:
        return []
    lines = [
        Line.of(
            [row.label, ", ".join(map(benchmark_title, names)), *choice],
            row,
            method=row.label,
            benchmark=names[0] if len(names) == 1 else "",
        )
        for (row, choice), names in on.items()
    ]
    columns = heads(
        *("method", "benchmark", "score", "trials", "chosen", "edge", "hours"),
        words=("benchmark", "score", "trials", "chosen", *["edge"] * all(choice[-2] != "–" for _, choice in on)),
    )
    heading = f"{titled.title}: tuned"
    return [Table(heading=heading, level=3, columns=columns, rows=lines, below=TUNING_NOTES)]


def _choice(tuning: Mapping[str, Any]) -> tuple[str, ...]:
    """What chose, what was tried, the choice, its edges and hours."""
    where = ", ".join(map(benchmark_title, tuning["on"]))
    tried = [
        f"{_options(trial['options'])}: " + ("no score" if trial["score"] is None else f"{100 * trial['score']:.1f}")
        for trial in tuning["trials"]
    ]
    return (
        f"{metric(str(tuning['metric'])).heading} on {where}",
        "; ".join(tried),
        _options(tuning["chosen"]),
        ", ".join(tuning["edge"]) or "–",
        f"{tuning['hours']:.2f}",
    )


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


NUMBER_COLUMNS = (
    *("quantity", "protocol", "protocol_hash", "overrides", "backbone", "checkpoint", "benchmark", "split", "metric"),
    *("manifest", "data_note", "row", "method", "options", "chosen", "model", "n", "mean", "sd", "low", "high"),
    *("median", "iqm", "seeds", "planned", "code"),
)


def numbers_of(titled: Titled, against: Sequence[Contrast]) -> list[dict[str, str]]:
    """A grid as tidy rows for CSV, one number a row, in plain units: scores in [0, 1] with Student's 95 % interval over seeds;
    trained parameters as counts; paired differences to the baseline in the same unit, positive is better, with the interval
    of the pages.

    ``options`` holds what the row names, ``chosen`` the values that its tuning chose on the benchmark; ``code`` the reasons of
    a gap (then there is no mean), ``seeds`` those that are in, ``planned`` those asked for.
    """
    grid = titled.grid
    numbers: list[Mapping[str, str]] = []
    for row in grid.rows:
        named = _of_row(titled, row)
        for column in grid.columns:
            if (cell := grid.cells[row, column]).planned:
                numbers.append(
                    {"quantity": "score", **named, **_of_column(column), **_chosen(row, column), **_of_cell(cell)}
                )
        counts = sorted({record.parameters.get("trainable", 0) for record in row.runs} - {0})
        numbers += [{"quantity": "trained parameters", **named, "mean": str(count)} for count in counts]
    for contrast in against:
        difference, interval = contrast.difference, contrast.difference.interval
        points = {
            "mean": difference.mean, "low": interval.low if interval else None,
            "high": interval.high if interval else None,
        }  # fmt: skip
        numbers.append(
            {"quantity": f"difference to {difference.second.row.label}", **_of_row(titled, contrast.row)}
            | _of_column(contrast.column)
            | _chosen(contrast.row, contrast.column)
            | {"n": str(len(difference.by_seed))}
            | {name: _number(None if value is None else value / 100) for name, value in points.items()}
        )
    return [{name: number.get(name, "") for name in NUMBER_COLUMNS} for number in numbers]


def _of_row(titled: Titled, row: Row) -> dict[str, str]:
    return {
        **vars(row.sheet),
        "overrides": "card not known" if titled.overrides is None else titled.overrides,
        "row": row.label,
        "method": row.method,
        "options": json.dumps(row.options, sort_keys=True) if row.options else "",
        "model": row.score,
    }


def _of_column(column: Column) -> dict[str, str]:
    return {
        "benchmark": column.benchmark,
        "split": column.split,
        "metric": column.metric,
        "manifest": column.manifest,
        "data_note": column.note,
    }


def _chosen(row: Row, column: Column) -> dict[str, str]:
    """The values that tuning chose for the row's runs there; one set, as a row has one choice a benchmark."""
    chosen = [
        record.run.tuning["chosen"] for record in row.on.get(column.benchmark, ()) if "chosen" in record.run.tuning
    ]
    return {"chosen": json.dumps(chosen[0], sort_keys=True) if chosen else ""}


def _of_cell(cell: Cell) -> dict[str, str]:
    """From ``n`` on; no mean over a gap."""
    content = {
        "n": str(len(cell.seeds)),
        "seeds": " ".join(map(str, cell.seeds)),
        "planned": " ".join(map(str, cell.planned)),
        "code": cell.code,
    }
    if not cell.complete:
        return content
    interval = cell.interval
    return content | {
        "mean": _number(cell.value),
        "sd": _number(cell.spread),
        "low": _number(interval.low if interval else None),
        "high": _number(interval.high if interval else None),
        "median": _number(median(cell.by_seed)),
        "iqm": _number(stats.iqm(cell.by_seed)),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
