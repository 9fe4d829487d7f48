"""The cost of a plan on its target: hours, memory, disk, time to completion.

Hours are counted operations (`harness.planning.work`) divided by the speed of earlier runs on such a device, or without records by a
share of the device's peak.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.archive.schema import Record, Run, seconds_of
from harness.archive.store import RecordStore
from harness.dispatch.target import JobShape, Target
from harness.models.catalog import backbone_shape
from harness.planning import work
from harness.planning.data import ImageCounts, limited, limits_in_words
from harness.planning.plan import Plan
from harness.registry import BENCHMARKS, trains
from harness.system.machine import cores, gpu_name, processor
from harness.system.text import counted

PEAKS = {
    "b200": (80, 2250), "h200": (67, 989), "h100": (67, 989), "gh200": (67, 989), "a100": (19.5, 312), "l40s": (92, 362),
    "l40": (90, 181), "a40": (37, 150), "a10": (31, 125), "a10g": (35, 70), "v100": (15.7, 125), "t4": (8.1, 65),
    "4090": (83, 165), "3090": (36, 71),
}  # fmt: skip
"""GPU -> dense peak in TFLOP/s by its specification, in fp32 without TF32 and in 16 bit."""
REACHED = 0.25
"""Share of the peak that training is assumed to reach where nothing is measured. An estimate, from the rates of fused attention and
matrix products on an H100 and the memory that a step's element-wise operations move: 0.22 for ViT-B's steps, 0.26 for ViT-H's."""
START_SECONDS, UPDATE_SECONDS = 4.4, 0.03
"""Seconds before the first update, and those that the host takes per update: measured once on a CPU with the protocol ``demo``, and
assumed for a GPU, which computes in the meantime."""
MOST_DAYS = 30
"""A plan that takes longer needs ``--yes``."""
_STATES = 8
"""Copies of the trained tensors on disk: two checkpoints, each with weights, Adam's two moments and the best state."""
RECORD_BYTES, IMAGE_ROW_BYTES = 40_000, 150
"""Bytes of a record, and of a row of its table of images: a row for every image and scored model."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Assumptions about a device where no record shows its speed.

    Args:
        flops: operations per second that training reaches, in fp32 and in 16 bit.
        threads: threads of one run on a CPU; 0 for a GPU.
        model: as records name it (`Record.environment`), empty if unknown; records of another model do not count.
    """

    name: str
    flops: tuple[float, float]
    threads: int = 0
    model: str = ""

    def matches(self, record: Record) -> bool:
        """Whether a record was made on such a device, with as many threads; on any GPU if the model is unknown."""
        name, threads = record.environment.get("device", "cpu"), record.environment.get("threads")
        on_cpu = name.lower().startswith("cpu")
        same = on_cpu == bool(self.threads) and self.model in ("", name)
        return same and (not on_cpu or threads in (None, str(self.threads)))


def gpu(*words: str) -> Device:
    """The GPU that ``words`` name (a model's name, or a cluster's request): the slowest in the first word that names any. A name is a
    whole token, as in ``rtx4090`` or ``gpuA100x4``; ``part4`` is not a T4. A MIG slice, ``a100_3g.20gb``, has its share of seven."""
    whole = [(name, re.compile(rf"(?<![a-z0-9])(gpu|rtx)?{name}(l|nvl)?(x\d+)?(?![a-z0-9])")) for name in PEAKS]
    named = next(filter(None, ([name for name, token in whole if token.search(w.lower())] for w in words)), [])
    name = min(named or ["h100"], key=lambda name: PEAKS[name][1])
    slices = min(map(int, re.findall(r"(?<!\d)([1-7])g\.\d", " ".join(words).lower())), default=7)
    called = f"{name.upper()}{'' if named else ' (assumed)'}{f' MIG {slices}g' if slices < 7 else ''}"
    fp32, half = (REACHED * peak * 1e12 * slices / 7 for peak in PEAKS[name])
    return Device(name=called, flops=(fp32, half))


def cpu(cores: int) -> Device:
    """Assumptions about this many CPU cores."""
    return Device(name=counted(cores, "CPU core"), flops=(4.5e10 * cores, 7.5e10 * cores), threads=cores)


