"""A plan's price where it would run, what of the plan a budget buys, and both as text and as JSON with what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run, seconds_of
from harness.archive.store import RecordStore
from harness.check import from_mapping
from harness.dispatch.attempts import attempts, state_folder
from harness.dispatch.place import Place, gpu_name
from harness.models.catalog import added_parameters, backbone_shape, total_parameters, trained_in_decoder
from harness.planning.data import Images
from harness.planning.job import Job
from harness.planning.needs import SMALL, card_needs
from harness.planning.plan import Plan
from harness.pricing.flops import decoder_of, model_of
from harness.pricing.forecast import GPU, Device, Forecast, RunForecast, cpu, forecast, published_images, within_budget
from harness.registry import BENCHMARKS, method_config_class
from harness.system.errors import BudgetError
from harness.system.machine import cores, processor
from harness.system.text import counted, first_of


def device(planned: Plan, where: Place) -> tuple[Device, int]:
    """What one run has there, and how many run at the same time."""
    if where.profile is not None:
        shapes = [where.profile.shape(name) for name in dict.fromkeys(job.run.backbone for job in planned.jobs)]
        gpus = any(map(where.profile.gpus_of, shapes))
        return GPU if gpus else cpu(max(shape.cpus for shape in shapes)), where.workers
    if where.devices:
        name = gpu_name(where.devices[0])
        return replace(GPU, name=name, model=name) if name else GPU, where.workers
    return replace(cpu(where.threads), model=processor()), min(where.workers, cores())


def without_gpu(planned: Plan, where: Place) -> str:
    """A line for a plan that wants a GPU where there is none, empty elsewhere."""
    large = any(int(job.run.rules["image_size"]) > SMALL for job in planned.jobs)
    if not large or where.profile is not None or where.devices:
        return ""
    return f"no GPU here: these are hours of {cpu(where.threads).name}; --cluster NAME prices a cluster's GPUs"


def price(planned: Plan, results: Path, *, where: Place) -> Forecast:
    """The forecast of a plan's unfinished runs, from records of similar runs below ``results`` where there are some."""
    machine, parallel = device(planned, where)

    def images_of(run: Run) -> Images:
        return planned.images.get(run.benchmark) or published_images(run.benchmark)

    def taken(record: Record) -> float:
        starts = sum(start.hours * max(1, start.gpus) for start in attempts(state_folder(results, record.key)))
        seconds, whole = seconds_of(record.cost)
        # what lies beside records is not in every archive
        return 3600 * starts or (max(seconds, 3600 * record.cost.get("gpu_hours", 0.0)) if whole else 0.0)

    return forecast(
        [job.run for job in planned.pending],
        RecordStore(results).summaries()[0],
        images_of=images_of,
        seconds_of=taken,
        device=machine,
        parallel=parallel,
        devices_of=lambda run: _devices(where, run.backbone),
        start=datetime.now(),
    )


def _devices(where: Place, backbone: str) -> int:
    """What a run occupies, as its starts count it (`harness.dispatch.attempts.Attempt.gpus`): its job's GPUs, or one processor."""
    return max(1, where.profile.gpus_of(where.profile.shape(backbone))) if where.profile is not None else 1


def affordable(planned: Plan, prices: Forecast, *, hours: float) -> tuple[Plan, str]:
    """The plan without the runs that do not fit into ``hours`` device-hours, and a line that says what is left out.

    Raises:
        BudgetError: not one run fits.
        UsageError: the budget is not above zero.
    """
    chosen = within_budget(prices, hours)
    if prices.runs and not chosen:
        cheapest = min(priced.hours for priced in prices.runs)
        raise BudgetError(
            f"--budget {hours:g}: none of {len(prices.runs)} runs fits, the cheapest takes {cheapest:.2g} hours;"
            " --plan shows the prices"
        )
    keys = {priced.run.key for priced in chosen}
    left_out = {priced.run.key: run_in_words(priced.run) for priced in prices.runs if priced.run.key not in keys}
    kept = tuple(job for job in planned.jobs if job.run.key not in left_out)
    failed = {key: code for key, code in planned.failed.items() if key not in left_out}
    text = f"--budget: {len(chosen)} of {len(prices.runs)} runs fit into {hours:g} hours"
    if left_out:
        text += f"; left out: {first_of(list(left_out.values()))}"
    return replace(planned, jobs=kept, failed=failed), text


