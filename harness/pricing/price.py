"""A plan's price where it would run: hours, memory, disk, when it is finished, what a budget buys; and all of it as text and JSON.

Time scales with closed-form work. How fast a device does it comes from records of such runs, and without any from a share of
the device's peak; every line says which.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run, seconds_of
from harness.archive.store import RecordStore
from harness.check import from_mapping
from harness.dispatch.attempts import attempts, state_folder
from harness.dispatch.place import Place, gpu_name
from harness.methods.parts.placement import MethodError
from harness.models.catalog import (
    added_parameters,
    backbone_shape,
    decoder_parameters,
    total_parameters,
    trained_in_decoder,
)
from harness.planning.data import Images, limited
from harness.planning.needs import SMALL, card_needs
from harness.planning.plan import Plan
from harness.pricing.flops import activation_bytes, config_of, decoder_of, run_flops, run_kernels, scored
from harness.registry import BENCHMARKS, method_config_class
from harness.settings import load_settings
from harness.system.errors import BudgetError, UsageError
from harness.system.machine import cores, processor
from harness.system.text import counted, first_of

PEAKS = {
    "b200": (80, 2250), "h200": (67, 989), "h100": (67, 989), "gh200": (67, 989), "a100": (19.5, 312), "l40": (90, 362),
    "a40": (37, 150), "a10": (31, 125), "v100": (15.7, 125), "t4": (8.1, 65), "4090": (83, 165), "3090": (36, 71),
}  # fmt: skip
"""GPU -> dense peak in TFLOP/s, of fp32 without TF32 and of 16 bit, as its data sheet has them."""
ASSUMED = "a100"
REACHED = 0.45
"""Share of the peak that products are assumed to reach where nothing is measured."""
KERNEL_SECONDS, SCORE_SECONDS = 6e-6, 1 / 150
"""On a GPU: a kernel's launch, and reading, resizing and scoring an image on the cores beside it. Assumed."""
START_SECONDS, UPDATE_SECONDS, PROCESS_BYTES = 4.4, 0.03, 0.44 * 2**30
"""On a CPU: of a process before its first update, of an update beside its operations, and resident before it holds a model.
Measured once, on the card ``demo`` with one thread."""
MOST_DAYS = 30
"""That a plan may take without a further word."""
STATES = 7
"""Times the trained tensors, of an unfinished run: two checkpoints with weights and Adam's two moments, and the best state."""
RECORD_BYTES, IMAGE_ROW_BYTES = 40_000, 150
"""Of a record, and of a row of its table of images: one an image and scored model."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is assumed of a device that no record tells of.

    Args:
        flops: operations a second that training reaches, in fp32 and in 16 bit.
        threads: of one run on a CPU; 0 for a GPU.
        model: as records name it (`Record.environment`), empty where nobody knows; records of another say nothing.
    """

    name: str
    flops: tuple[float, float]
    threads: int = 0
    model: str = ""

    def made(self, record: Record) -> bool:
        """Whether a record was made on a machine like this one, with as many threads; on any GPU where nobody knows which."""
        machine = record.environment
        model, on_cpu = machine.get("device", "cpu"), machine.get("device", "cpu").lower().startswith("cpu")
        if on_cpu != bool(self.threads) or (self.model and model != self.model):
            return False
        return not on_cpu or machine.get("threads") in (None, str(self.threads))


def gpu(*words: str) -> Device:
    """The GPU that the first of ``words`` that names any means: a model's name, or what a cluster is asked for. Of several the
    slowest counts."""
    named = next(filter(None, ([name for name in PEAKS if re.search(rf"{name}(?!\d)", w.lower())] for w in words)), [])
    name = min(named or [ASSUMED], key=lambda name: PEAKS[name][1])
    fp32, half = PEAKS[name]
    called = f"{name.upper()}{'' if named else ', which is assumed'}"
    return Device(name=called, flops=(REACHED * fp32 * 1e12, REACHED * half * 1e12))


def cpu(cores: int) -> Device:
    """What is assumed of a run that has so many CPU cores."""
    return Device(name=counted(cores, "CPU core"), flops=(4.5e10 * cores, 7.5e10 * cores), threads=cores)


