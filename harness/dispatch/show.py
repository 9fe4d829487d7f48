"""What the run verb prints: the plan with its price, and the table at the end."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from harness.dispatch.forecast import CPU, GPU, Device, describe, forecast, within_budget
from harness.dispatch.plan import Plan
from harness.errors import UsageError
from harness.models.catalog import backbone_shape, decoder_parameters, total_parameters
from harness.records.schema import Run
from harness.records.store import RecordStore, write_atomically
from harness.registry import BENCHMARKS, method_config_class
from harness.validation import from_mapping


def plan_text(planned: Plan, results: Path, *, budget: float | None = None) -> str:
    """Runs, trainable parameters, forecast and what is missing; starts nothing.

    Args:
        planned: the plan.
        results: where earlier records are, which the forecast learns from.
        budget: GPU-hours; names the runs that fit.
    """
    lines = [f"{len(planned.jobs)} runs, {len(planned.finished)} finished, {len(planned.failed)} failed before", ""]
    lines.append(f"{'method':28} {'backbone':28} {'encoder':>12} {'trainable':>12} {'of total':>14}")
    for method, backbone, encoder, trainable, total in parameter_rows(planned):
        lines.append(f"{method:28} {backbone:28} {encoder:>12,} {trainable:>12,} {total:>14,}")
    benchmarks = dict.fromkeys((job.run.benchmark, job.run.split_rule, job.run.data_note) for job in planned.jobs)
    lines += ["", f"{'benchmark':14} splits"]
    lines += [f"{name:14} {rule or 'not on disk'}{f' · {note}' if note else ''}" for name, rule, note in benchmarks]
    if planned.pending:
        store = RecordStore(results)
        records = store.summaries()[0] if store.folder.is_dir() else []
        prices = forecast(
            [job.run for job in planned.pending],
            records,
            backbone_shape,
            device=device_of(planned),
            start=datetime.now(),
        )
        lines += ["", describe(prices)]
        if budget is not None:
            chosen = within_budget(prices, budget)
            lines += ["", f"{len(chosen)} of {len(prices.runs)} runs fit into {budget:g} hours:"]
            lines += [
                f"  {one.run.variant} · {one.run.backbone} · {one.run.benchmark} · seed {one.run.seed} · {one.hours:.2f} h"
                for one in chosen
            ]
    lines += ["", *(f"missing: {line}" for line in planned.missing)] if planned.missing else ["", "nothing is missing"]
    return "\n".join(lines) + "\n"


def parameter_rows(planned: Plan) -> list[tuple[str, str, int, int, int]]:
    """(variant, backbone, trained in the encoder, trained, all) for every row, in closed form on the first benchmark it meets."""
    rows: dict[tuple[str, str], Run] = {}
    for job in planned.jobs:
        rows.setdefault((job.run.variant, job.run.backbone), job.run)
    found = []
    for (variant, backbone), run in rows.items():
        size = int(run.rules["image_size"])
        config = from_mapping(method_config_class(run.method), run.method_config, where=f"method {run.method}")
        benchmark = BENCHMARKS.get(run.benchmark)
        head = {
            "task": benchmark.task,
            "num_classes": benchmark.num_classes,
            "mask_tokens": int(run.rules["mask_tokens"]),
        }
        encoder = config.encoder_parameters(backbone_shape(backbone, size))
        added = 0 if run.method in ("full", "bitfit") else encoder
        total = total_parameters(backbone, image_size=size, **head) + added
        found.append((variant, backbone, encoder, encoder + decoder_parameters(backbone, **head), total))
    return found


def device_of(planned: Plan) -> Device:
    """The forecast's assumption where no record tells: cards for a CPU run there, all others on a GPU."""
    small = all(int(job.run.rules["image_size"]) <= 256 for job in planned.jobs)
    return CPU if small else GPU


def finished_table(planned: Plan, results: Path, *, study: str | None) -> str:
    """The table of what was planned, from its records; the pages below ``results/tables`` hold every record there."""
    from harness.reporting import published
    from harness.reporting.pages import images_below, pages
    from harness.reporting.tables import render
    from harness.studies import load_study

    grid = load_study(study) if study else None
    records, _ = RecordStore(results).summaries()
    text = render(
        records,
        study=grid,
        runs=[job.run for job in planned.jobs],
        published=published.read() if grid else (),
        images_of=images_below(results),
    )
    found = pages(results)
    for path, reason in found.skipped.items():
        print(f"skipped: {path}: {reason}", file=sys.stderr)
    for path, page in {**found.content, **(pages(results, study=grid).content if grid else {})}.items():
        try:
            write_atomically(path, page)
        except OSError as error:
            raise UsageError(
                f"table {path} could not be written: {error.strerror}; regenerate it with python -m harness.tables"
            ) from error
    return text