def bought(
    planned: Plan,
    results: Path,
    *,
    begun: Iterable[Job],
    where: Place,
    before: Mapping[str, float],
    budget: float | None,
) -> tuple[Plan, Forecast | None, dict[str, float]]:
    """The plan without the runs that are priced ``before``; its price, None where none of it would be ``begun``; and the
    hours of those that are to be made, by key: all that would be begun, or with a budget those that fit."""
    jobs = tuple(job for job in begun if job.run.key not in before)
    planned = replace(planned, jobs=tuple(job for job in planned.jobs if job.run.key not in before))
    if not jobs:
        return planned, None, {}
    prices = price(replace(planned, jobs=jobs), results, where=where)
    chosen = prices.runs if budget is None else within_budget(prices, budget)
    return planned, prices, {priced.run.key: priced.hours for priced in chosen}


def run_in_words(run: Run) -> str:
    return f"{run.variant} · {run.backbone} · {run.benchmark} · seed {run.seed}"


def plan_text(planned: Plan, prices: Forecast | None, *, where: Place, budget: float | None = None) -> str:
    """Runs, trainable parameters, forecast and what is missing; starts nothing.

    Args:
        prices: of what is pending (`harness.pricing.price.price`).
        budget: device-hours; names the runs that fit.
    """
    runs = counted(len(planned.jobs), "run")
    lines = [f"{runs}, {len(planned.finished)} finished, {len(planned.failed)} failed before", ""]
    parameters = parameter_rows(planned)
    first, second = (max([8, *(len(str(row[place])) for row in parameters)]) for place in (0, 1))
    lines.append(f"{'method':{first}} {'backbone':{second}} {'encoder':>11} {'trainable':>11} {'of total':>13}")
    for method, backbone, encoder, trainable, total in parameters:
        lines.append(f"{method:{first}} {backbone:{second}} {encoder:>11,} {trainable:>11,} {total:>13,}")
    benchmarks = dict.fromkeys((job.run.benchmark, job.run.split_rule, job.run.data_note) for job in planned.jobs)
    lines += ["", f"{'benchmark':14} splits"]
    lines += [f"{name:14} {rule or 'not on disk'}{f' · {note}' if note else ''}" for name, rule, note in benchmarks]
    if prices is not None:
        lines += ["", forecast_text(prices), *filter(None, [without_gpu(planned, where)])]
        chosen = prices.runs if budget is None else within_budget(prices, budget)
        if budget is not None:
            lines += ["", f"{len(chosen)} of {len(prices.runs)} runs fit into {budget:g} hours:"]
            lines += [f"  {run_in_words(priced.run)} · {_hours([priced])} h" for priced in chosen]
        lines += _arrays(chosen, where)
    if planned.missing:
        missing = [f"missing: {line}" for line in planned.missing]
        lines += ["", *missing, f"cards by what they need (--protocol): {card_needs()}"]
    else:
        lines += ["", "nothing is missing"]
    return "\n".join(lines) + "\n"


def _arrays(chosen: Sequence[RunForecast], where: Place) -> list[str]:
    """What is submitted to a cluster, a line a shape, and how many runs are longer than its time limit; nothing elsewhere."""
    if where.profile is None:
        return []
    shapes = {
        backbone: where.profile.shape(backbone) for backbone in dict.fromkeys(priced.run.backbone for priced in chosen)
    }
    lines = [""]
    for shape in dict.fromkeys(shapes.values()):
        backbones = [backbone for backbone, own in shapes.items() if own == shape]
        runs = [priced for priced in chosen if priced.run.backbone in backbones]
        arrays = counted(math.ceil(len(runs) / where.profile.max_array_size), "array")
        at_once = f"{counted(len(runs), 'run')} in {arrays} of at most {where.profile.parallelism} at once"
        lines.append(f"{', '.join(backbones)}: {at_once}; {shape.in_words}")
        devices = _devices(where, backbones[0])
        longer = [run_in_words(priced.run) for priced in runs if priced.hours / devices > shape.hours]
        if longer:
            lines.append(f"  longer than its time limit; it continues from its checkpoint: {first_of(longer)}")
    return lines


def plan_data(planned: Plan, prices: Forecast | None, *, where: Place, budget: float | None = None) -> dict[str, Any]:
    """The plan JSON-ready: every run with its state and its price, and what is missing. ``budget``: device-hours; every run that is
    priced says whether it fits."""
    priced_runs = {priced.run.key: priced for priced in prices.runs} if prices is not None else {}
    chosen = within_budget(prices, budget) if prices is not None and budget is not None else ()
    bought = {priced.run.key: priced.hours for priced in chosen}
    runs = []
    for job in planned.jobs:
        run, priced = job.run, priced_runs.get(job.run.key)
        state = "finished" if run.key in planned.finished else planned.failed.get(run.key, "planned")
        names = ("key", "variant", "method", "backbone", "benchmark", "protocol", "seed")
        entry = {name: getattr(run, name) for name in names}
        if priced is not None:
            told = ("hours", "time_basis", "peak_memory_bytes", "memory_basis", "disk_bytes")
            entry |= {name: getattr(priced, name) for name in told}
            if budget is not None:
                entry["fits_budget"] = run.key in bought
        runs.append({**entry, "state": state})
    data = {"runs": runs, "missing": list(planned.missing), "note": without_gpu(planned, where)}
    if budget is not None:
        spent = sum(bought.values())
        data["budget"] = {"hours": budget, "runs": len(bought), "of_runs": len(priced_runs), "spent": spent}
    return data