def device(planned: Plan, where: Place) -> tuple[Device, int]:
    """What one run has there, and how many run at the same time."""
    if where.profile is not None:
        shapes = [where.profile.shape(name) for name in dict.fromkeys(job.run.backbone for job in planned.jobs)]
        if any(map(where.profile.gpus_of, shapes)):
            extra = " ".join(where.profile.extra.values())
            asked = [" ".join(getattr(shape, name) for shape in shapes) for name in ("gres", "constraint", "partition")]
            return gpu(asked[0], extra, *asked[1:]), where.workers
        return cpu(max(shape.cpus for shape in shapes)), where.workers
    if where.devices:
        name = gpu_name(where.devices[0])
        return replace(gpu(name), model=name), where.workers
    return replace(cpu(where.threads), model=processor()), min(where.workers, cores())


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """What one run will cost: device-hours as on one device and what they rest on, peak memory in training, disk while it is
    unfinished."""

    run: Run
    hours: float
    time_basis: str
    peak_memory_bytes: float
    disk_bytes: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a plan will cost; ``finish`` is None without a start, or beyond the calendar. ``image_bytes``: of all decoded images."""

    runs: tuple[RunForecast, ...]
    parallel: int
    finish: datetime | None
    image_bytes: float

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)

    @property
    def disk_bytes(self) -> float:
        return sum(run.disk_bytes for run in self.runs)


def price(planned: Plan, results: Path | None, *, where: Place) -> Forecast:
    """The forecast of a plan's unfinished runs, from records of similar runs below ``results`` where there are some."""
    machine, parallel = device(planned, where)
    runs = [job.run for job in planned.pending]
    speeds = _speeds(results, machine, {_levels(run)[-1] for run in runs}) if results else {}
    alone: dict[tuple[object, ...], RunForecast] = {}
    priced, caches = [], {}
    for run in runs:
        images = limited(planned.images.get(run.benchmark) or published_images(run.benchmark), run.rules)
        if run.rules.get("cache_images"):
            size = int(run.rules["image_size"])
            caches[run.benchmark, run.manifest, size] = 4.0 * size**2 * (images.train + images.val + images.test)
        # Seeds of one plan hold the same options and rules, the very objects, and cost the same.
        same = (run.method, id(run.method_config), run.benchmark, run.backbone, id(run.rules), images)
        if same not in alone:
            seconds, basis = _seconds(run, images, machine, speeds)
            alone[same] = RunForecast(
                run=run,
                hours=seconds / 3600,
                time_basis=basis,
                peak_memory_bytes=_memory(run, machine),
                disk_bytes=STATES * 4.0 * trained_weights(run) + RECORD_BYTES + IMAGE_ROW_BYTES * scored(run, images),
            )
        priced.append(replace(alone[same], run=run))
    hours, finish = [run.hours / _devices(where, run.run.backbone) for run in priced], None
    with suppress(OverflowError):
        finish = datetime.now() + timedelta(hours=makespan(hours, parallel))
    return Forecast(runs=tuple(priced), parallel=parallel, finish=finish, image_bytes=sum(caches.values()))


def _speeds(results: Path, device: Device, levels: set[tuple[object, ...]]) -> dict[object, list[float]]:
    """Level of likeness -> operations a second of finished runs on such a device."""
    speeds: dict[object, list[float]] = {}
    for record in RecordStore(results).summaries()[0]:
        alike = _levels(record.run)
        if record.code != "OK" or not device.made(record) or alike[-1] not in levels:
            continue
        test = sum(count for split, count in record.tested.items() if split != "all")
        images = Images(train=record.counts.get("train", 0), val=record.counts.get("val", 0), test=test)
        trained, (seconds, is_whole) = record.cost.get("wall_time_s", 0.0), seconds_of(record.cost)
        starts = 3600 * sum(start.hours * max(1, start.gpus) for start in attempts(state_folder(results, record.key)))
        whole = starts or (max(seconds, 3600 * record.cost.get("gpu_hours", 0.0)) if is_whole else 0.0)
        with suppress(UsageError, MethodError, KeyError):  # a backbone or a method that is not installed here
            timed = images if whole >= trained else replace(images, test=0)
            work = run_flops(record.run, backbone_shape(record.run.backbone), timed, as_executed=not device.threads)
            for level in alike if work and trained else ():
                speeds.setdefault(level, []).append(work / max(trained, whole))
    return speeds


