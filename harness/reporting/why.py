"""What stands behind one cell: runs, seeds, hashes, files, and the records that were left out with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UsageError, did_you_mean
from harness.records.merge import conflicts
from harness.records.schema import Record, content_hash
from harness.records.store import RecordStore
from harness.reporting.grid import Cell, Column, Grid, Row, is_run
from harness.reporting.tables import cell_text, column_title, stale_versions, version


def explain(grids: Sequence[Grid], records: Sequence[Record], store: RecordStore, *, row: str, column: str) -> str:
    """The explanation of the cell in every grid that has it, ending in a newline.

    Args:
        grids: the tables of one page.
        records: everything in the folder, so that what was left out can be named.
        row: a row's label, as printed or any part of it that is unique.
        column: a column as printed (``Kvasir-SEG Sα``), or ``kvasir.s_measure``, or ``trans10k_v1.easy.miou``.

    Raises:
        UsageError: no such row or column, or several.
    """
    found = []
    rows = {label.label for grid in grids for label in grid.rows}
    columns = {column_title(one, grid) for grid in grids for one in grid.columns}
    label = _one("row", row, {label: {label} for label in rows})
    names = {column_title(one, grid): _names(one) for grid in grids for one in grid.columns}
    title = _one("column", column, {name: {name, *names[name]} for name in columns})
    for grid in grids:
        for index, candidate in enumerate(grid.rows):
            for place, one in enumerate(grid.columns):
                if candidate.label == label and column_title(one, grid) == title:
                    found.append(_cell(grid, candidate, one, grid.cells[index, place], records, store))
    return "\n".join(found)


def _names(column: Column) -> set[str]:
    short = f"{column.benchmark}.{column.metric}"
    return {short, f"{column.benchmark}.{column.split}.{column.metric}"}


def _one(kind: str, asked: str, choices: dict[str, set[str]]) -> str:
    wanted = asked.strip().lower()
    for match in (
        [name for name, aliases in choices.items() if wanted in {alias.lower() for alias in aliases}],
        [name for name, aliases in choices.items() if any(wanted in alias.lower() for alias in aliases)],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise UsageError(f"{kind} {asked!r} fits {', '.join(sorted(match))}; give more of it")
    raise UsageError(f"no {kind} {asked!r}{did_you_mean(asked, choices)}")


def _cell(grid: Grid, row: Row, column: Column, cell: Cell, records: Sequence[Record], store: RecordStore) -> str:
    lines = [
        f"{row.label} · {column_title(column, grid)}: {cell_text(cell)}",
        f"  protocol {grid.protocol}, hash {grid.protocol_hash}",
        f"  backbone {grid.backbone}, checkpoint {grid.checkpoint or 'none (random weights)'}",
        f"  benchmark {column.benchmark}, split {column.split}, metric {column.metric}, scored model {row.score}",
        f"  split manifest {column.manifest or 'unknown'}" + (f", data note: {column.note}" if column.note else ""),
        f"  seeds planned: {', '.join(map(str, grid.seeds))}",
    ]
    used = [record for record in cell.records if is_run(record)]
    stale = stale_versions(grid)
    for record in sorted(used, key=lambda one: (one.run.seed, one.key)):
        lines += _run(record, cell, store, stale=version(record) in stale)
    absent = sorted(seed for seed, code in cell.codes.items() if code == "MISSING")
    lines += [f"  seed {seed}: no record" for seed in absent]
    lines += _left_out(grid, row, column, used, records)
    keys = {record.key for record in used}
    apart = [path for path in conflicts(store.root) if path.name.partition(".")[0] in keys]
    lines += [f"  conflicting copy, kept apart: {path}" for path in apart]
    return "\n".join(lines) + "\n"


def _run(record: Record, cell: Cell, store: RecordStore, *, stale: bool) -> list[str]:
    seed = record.run.seed
    if seed in cell.values and seed not in cell.codes:
        outcome = f"{100 * cell.values[seed]:.4f}"
    else:
        outcome = cell.codes.get(seed, record.code) + (f": {record.message}" if record.message else "")
    epoch = f", epoch {record.selected_epoch} selected" if record.selected_epoch is not None else ""
    where = ", ".join(record.environment[name] for name in ("device", "host") if record.environment.get(name))
    files = [
        path
        for path in (store.path(record.key), store.images_path(record.key), store.architecture_path(record.key))
        if path.is_file()
    ]
    lines = [
        f"  seed {seed}: {outcome}{epoch}",
        f"    key {record.key}, configuration {content_hash(record.run.method_config)[:8]}"
        + (f" (changed: {_pairs(record.run.changed)})" if record.run.changed else ""),
        f"    code {version(record)}{' (not the latest of this table)' if stale else ''}, attempts {record.attempts}"
        + (f", finished {record.finished}" if record.finished else "")
        + (f", on {where}" if where else ""),
    ]
    return [*lines, *(f"    {path}" for path in files)]


def _pairs(changed: dict[str, object]) -> str:
    return ", ".join(f"{name}={changed[name]}" for name in sorted(changed))


def _left_out(grid: Grid, row: Row, column: Column, used: Sequence[Record], records: Sequence[Record]) -> list[str]:
    """Records of this method on this benchmark that are not in the cell."""
    keys = {record.key for record in used}
    lines = []
    for record in records:
        run = record.run
        if run.method != row.method or run.benchmark != column.benchmark or record.key in keys:
            continue
        reasons = []
        if run.protocol_hash != grid.protocol_hash:
            reasons.append(f"protocol {run.protocol} {run.protocol_hash}")
        if run.backbone != grid.backbone:
            reasons.append(f"backbone {run.backbone}")
        if run.checkpoint != grid.checkpoint:
            reasons.append(f"checkpoint {run.checkpoint or 'none'}")
        if run.manifest not in (column.manifest, ""):
            reasons.append(f"split manifest {run.manifest}")
        if run.seed not in grid.seeds:
            reasons.append(f"seed {run.seed}")
        if not reasons:
            reasons.append(
                f"configuration {content_hash(run.method_config)[:8]} ({_pairs(run.changed) or 'as the protocol'})"
            )
        lines.append(f"  left out: {record.key} ({run.variant}, seed {run.seed}): {', '.join(reasons)}")
    return lines