def forecast_text(prices: Forecast) -> str:
    """The forecast as text: one line a method, the sum, what the numbers rest on, disk, and when it is finished."""
    methods = prices.by_method()
    width = max([28, *(len(f"{variant} · {backbone}") for variant, backbone in methods)])
    lines = [f"{'method':<{width}} {'runs':>5} {'hours':>9} {'peak GiB':>9} {'disk GiB':>9}"]
    bases: dict[str, dict[str, dict[str, None]]] = {"time": {}, "memory": {}}
    for (variant, backbone), runs in methods.items():
        peak = max(run.peak_memory_bytes for run in runs) / 2**30
        disk = sum(run.disk_bytes for run in runs) / 2**30
        name = f"{variant} · {backbone}"
        lines.append(f"{name:<{width}} {len(runs):>5} {_hours(runs):>9} {peak:>9.2f} {disk:>9.2f}")
        for run in runs:
            bases["time"].setdefault(run.time_basis, {})[name] = None
            bases["memory"].setdefault(run.memory_basis, {})[name] = None
    peak = max((run.peak_memory_bytes for run in prices.runs), default=0.0) / 2**30
    lines.append(
        f"{'all':<{width}} {len(prices.runs):>5} {_hours(prices.runs):>9} {peak:>9.2f} {prices.disk_bytes / 2**30:>9.2f}"
    )
    for quantity, names_on in bases.items():
        for basis, names in names_on.items():
            whose = f" of {first_of(list(names))}" if len(names_on) > 1 else ""
            lines.append(f"{quantity}{whose}: {basis}")
    lines.append("hours are device-hours, GPU-hours on a GPU")
    kept = sum(run.kept_bytes for run in prices.runs) / 2**30
    lines.append(
        f"disk is that of unfinished runs, each with two checkpoints; {kept:.2f} GiB stay when all are finished"
    )
    kinds = (
        ("images", prices.image_cache_bytes, " and scored masks at their own size (--no-cache: none)"),
        ("embeddings of frozen encoders", prices.embedding_cache_bytes, ""),
        ("tokens of frozen blocks", prices.token_cache_bytes, ""),
    )
    if caches := [f"{name} {size / 2**30:.2f} GiB{more}" for name, size, more in kinds if size]:
        lines.append(f"caches come on top, shared by runs, where there is room: {'; '.join(caches)}")
    if prices.finish is not None:
        at_once = f"{counted(prices.parallel, 'run')} at a time, no waiting in a queue"
        lines.append(f"finished about {prices.finish:%Y-%m-%d %H:%M} ({at_once})")
    return "\n".join(lines)


def _hours(runs: Iterable[RunForecast]) -> str:
    hours = sum(run.hours for run in runs)
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2g}"


def parameter_rows(planned: Plan) -> list[tuple[str, str, int, int, int]]:
    """(variant, backbone with its decoder, trained in the encoder, trained, all) for every row, in closed form on the first
    benchmark it meets."""
    rows: dict[tuple[str, str], Run] = {}
    for job in planned.jobs:
        rows.setdefault((job.run.variant, model_of(job.run)), job.run)
    numbers = []
    for (variant, model), run in rows.items():
        size, backbone = int(run.rules["image_size"]), run.backbone
        config = from_mapping(method_config_class(run.method), run.method_config, where=f"method {run.method}")
        benchmark = BENCHMARKS.get(run.benchmark)
        tokens = int(run.rules["mask_tokens"])
        head: Any = {"task": benchmark.task, "num_classes": benchmark.num_classes, "mask_tokens": tokens}
        head["decoder"] = decoder_of(run)
        encoder = config.encoder_parameters(backbone_shape(backbone, size))
        added = added_parameters(config, backbone, image_size=size)
        total = total_parameters(backbone, image_size=size, **head) + added
        numbers.append((variant, model, encoder, encoder + trained_in_decoder(config, backbone, **head), total))
    return numbers