def _seconds(run: Run, images: Images, device: Device, speeds: Mapping[object, list[float]]) -> tuple[float, str]:
    """How long a run takes on one device, and what that rests on."""
    shape = backbone_shape(run.backbone)
    work = run_flops(run, shape, images, as_executed=not device.threads)
    for level, basis in zip(_levels(run), ("of the same shape", "of this method", "of this backbone"), strict=True):
        if level in speeds:
            return work / statistics.median(speeds[level]), f"{counted(len(speeds[level]), 'record')} {basis}"
    speed = device.flops[run.rules.get("precision", "fp32") != "fp32"]
    if device.threads:
        shown = int(run.rules.get("epoch_images", 0)) or images.train
        updates = int(run.rules.get("epochs", 1)) * math.ceil(shown / int(run.rules.get("batch_size", 1)))
        seconds = work / speed + START_SECONDS + updates * UPDATE_SECONDS
        return seconds, f"nothing measured; {speed / 1e12:g} TFLOP/s assumed of {device.name}"
    seconds = START_SECONDS + scored(run, images) * SCORE_SECONDS
    seconds += work / speed + run_kernels(run, shape, images) * KERNEL_SECONDS
    return seconds, f"nothing measured; {REACHED:.0%} of the peak of one {device.name}"


def _memory(run: Run, device: Device) -> float:
    """Weights, gradients, Adam's moments and activations of a training step; on a CPU the process too."""
    shape = backbone_shape(run.backbone)
    blocks = float(sum(4 * block.dim**2 + 2 * block.dim * block.mlp_dim for block in shape.blocks))
    # of the binary task: the head of several classes is small beside the decoder
    decoder = decoder_parameters(run.backbone, task="binary", decoder=decoder_of(run))
    weights = 4.0 * (blocks + shape.projection_taps + decoder)
    moments = 3 * 4.0 * trained_weights(run) if config_of(run).trains else 0.0
    return weights + moments + activation_bytes(run, shape) + (PROCESS_BYTES if device.threads else 0.0)


def _levels(run: Run) -> tuple[tuple[object, ...], ...]:
    """Keys under which earlier runs are looked up, from what is most like ``run`` to what is least."""
    rules = run.rules
    shape = (model_of(run), rules.get("image_size"), rules.get("precision"))
    config = tuple(sorted((name, str(value)) for name, value in run.method_config.items()))
    batch = (rules.get("batch_size"), rules.get("activation_checkpointing"))
    return (("same", run.method, config, *shape, *batch), ("method", run.method, *shape), ("any", *shape))


def model_of(run: Run) -> str:
    """The backbone, with its decoder where that is not SAM's."""
    return run.backbone + (f" + {decoder}" if (decoder := decoder_of(run)) != "sam" else "")


def trained_weights(run: Run) -> float:
    config = method_config_class(run.method)(**run.method_config)
    head = trained_in_decoder(config, run.backbone, task="binary", decoder=decoder_of(run))
    return float(config.encoder_parameters(backbone_shape(run.backbone))) + head


def published_images(benchmark: str) -> Images:
    """How many images a benchmark has by the sizes that it states: nine tenths of an unsplit one train; a tenth of train validates."""
    sizes = dict(BENCHMARKS.get(benchmark).published_sizes)
    train = sizes.get("train", round(0.9 * sizes.get("all", 1000)))
    test = sizes.get("test", sizes.get("all", 1000) - train)
    val = sizes.get("val", round(0.1 * train))
    return Images(train=train if "val" in sizes else train - val, val=val, test=test)


def makespan(hours: Sequence[float], parallel: int) -> float:
    """Hours until all runs are done on ``parallel`` devices: the longest first, each onto the device that is free first."""
    loads = [0.0] * max(1, parallel)
    for duration in sorted(hours, reverse=True):
        loads[loads.index(min(loads))] += duration
    return max(loads)


def _devices(where: Place, backbone: str) -> int:
    """What a run occupies: its job's GPUs, or one processor."""
    return max(1, where.profile.gpus_of(where.profile.shape(backbone))) if where.profile is not None else 1


def within_budget(prices: Forecast, hours: float) -> tuple[RunForecast, ...]:
    """The runs that fit into ``hours`` device-hours, in the order of the plan.

    Whole comparisons first: all methods on one benchmark under one seed stand or fall together, low seeds before high
    ones, cheap benchmarks before dear ones. Where not even one comparison fits, single runs, cheapest first.
    """
    groups: dict[tuple[int, str, str], list[RunForecast]] = {}
    for priced in prices.runs:
        groups.setdefault((priced.run.seed, priced.run.benchmark, priced.run.backbone), []).append(priced)
    order = sorted(groups, key=lambda group: (group[0], sum(priced.hours for priced in groups[group]), group))
    singles = sorted(prices.runs, key=lambda priced: (priced.hours, priced.run.seed, priced.run.key))
    keys: set[str] = set()
    for several in ([groups[key] for key in order], [[priced] for priced in singles]):
        left = hours
        for group in several if not keys else ():
            if (cost := sum(priced.hours for priced in group)) <= left:
                keys |= {priced.run.key for priced in group}
                left -= cost
    return tuple(priced for priced in prices.runs if priced.run.key in keys)


