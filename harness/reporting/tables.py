"""The tables of a results folder: grids printed as pages. The same records give the same bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.records.schema import Record, Run
from harness.reporting import names
from harness.reporting.beside import published_block
from harness.reporting.differences import difference_blocks
from harness.reporting.grid import Cell, Column, Grid, build, is_run, placeholder, sheets
from harness.reporting.page import Block, Format, Mark, Text, write
from harness.reporting.paired import ImagesOf
from harness.reporting.published import Published
from harness.reporting.tuned import tuning_blocks
from harness.studies import Study

PLUS_MINUS = "Cells: mean over seeds in %, ± SD over seeds (ddof = 1), (n)."
BEST = "Bold: best, underlined: second, among rows with all seeds in."
GAP = "No mean is taken over a gap: CODE (done/planned) says why a number is missing."
UPDATES = "updates: of the weights, + those of α. Rows differ here, and so do their scores for this reason too."
COST = "Step time (median over runs) and peak memory are of the sweep; compare costs with the cost table only."


def render(
    records: Iterable[Record],
    *,
    study: Study | None = None,
    runs: Iterable[Run] | None = None,
    published: Sequence[Published] = (),
    images_of: ImagesOf = lambda record, score, split, metric: None,
    metrics: Sequence[str] = (),
    style: Format = "markdown",
) -> str:
    """One page: a table for each protocol hash, backbone and checkpoint among ``records``.

    Args:
        records: any order.
        study: rows, benchmarks and seeds to show; without one, everything there is.
        runs: show these planned runs and nothing else, under their own labels; those without a record show as missing.
        published: numbers of papers; a study with ``table.paper`` shows them beside ours, under its own protocol only.
        images_of: per-image scores, for a study with ``table.baseline``.
        metrics: columns of these instead of the study's or the papers' choice.
        style: ``markdown``, ``latex`` or ``csv``.
    """
    chosen = list(records) if runs is None else of_runs(records, runs)
    title = study.title if study else ", ".join(sorted({record.run.protocol for record in chosen})) or "no records"
    blocks = []
    for grid in grids(chosen, study=study, metrics=metrics):
        main = block(grid)
        blocks.append(replace(main, above=[study.note, *main.above]) if study and study.note else main)
        blocks += tuning_blocks(grid)
        if study and study.table.baseline:
            blocks += difference_blocks(grid, baseline=study.table.baseline, images_of=images_of)
        if study and study.table.paper and grid.protocol == study.protocol:
            beside = published_block(grid, published)
            blocks += [beside] if beside else []
    if not blocks:
        blocks = [Block(heading=study.name if study else title, above=["No record of this table yet."])]
    return write(title, blocks, style=style)


def of_runs(records: Iterable[Record], runs: Iterable[Run]) -> list[Record]:
    """The records of ``runs`` under the labels of ``runs`` (one may serve several sweeps); placeholders else."""
    known = {record.key: record for record in records}
    return [_under_label(known[run.key], run) if run.key in known else placeholder(run) for run in runs]


def _under_label(record: Record, run: Run) -> Record:
    """What is said of data and checkpoint stays the record's own: it was made from those."""
    own = record.run
    made_from = ("split_rule", "data_note", "data_fingerprint", "checkpoint")
    run = replace(run, **{name: getattr(own, name) for name in made_from})
    return replace(record, run=run)


def grids(records: Iterable[Record], *, study: Study | None = None, metrics: Sequence[str] = ()) -> list[Grid]:
    """A grid a sheet. With a study: sheets of its protocol, and others where at least half of its rows were run.

    Args:
        metrics: see `build`.
    """
    found = []
    for sheet, members in sheets(records).items():
        protocol, _, backbone, _ = sheet
        if study is None:
            found.append(build(sheet, members, metrics=metrics))
            continue
        if study.backbones and backbone not in study.backbones:
            continue
        here = study
        if protocol != study.protocol:  # what another protocol has not run of the study is no gap
            there = {record.run.benchmark for record in members}
            here = replace(study, benchmarks=tuple(name for name in study.benchmarks if name in there))
        grid = build(sheet, members, study=here, metrics=metrics)
        filled = sum(any(is_run(record) for record in mine) for mine in grid.members.values())
        if filled and (protocol == study.protocol or 2 * filled >= len(grid.rows)):
            found.append(grid)
    return found