def device(planned: Plan, target: Target) -> Device:
    """The device of one run on the target."""
    if target.profile is not None:
        shapes = [target.profile.shape(name) for name in dict.fromkeys(job.run.backbone for job in planned.jobs)]
        if not any(map(target.profile.gpus_of, shapes)):
            return cpu(max(shape.cpus for shape in shapes))
        gres, *others = (
            " ".join(getattr(shape, name) for shape in shapes) for name in ("gres", "constraint", "partition")
        )
        return gpu(gres, " ".join(target.profile.extra.values()), *others)
    if target.devices:
        name = gpu_name(target.devices[0])
        return replace(gpu(name), model=name)
    return replace(cpu(target.threads), model=processor())


class RunForecast(NamedTuple):
    """The cost of one run: device-hours and their basis, peak memory in training, disk while it is unfinished."""

    run: Run
    hours: float
    time_basis: str
    peak_memory_bytes: float
    disk_bytes: float


def price(planned: Plan, results: Path | None, *, target: Target) -> tuple[RunForecast, ...]:
    """The forecast of a plan's unfinished runs, from records of similar runs below ``results`` if there are any."""
    machine = device(planned, target)
    runs = [job.run for job in planned.pending]
    speeds = _speeds(results, machine, {_levels(run)[-1] for run in runs}) if results else {}
    alone: dict[tuple[object, ...], RunForecast] = {}
    priced = []
    for run in runs:
        images = images_of(planned, run)
        same = (replace(run, seed=0).key, images)  # the seeds of a row cost the same
        if same not in alone:
            seconds, basis = _seconds(run, images, machine, speeds)
            alone[same] = RunForecast(
                run=run,
                hours=seconds / 3600,
                time_basis=basis,
                peak_memory_bytes=work.training_bytes(run, _attention(run, machine)),
                disk_bytes=_STATES * 4.0 * work.parameters(run)[1]
                + RECORD_BYTES
                + IMAGE_ROW_BYTES * work.scored(run, images),
            )
        priced.append(alone[same]._replace(run=run))
    return tuple(priced)


def _attention(run: Run, device: Device) -> Mapping[str, str]:
    """How the run's blocks would attend on this machine's GPU, as far as earlier runs have chosen a kernel."""
    if device.threads or not device.model:
        return {}
    from harness.models.attention_choice import remembered  # imports torch, so only where there is a GPU

    rules, shape = run.rules, backbone_shape(run.backbone)
    return remembered(
        shape,
        gpu=device.model,
        batch=int(rules["batch_size"]),
        image_size=int(rules["image_size"]),
        precision=str(rules["precision"]),
    )


def days(runs: Sequence[RunForecast], target: Target) -> float:
    """Days until all runs are done, with as many at a time as there is room for and no waiting in a queue."""
    profile, queues = target.profile, dict[JobShape | None, list[float]]()
    for priced in runs:  # on a cluster each shape has arrays of its own
        queues.setdefault(profile.shape(priced.run.backbone) if profile else None, []).append(priced.hours)
    return max((max(*hours, sum(hours) / _parallel(target)) for hours in queues.values()), default=0.0) / 24


def _parallel(target: Target) -> int:
    """How many runs there are at the same time."""
    return target.workers if target.profile is not None or target.devices else min(target.workers, cores())


def _speeds(results: Path, device: Device, levels: set[tuple[object, ...]]) -> dict[object, list[float]]:
    """Level of similarity (`_levels`) -> operations per second of finished runs on such a device."""
    speeds: dict[object, list[float]] = {}
    for record in RecordStore(results).summaries()[0]:
        if record.code != "OK" or not device.matches(record):
            continue
        seconds, is_whole = seconds_of(record.cost)
        seconds = max(seconds, 3600 * record.cost.get("gpu_hours", 0.0)) if is_whole else seconds  # of all its GPUs
        test = sum(count for split, count in record.tested.items() if split != "all") if is_whole else 0
        images = ImageCounts(train=record.counts.get("train", 0), val=record.counts.get("val", 0), test=test)
        with suppress(Exception):  # a record is data, and its backbone or its method may not be installed here
            if (alike := _levels(record.run))[-1] not in levels:
                continue
            operations = work.run_flops(record.run, images)
            for level in alike if operations and seconds else ():
                speeds.setdefault(level, []).append(operations / seconds)
    return speeds