def affordable(planned: Plan, prices: Forecast, *, hours: float) -> tuple[Plan, str]:
    """The plan without the runs that do not fit into ``hours`` device-hours, and a line that says what is left out. Raises
    BudgetError: not one run fits."""
    kept = {priced.run.key for priced in within_budget(prices, hours)}
    left_out = {priced.run.key: run_in_words(priced.run) for priced in prices.runs if priced.run.key not in kept}
    if left_out and not kept:
        cheapest = min(priced.hours for priced in prices.runs)
        raise BudgetError(
            f"--budget {hours:g}: none of {len(prices.runs)} runs fits, the cheapest takes {cheapest:.2g} hours;"
            " --plan shows the prices"
        )
    failed = {key: code for key, code in planned.failed.items() if key not in left_out}
    text = f"--budget: {len(kept)} of {len(prices.runs)} runs fit into {hours:g} hours"
    text += f"; left out: {first_of(list(left_out.values()))}" if left_out else ""
    jobs = tuple(job for job in planned.jobs if job.run.key not in left_out)
    return replace(planned, jobs=jobs, failed=failed), text


def hesitation(planned: Plan, results: Path, *, where: Place, hours: float | None = None) -> str:
    """Why a plan should not start without ``--yes``, and what to use instead; empty where nothing speaks against it.

    Args:
        hours: of ``--budget``, which nothing exceeds.
    """
    runs = [job.run for job in planned.pending]
    if where.profile is not None:
        if any(run.is_generated for run in runs):
            return f"the card {planned.protocol.name} trains on generated images, which rank nothing; give --data DIR for --cluster"
        if random := [run.backbone for run in runs if not run.checkpoint and config_of(run).trains]:
            return f"{random[0]} would start from random weights; give its file with --checkpoint {random[0]}=FILE"
    if not runs or hours is not None:
        return ""
    # records are read only where the closed form says that it matters
    for known in (None, results):
        prices = price(planned, known, where=where)
        days = makespan([run.hours for run in prices.runs], prices.parallel) / 24
        if days <= MOST_DAYS:
            return ""
    instead = (
        "take --budget HOURS, fewer methods, seeds or benchmarks"
        if where.profile is not None or where.devices
        else ("take --cluster NAME for GPUs, or --protocol mobile, which a CPU trains in minutes a run")
    )
    machine = device(planned, where)[0].name
    return f"{counted(len(runs), 'run')} would take about {days:.0f} days here ({prices.hours:,.0f} hours of {machine}); {instead}"


def run_in_words(run: Run) -> str:
    return f"{run.variant} · {run.backbone} · {run.benchmark} · seed {run.seed}"


def without_gpu(planned: Plan, where: Place) -> str:
    """A line for a plan that wants a GPU where there is none, empty elsewhere."""
    large = any(int(job.run.rules["image_size"]) > SMALL for job in planned.jobs)
    if not large or where.profile is not None or where.devices:
        return ""
    return f"no GPU here: these are hours of {cpu(where.threads).name}; --cluster NAME prices a cluster's GPUs"


def plan_text(planned: Plan, prices: Forecast | None, *, where: Place, budget: float | None = None) -> str:
    """Runs, trainable parameters, prices and what is missing; ``budget`` in device-hours names the runs that fit."""
    runs = counted(len(planned.jobs), "run")
    lines = [f"{runs}, {len(planned.finished)} finished, {len(planned.failed)} failed before", ""]
    parameters = parameter_rows(planned)
    first, second = (max([8, *(len(str(row[column])) for row in parameters)]) for column in (0, 1))
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
    missing = [f"missing: {line}" for line in planned.missing]
    needs = [f"cards by what they need (--protocol): {card_needs()}"] if missing else ["nothing is missing"]
    return "\n".join([*lines, "", *missing, *needs]) + "\n"