def block(grid: Grid) -> Block:
    """One printed table."""
    marks = best_marks(grid)
    costs = any(record.cost.get("step_time_s") for record in grid.records)
    memory = any(record.cost.get("peak_memory_bytes") for record in grid.records)
    heading = ["method", *(column_title(column, grid) for column in grid.columns), "params (M)", "encoder (M)"]
    updates = _updates_differ(grid.records)
    heading += ["updates"] * updates + ["step (ms)"] * costs + ["peak (GiB)"] * memory
    stale = stale_versions(grid)
    rows = []
    for index, row in enumerate(grid.rows):
        mine = [record for record in grid.members[index] if is_run(record)]
        sign = "†" if any(version(record) in stale for record in mine) else ""
        sign += "‡" if any(record.run.rules.get("quirks", {}).get("selection") == "released" for record in mine) else ""
        sign += "§" if any(record.run.tuning.get("edge") for record in mine) else ""
        texts = [Text(text=row.shown + (f" {sign}" if sign else ""))]
        texts += [
            Text(text=cell_text(grid.cells[index, place]), mark=marks.get((index, place), ""))
            for place in range(len(grid.columns))
        ]
        texts += [
            Text(text=_span([record.parameters.get(name) for record in mine], unit=1e6, digits=3))
            for name in ("trainable", "encoder")
        ]
        if updates:
            texts.append(Text(text=_updates(mine)))
        if costs:
            texts.append(Text(text=_median([record.cost.get("step_time_s") for record in mine], unit=1e-3)))
        if memory:
            texts.append(
                Text(text=_span([record.cost.get("peak_memory_bytes") for record in mine], unit=2**30, digits=2))
            )
        rows.append(texts)
    return Block(
        heading=f"{grid.protocol} · {grid.backbone}",
        above=_header(grid),
        columns=heading,
        rows=rows,
        below=_footnotes(grid, stale=stale, with_updates=updates, with_costs=costs or memory),
    )


def cell_text(cell: Cell) -> str:
    """``91.2 ± 0.3 (3)``, or the reason codes with how many seeds are in."""
    if cell.codes:
        codes = sorted(set(cell.codes.values()))
        done = len(cell.values.keys() - cell.codes.keys())
        planned = len(cell.values.keys() | cell.codes.keys())
        return f"{'/'.join(codes)} ({done}/{planned})"
    spread = f" ± {100 * cell.sd:.1f}" if cell.sd is not None else ""
    return f"{100 * cell.mean:.1f}{spread} ({len(cell.values)})"


def best_marks(grid: Grid) -> dict[tuple[int, int], Mark]:
    """Best and second of every column among complete cells; ties at the printed precision share a mark."""
    marks: dict[tuple[int, int], Mark] = {}
    for place, column in enumerate(grid.columns):
        lower = names.metric(column.metric).lower_is_better
        means = {
            index: round(100 * grid.cells[index, place].mean, 1)
            for index in range(len(grid.rows))
            if grid.cells[index, place].complete
        }
        ranked = sorted(set(means.values()), reverse=not lower)
        if len(means) < 2:
            continue
        for index, mean in means.items():
            if mean in ranked[:2]:
                marks[index, place] = "best" if mean == ranked[0] else "second"
    return marks


def version(record: Record) -> str:
    """The code that made a record: its snapshot, or commit with the hash of uncommitted changes."""
    environment = record.environment
    commit, dirty = environment.get("commit", "")[:10], environment.get("dirty", "")[:6]
    return environment.get("snapshot", "")[:12] or (commit + (f"+{dirty}" if dirty else "")) or "unknown"


def stale_versions(grid: Grid) -> set[str]:
    """Every version but that of the record finished last."""
    if not grid.records:
        return set()
    latest = max(grid.records, key=lambda record: (record.finished, record.key))
    return {version(record) for record in grid.records} - {version(latest)}


