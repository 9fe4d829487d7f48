"""What stands behind a cell of a page: runs, seeds, hashes, files, and what was left out with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.archive.cost import CostRecord
from harness.archive.merge import conflicts
from harness.archive.schema import Record, content_hash, hashed_options
from harness.archive.store import RecordStore
from harness.comparison.code_versions import begun_by, stale_versions, version_of
from harness.comparison.columns import Column
from harness.comparison.grid import Grid, GridCell, Row, is_run
from harness.comparison.paired import Difference
from harness.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A results folder as explanations need it.

    Args:
        store: where records lie.
        records: all of them, so that what was left out can be named.
    """

    store: RecordStore
    records: Sequence[Record]


def of_cell(folder: Folder, grid: Grid, index: int, place: int) -> list[str]:
    """The runs behind one number of a grid."""
    row, column, cell = grid.rows[index], grid.columns[place], grid.cells[index, place]
    lines = [
        *_sheet(grid),
        f"  benchmark {column.benchmark}, split {column.split}, metric {column.metric}, scored model {row.score}",
        f"  split manifest {column.manifest or 'unknown'}" + (f", data note: {column.note}" if column.note else ""),
        f"  seeds planned: {', '.join(map(str, cell.planned)) or 'none (this row was not planned on this benchmark)'}",
    ]
    used = [record for record in cell.records if is_run(record)]
    stale = stale_versions(grid.records)
    for record in sorted(used, key=lambda one: (one.run.seed, one.key)):
        lines += _run(record, cell, folder.store, stale=version_of(record) in stale)
    lines += [f"  seed {seed}: no record" for seed, code in sorted(cell.codes.items()) if code == "MISSING"]
    lines += _left_out(grid, row, column, cell, folder.records)
    keys = {record.key for record in used}
    apart = [path for path in conflicts(folder.store.root) if path.name.partition(".")[0] in keys]
    return [*lines, *(f"  conflicting copy, kept apart: {path}" for path in apart)]


def of_row(folder: Folder, grid: Grid, index: int) -> list[str]:
    """The runs of a whole row, for what all of them share (its name, its parameters, its memory)."""
    lines = [*_sheet(grid), f"  method {grid.rows[index].method}, scored model {grid.rows[index].score}"]
    for record in grid.members[index]:
        if not is_run(record):
            continue
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(record.parameters.items()))
        lines.append(
            f"  {record.key}: {record.run.benchmark}, seed {record.run.seed}, {record.code}"
            + (f"; parameters: {counts}" if counts else "")
        )
    return lines


def of_difference(
    folder: Folder, grid: Grid, pair: tuple[int, int], place: int, difference: Difference, *, p_values: Sequence[str]
) -> list[str]:
    """A paired difference: its parts, then both of its cells."""
    first, second = pair
    seeds = ", ".join(f"{value:+.4f}" for value in difference.by_seed)
    lines = [f"  {grid.rows[first].label} − {grid.rows[second].label}, by seed: {seeds}", *_parts(difference.estimate)]
    if difference.by_image is None:
        lines.append("  over seeds alone: no per-image scores that average to the runs' scores")
    elif difference.clusters:
        lines.append(f"  images count by cluster: {difference.clusters} of them")
    lines += [f"  {words}" for words in p_values]
    for index in pair:
        lines.append(f"  {grid.rows[index].label}:")
        lines += [f"  {line}" for line in of_cell(folder, grid, index, place)[2:]]
    return lines


def _parts(estimate: Estimate) -> list[str]:
    interval = estimate.interval()
    if interval is None or estimate.seeds is None:
        return [f"  mean {estimate.mean:+.4f} of one seed: no interval"]
    parts = [("seeds", estimate.seeds), *zip(("images", "seeds × images"), estimate.rest, strict=False)]
    words = ", ".join(f"{name} SE {part.variance**0.5:.4f} (df {part.df:.4g})" for name, part in parts)
    return [f"  mean {estimate.mean:+.4f}, 95 % interval {interval:+.4f}; its parts: {words}"]


def of_session(session: CostRecord, variant: str) -> list[str]:
    """A cell of a cost page: the session that measured it."""
    lines = [
        f"  session {session.session}, comparability key {session.key}, finished {session.finished or 'at an unknown time'}",
        f"  {session.rounds} rounds after {session.warmup} dropped, methods interleaved in one process",
    ]
    if session.shared:
        lines.append(f"  the device was not exclusive: {session.shared}")
    for method in session.methods:
        if method.variant == variant:
            config = ", ".join(f"{name}={value}" for name, value in sorted(method.config.items()))
            lines.append(f"  method {method.method}, configuration: {config or 'none'}")
            totals = method.step_seconds.get("total", [])
            if totals:
                lines.append("  step by round (ms): " + ", ".join(f"{1e3 * value:.1f}" for value in totals))
            if method.not_counted:
                counts = ", ".join(f"{name} ×{count}" for name, count in sorted(method.not_counted.items()))
                lines.append(f"  operations not counted in FLOPs: {counts}")
    return [*lines, f"  cost/{session.key}-{session.session}.json"]


def _sheet(grid: Grid) -> list[str]:
    return [
        f"  protocol {grid.protocol}, hash {grid.protocol_hash}",
        f"  backbone {grid.backbone}, checkpoint {grid.checkpoint or 'none (random weights)'}",
    ]


def _run(record: Record, cell: GridCell, store: RecordStore, *, stale: bool) -> list[str]:
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
        f"    key {record.key}, configuration {configuration(record)[:8]}"
        + (f" (changed: {_pairs(record.run.changed)})" if record.run.changed else ""),
        f"    code {version_of(record)}{' (not the latest of this table)' if stale else ''}{begun_by(record)}, attempts {record.attempts}"
        + (f", finished {record.finished}" if record.finished else "")
        + (f", on {where}" if where else ""),
    ]
    return [*lines, *(f"    {path}" for path in files)]


def configuration(record: Record) -> str:
    return content_hash(hashed_options(record.run.method_config))


def _pairs(changed: dict[str, object]) -> str:
    return ", ".join(f"{name}={changed[name]}" for name in sorted(changed))


def _left_out(grid: Grid, row: Row, column: Column, cell: GridCell, records: Sequence[Record]) -> list[str]:
    """Records of this method on this benchmark that are not in the cell."""
    keys = {record.key for record in cell.records}
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
        if cell.planned and run.seed not in cell.planned:
            reasons.append(f"seed {run.seed}")
        if not reasons:
            reasons.append(f"configuration {configuration(record)[:8]} ({_pairs(run.changed) or 'as the protocol'})")
        lines.append(f"  left out: {record.key} ({run.variant}, seed {run.seed}): {', '.join(reasons)}")
    return lines