def _arrays(chosen: Sequence[RunForecast], where: Place) -> list[str]:
    """What is submitted to a cluster, a line a shape, and which runs are longer than its time limit; nothing elsewhere."""
    if where.profile is None:
        return []
    backbones = dict.fromkeys(priced.run.backbone for priced in chosen)
    shapes = {backbone: where.profile.shape(backbone) for backbone in backbones}
    lines = [""]
    for shape in dict.fromkeys(shapes.values()):
        names = [backbone for backbone, own in shapes.items() if own == shape]
        runs = [priced for priced in chosen if priced.run.backbone in names]
        arrays = counted(math.ceil(len(runs) / where.profile.max_array_size), "array")
        at_once = f"{counted(len(runs), 'run')} in {arrays} of at most {where.profile.parallelism} at once"
        lines.append(f"{', '.join(names)}: {at_once}; {shape.in_words}")
        limit = shape.hours * _devices(where, names[0])
        if longer := [run_in_words(priced.run) for priced in runs if priced.hours > limit]:
            lines.append(f"  longer than its time limit; it continues from its checkpoint: {first_of(longer)}")
    return lines


def plan_data(planned: Plan, prices: Forecast | None, *, where: Place, budget: float | None = None) -> dict[str, Any]:
    """The plan JSON-ready: every run with its state and its price, and what is missing. ``budget``: device-hours; every run that is
    priced says whether it fits."""
    by_key = {priced.run.key: priced for priced in prices.runs} if prices is not None else {}
    fitting = within_budget(prices, budget) if prices is not None and budget is not None else ()
    fits = {priced.run.key: priced.hours for priced in fitting}
    runs = []
    for run in (job.run for job in planned.jobs):
        state = "finished" if run.key in planned.finished else planned.failed.get(run.key, "planned")
        names = ("key", "variant", "method", "backbone", "benchmark", "protocol", "seed")
        entry = {name: getattr(run, name) for name in names}
        if priced := by_key.get(run.key):
            entry |= {name: value for name, value in vars(priced).items() if name != "run"}
            entry |= {"fits_budget": run.key in fits} if budget is not None else {}
        runs.append({**entry, "state": state})
    data = {"runs": runs, "missing": list(planned.missing), "note": without_gpu(planned, where)}
    if budget is not None:
        data["budget"] = {"hours": budget, "runs": len(fits), "of_runs": len(by_key), "spent": sum(fits.values())}
    return data


def forecast_text(prices: Forecast) -> str:
    """The forecast as text: one line a method, the sum, what the numbers rest on, disk, and when it is finished."""
    methods: dict[str, list[RunForecast]] = {}
    for priced in prices.runs:
        methods.setdefault(f"{priced.run.variant} · {model_of(priced.run)}", []).append(priced)
    width = max([28, *map(len, methods)])
    lines = [f"{'method':<{width}} {'runs':>5} {'hours':>9} {'peak GiB':>9} {'disk GiB':>9}"]
    for name, runs in {**methods, "all": prices.runs}.items():
        peak = max((run.peak_memory_bytes for run in runs), default=0.0) / 2**30
        disk = sum(run.disk_bytes for run in runs) / 2**30
        lines.append(f"{name:<{width}} {len(runs):>5} {_hours(runs):>9} {peak:>9.2f} {disk:>9.2f}")
    bases: dict[str, dict[str, None]] = {}
    for priced in prices.runs:
        bases.setdefault(priced.time_basis, {})[f"{priced.run.variant} · {model_of(priced.run)}"] = None
    for basis, names in bases.items():
        lines.append(f"time{f' of {first_of(list(names))}' if len(bases) > 1 else ''}: {basis}")
    lines.append(
        "hours are device-hours, GPU-hours on a GPU; disk is that of unfinished runs, with two checkpoints each"
    )
    if prices.image_bytes:
        size, fits = prices.image_bytes / 2**30, load_settings().cache_gib
        rest = "" if size <= fits else f" of which {fits:.0f} fit (cache_gib); the rest is decoded every epoch,"
        lines.append(f"decoded images: {size:.2f} GiB,{rest} shared by runs (--no-cache: none)")
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
        head: Any = {"task": benchmark.task, "num_classes": benchmark.num_classes, "decoder": decoder_of(run)}
        head["mask_tokens"] = int(run.rules["mask_tokens"])
        encoder = config.encoder_parameters(backbone_shape(backbone, size))
        total = total_parameters(backbone, image_size=size, **head)
        total += added_parameters(config, backbone, image_size=size)
        numbers.append((variant, model, encoder, encoder + trained_in_decoder(config, backbone, **head), total))
    return numbers