def _levels(run: Run) -> tuple[tuple[object, ...], ...]:
    """Keys by which earlier runs are found, from the most similar to ``run`` to the least. A run that trains nothing is mostly its
    start, and says nothing about training."""
    shape = (segmenter_of(run), run.rule("image_size"), run.rule("precision"))
    config = tuple(sorted((name, str(value)) for name, value in run.method_config.items()))
    batch = (run.rule("batch_size"), run.rule("activation_checkpointing"))
    kind = "nothing" if trains(run.method) == "nothing" else "any"
    return (("same", run.method, config, *shape, *batch), ("method", run.method, *shape), (kind, *shape))


def step_seconds(run: Run, device: Device) -> float:
    """Seconds of a training step on a GPU where nothing is measured, all of its passes together."""
    passes = work.configuration_of(run).passes(epochs=int(run.rules["epochs"]), of_updates=False)
    speed = device.flops[run.rules["precision"] != "fp32"]
    computed = int(run.rules["batch_size"]) * work.step_flops(run, backbone_shape(run.backbone)) / speed
    return passes * max(UPDATE_SECONDS, computed)


def _seconds(run: Run, images: ImageCounts, device: Device, speeds: Mapping[object, list[float]]) -> tuple[float, str]:
    """Seconds of a run on one device, and their basis."""
    operations = work.run_flops(run, images)
    for level, basis in zip(_levels(run), ("of the same shape", "of this method", "of this backbone"), strict=True):
        if level in speeds:
            return operations / statistics.median(speeds[level]), f"{counted(len(speeds[level]), 'record')} {basis}"
    speed = device.flops[run.rule("precision") != "fp32"]
    updates = work.trained_images(run, images) / int(run.rule("batch_size"))
    host, computed = UPDATE_SECONDS * updates, operations / speed
    seconds = START_SECONDS + (host + computed if device.threads else max(host, computed))
    return seconds, f"nothing measured; at {speed / 1e12:.3g} TFLOP/s on {device.name}"


def segmenter_of(run: Run) -> str:
    """The backbone, with its decoder where that is not SAM's."""
    return run.backbone + (f" + {decoder}" if (decoder := run.rule("decoder")) != "sam" else "")


def images_of(planned: Plan, run: Run) -> ImageCounts:
    """The images of a run: those on disk, else by the published sizes."""
    return limited(planned.images.get(run.benchmark) or published_images(run.benchmark), run.rules)


def published_images(benchmark: str) -> ImageCounts:
    """The images of a benchmark by its published sizes. Without splits nine tenths train; without a validation split it is a tenth of
    the training split."""
    sizes = dict(BENCHMARKS.get(benchmark).published_sizes)
    train = sizes.get("train", round(0.9 * sizes.get("all", 1000)))
    test = sizes.get("test", sizes.get("all", 1000) - train)
    val = sizes.get("val", round(0.1 * train))
    return ImageCounts(train=train if "val" in sizes else train - val, val=val, test=test)


def hesitation(planned: Plan, results: Path, *, target: Target) -> str:
    """Why a plan should not start without ``--yes``, and what to use instead; empty if it may start."""
    runs = [job.run for job in planned.pending]
    if target.profile is not None:
        if any(run.is_generated for run in runs):
            return f"the protocol {planned.protocol.name} trains on generated images; give --data DIR for --cluster"
        if random := [run.backbone for run in runs if not run.checkpoint and work.configuration_of(run).trains]:
            return f"{random[0]} would start from random weights; give its pretrained file with --checkpoint {random[0]}=FILE"
    for known in (None, results):  # records are read only where the closed form says that it matters
        prices = price(planned, known, target=target)
        if (long := days(prices, target)) <= MOST_DAYS:
            return ""
    on_cpu = target.profile is None and not target.devices
    instead = "--cluster NAME, or --protocol mobile" if on_cpu else "fewer methods, seeds or benchmarks"
    spent = f"{sum(run.hours for run in prices):,.0f} hours of {device(planned, target).name}"
    return f"{counted(len(runs), 'run')} would take about {long:.0f} days here ({spent}); use {instead}"