def column_title(column: Column, grid: Grid) -> str:
    """The heading over a column: benchmark, split where there are several, metric."""
    title = names.benchmark_title(column.benchmark)
    notes = {other.note for other in grid.columns}
    if column.note and len(column.note) <= 24 and len(notes) > 1:
        title += f" ({column.note})"
    if column.split != "test":
        title += f" {column.split}"
    if len({other.manifest for other in grid.columns if other.benchmark == column.benchmark}) > 1:
        title += f" #{column.manifest[:6]}"
    return f"{title} {names.metric(column.metric).heading}"


def _header(grid: Grid) -> list[str]:
    weights = f"checkpoint {grid.checkpoint.removeprefix('sha256-')[:12]}" if grid.checkpoint else "random weights"
    lines = [
        f"Protocol: {grid.protocol}, hash {grid.protocol_hash}",
        f"Backbone: {grid.backbone}, {weights}",
        f"n = {len(grid.seeds)} ({'seed' if len(grid.seeds) == 1 else 'seeds'} {', '.join(map(str, grid.seeds))})",
    ]
    data = []
    for name in dict.fromkeys(column.benchmark for column in grid.columns):
        mine = [record for record in grid.records if record.run.benchmark == name]
        notes = sorted({record.run.data_note for record in mine if record.run.data_note})
        rules = sorted({record.run.split_rule for record in mine if record.run.split_rule})
        sizes = sorted({_sizes(record.counts) for record in mine if record.counts})
        title = names.benchmark_title(name) + (f" ({', '.join(notes)})" if notes else "")
        details = [" or ".join(sizes) + " images"] * bool(sizes) + [" or ".join(rules)] * bool(rules)
        data.append(title + (f": {', '.join(details)}" if details else ""))
    return [*lines, "Data: " + "; ".join(data)]


def _sizes(counts: dict[str, int]) -> str:
    order = [name for name in ("train", "val") if name in counts] + sorted(counts.keys() - {"train", "val"})
    return "/".join(str(counts[name]) for name in order)


def _footnotes(grid: Grid, *, stale: set[str], with_updates: bool, with_costs: bool) -> list[str]:
    lines = [
        PLUS_MINUS,
        BEST,
        GAP,
        "params: trained parameters with the mask decoder, as the papers count; encoder: without it.",
    ]
    if with_updates:
        lines.append(UPDATES)
    if with_costs:
        lines.append(COST)
    if stale:
        lines.append(f"† some runs were made by other code ({', '.join(sorted(stale))}) than the latest.")
    if any(record.run.tuning.get("edge") for record in grid.records):
        lines.append("§ a chosen value is the first or last of its grid: a better one may lie beyond; see the rates.")
    if any(record.run.rules.get("quirks", {}).get("selection") == "released" for record in grid.records):
        lines.append("‡ the checkpoint was selected on the test split, as some released code does.")
    return lines


def _updates_differ(records: Sequence[Record]) -> bool:
    """Whether the weights had more updates in one row than in another, on the same benchmark."""
    counts: dict[str, set[float | None]] = {}
    for record in records:
        if record.code == "OK":
            counts.setdefault(record.run.benchmark, set()).add(record.budget.get("weight_updates"))
    return any(len(found) > 1 for found in counts.values())


def _updates(records: Sequence[Record]) -> str:
    """``400``, ``400 + 300 α``; a range where the row's runs differ."""
    weights = _span([record.budget.get("weight_updates") for record in records], unit=1, digits=0)
    alpha = [record.budget.get("alpha_updates") for record in records]
    return weights + (f" + {_span(alpha, unit=1, digits=0)} α" if any(alpha) else "")


def _span(values: Sequence[float | None], *, unit: float, digits: int) -> str:
    known = sorted({f"{value / unit:.{digits}f}" for value in values if value is not None}, key=float)
    return "–" if not known else known[0] if len(known) == 1 else f"{known[0]}–{known[-1]}"


def _median(values: Sequence[float | None], *, unit: float) -> str:
    known = [value for value in values if value]
    return f"{statistics.median(known) / unit:.0f}" if known else "–"