def plan_text(planned: Plan, prices: Sequence[RunForecast], *, target: Target) -> str:
    """Runs, trainable parameters, prices and what is missing."""
    runs = counted(len(planned.jobs), "run")
    lines = [f"{runs}, {len(planned.finished)} finished, {len(planned.failed)} failed before", ""]
    rows = parameter_rows(planned)
    first, second = (max([8, *(len(str(row[column])) for row in rows)]) for column in (0, 1))
    lines.append(f"{'method':{first}} {'backbone':{second}} {'encoder':>11} {'trainable':>11} {'of total':>13}")
    for method, backbone, encoder, trainable, total in rows:
        lines.append(f"{method:{first}} {backbone:{second}} {encoder:>11,} {trainable:>11,} {total:>13,}")
    lines += ["", f"{'benchmark':14} images of training / validation / test, splits"]
    lines += [f"{name:14} {' · '.join(words)}" for name, words in _data(planned)]
    if prices:
        lines += ["", *_forecast(planned, prices, target)]
        if target.profile is not None:
            runs_of = Counter(target.profile.shape(priced.run.backbone) for priced in prices)
            lines += ["", *(f"{counted(count, 'run')}, each with {shape.in_words}" for shape, count in runs_of.items())]
    missing = [f"missing: {line}" for line in planned.missing]
    return "\n".join([*lines, "", *(missing or ["nothing is missing"])]) + "\n"


def _data(planned: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Each benchmark with its images and their limits, its split rule and its note."""
    lines: dict[tuple[str, tuple[str, ...]], None] = {}
    for run in (job.run for job in planned.jobs):
        images = planned.images.get(run.benchmark)
        words = [limits_in_words(images, run.rules)] if images else []
        words += [run.split_rule or "not on disk", *filter(None, [run.data_note])]
        lines[run.benchmark, tuple(words)] = None
    return list(lines)


def plan_data(planned: Plan, prices: Sequence[RunForecast]) -> dict[str, Any]:
    """The plan, JSON-ready: every run with its state and price, and what is missing."""
    by_key = {
        priced.run.key: {name: value for name, value in priced._asdict().items() if name != "run"} for priced in prices
    }
    runs = []
    for run in (job.run for job in planned.jobs):
        names = ("key", "label", "method", "backbone", "benchmark", "protocol", "seed")
        state = "finished" if run.key in planned.finished else planned.failed.get(run.key, "planned")
        runs.append({**{name: getattr(run, name) for name in names}, "state": state, **by_key.get(run.key, {})})
    return {"runs": runs, "missing": list(planned.missing)}


def parameter_rows(planned: Plan) -> list[tuple[str, str, int, int, int]]:
    """(label, backbone with its decoder, trained in the encoder, trained, all) for every row, on the first benchmark that it has."""
    rows: dict[tuple[str, str], Run] = {}
    for job in planned.jobs:
        rows.setdefault((job.run.label, segmenter_of(job.run)), job.run)
    return [(*names, *work.parameters(run)) for names, run in rows.items()]


def _forecast(planned: Plan, prices: Sequence[RunForecast], target: Target) -> list[str]:
    """A line per method with its hours and what they are based on, the sum, and when all are finished."""
    methods: dict[str, list[RunForecast]] = {}
    for priced in prices:
        methods.setdefault(f"{priced.run.label} · {segmenter_of(priced.run)}", []).append(priced)
    width = max([28, *map(len, methods)])
    lines = [f"{'method':<{width}} {'runs':>5} {'hours':>9} {'peak GiB':>9} {'disk GiB':>9}  hours from"]
    for name, runs in {**methods, "all": prices}.items():
        peak, disk = max(run.peak_memory_bytes for run in runs) / 2**30, sum(run.disk_bytes for run in runs) / 2**30
        line = f"{name:<{width}} {len(runs):>5} {_hours(sum(run.hours for run in runs)):>9} {peak:>9.2f} {disk:>9.2f}"
        basis = (
            runs[0].time_basis if name in methods else f"unfinished runs, in hours of {device(planned, target).name}"
        )
        lines.append(f"{line}  {basis}")
    at_once = counted(_parallel(target), "run") + (" of a shape" if target.profile else "")
    hours = 24 * days(prices, target)
    length = f"{_hours(hours)} hours" if hours >= 1 else counted(max(1, round(60 * hours)), "minute")
    return [*lines, f"finished after about {length} ({at_once} at a time, no waiting in a queue)"]


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2g}"
