"""What a plan will cost before it starts: hours, memory, disk, finish date, and what a budget buys.

Time scales with closed-form work. How fast the device does it comes from earlier records, the most alike first, and
only without any from an assumed speed of the `Device`; every line says which. Room on disk is in closed form: a run's states while it is
unfinished and afterwards, and the caches that runs share.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from harness.archive.schema import Record, Run
from harness.methods.configs import MethodConfig
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.models.catalog import backbone_shape, decoder_parameters, trained_in_decoder
from harness.planning.data import Images, limited
from harness.pricing.flops import activation_bytes, config_of, decoder_of, encodes_once, model_of, run_flops
from harness.registry import BENCHMARKS, method_config_class
from harness.system.errors import UsageError
from harness.system.text import counted
from harness.training.bounds import CACHE_BYTES, TOKEN_BYTES, worth_keeping

PROCESS_BYTES = 0.44 * 2**30
"""Resident memory of a process that has imported all that a run needs and computed nothing, measured once with
torch 2.13 for CPUs. A GPU's peak does not count it."""
START_SECONDS, UPDATE_SECONDS = 4.4, 0.03
"""Processor time of a process before its first update, and of an update beside its operations; measured once, on the
card ``demo`` with one thread, where nothing else is left."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is assumed of a device that no record tells of.

    Args:
        name: for the plan.
        kind: records made on the other kind of device say nothing of this one.
        flops: operations a second that training reaches, by precision.
        process_bytes: what a process takes of the memory that counts before it holds a model.
        start_seconds, update_seconds: what a run and an update take besides their operations.
        model: as records name it (`Record.environment`), empty where nobody knows; records of another say less.
        threads: of one run on a CPU.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    flops: Mapping[str, float]
    process_bytes: float = 0.0
    start_seconds: float = 0.0
    update_seconds: float = 0.0
    model: str = ""
    threads: int = 0

    def made(self, record: Record) -> bool:
        on_cpu = record.environment.get("device", "cpu").lower().startswith("cpu")
        return on_cpu == (self.kind == "cpu")

    def same(self, record: Record) -> bool:
        """Whether a record was made on a machine like this one, with as many threads."""
        machine = record.environment
        threads = self.kind == "gpu" or machine.get("threads") in (None, str(self.threads))
        return not self.model or (machine.get("device") == self.model and threads)


GPU = Device(
    name="an 80 GB data-centre GPU",
    kind="gpu",
    flops={"fp32": 3e13, "bf16": 8e13, "fp16": 8e13},
    start_seconds=START_SECONDS,  # the part of the processor beside it, as measured without one
    update_seconds=UPDATE_SECONDS,
)


def cpu(cores: int) -> Device:
    """What is assumed of a run that has so many CPU cores."""
    flops = {"fp32": 4.5e10 * cores, "bf16": 7.5e10 * cores, "fp16": 4.5e10 * cores}
    return Device(
        name=counted(cores, "CPU core"),
        kind="cpu",
        flops=flops,
        process_bytes=PROCESS_BYTES,
        start_seconds=START_SECONDS,
        update_seconds=UPDATE_SECONDS,
        threads=cores,
    )


class EarlierRuns:
    """Operations a second and memory of earlier runs, looked up from the most alike to the least."""

    def __init__(
        self,
        records: Iterable[Record],
        device: Device,
        seconds_of: Callable[[Record], float],
        *,
        shapes: Collection[tuple[object, ...]],
    ) -> None:
        self._device = device
        self._speeds: dict[tuple[object, ...], list[float]] = {}
        self._elsewhere: dict[tuple[object, ...], list[float]] = {}
        self._others: dict[str, None] = {}
        self._peaks: dict[tuple[object, ...], list[float]] = {}
        for record in records:
            alike = levels(record.run)
            if alike[-1] not in shapes:
                continue
            if record.cost.get("peak_memory_bytes"):
                self._peaks.setdefault(alike[0], []).append(record.cost["peak_memory_bytes"])
            images = Images(
                train=record.counts.get("train", 0),
                val=record.counts.get("val", 0),
                test=sum(count for split, count in record.tested.items() if split != "all"),
            )
            trained, whole = record.cost["wall_time_s"], seconds_of(record)
            timed = images if whole >= trained else replace(images, test=0)
            try:
                work = run_flops(record.run, backbone_shape(record.run.backbone), timed)
            except (UsageError, MethodError, KeyError):
                continue  # a backbone or a method that is not installed here
            if work:
                here = device.same(record)
                if not here:
                    self._others[_machine(record)] = None
                for level in alike:
                    speeds = self._speeds if here else self._elsewhere
                    speeds.setdefault(level, []).append(work / max(trained, whole))

    def seconds(self, run: Run, work: float, images: Images) -> tuple[float, str]:
        """How long ``work`` takes, and what that rests on: records of this machine, else of another, else an assumption."""
        bases = ("{} of the same shape", "{} of this method", "FLOPs at the speed of {} of this backbone")
        for speeds, where in ((self._speeds, ""), (self._elsewhere, f", made on {'; '.join(self._others)}")):
            for level, basis in zip(levels(run), bases, strict=True):
                if level in speeds:
                    seconds = work / statistics.median(speeds[level])
                    return seconds, basis.format(counted(len(speeds[level]), "record")) + where
        precision = str(run.rules.get("precision", "fp32"))
        device, speed = self._device, self._device.flops[precision]
        basis = f"FLOPs at an assumed {speed / 1e12:g} TFLOP/s ({device.name})"
        if device.start_seconds:
            basis += f", and {device.start_seconds:g} s a run, {device.update_seconds:g} s an update"
        shown = int(run.rules.get("epoch_images", 0)) or images.train
        updates = int(run.rules.get("epochs", 1)) * math.ceil(shown / int(run.rules.get("batch_size", 1)))
        return work / speed + device.start_seconds + updates * device.update_seconds, basis

    def memory(self, run: Run, shape: BackboneShape) -> tuple[float, str]:
        known = self._peaks.get(levels(run)[0])
        if known:
            return max(known), f"{counted(len(known), 'record')} of the same shape"
        blocks = float(sum(4 * block.dim**2 + 2 * block.dim * block.mlp_dim for block in shape.blocks))
        packed = _WEIGHT_BYTES[run.rules.get("quantise", "")] * blocks
        # of the binary task: the head of several classes is small beside the decoder
        decoder = decoder_parameters(run.backbone, task="binary", decoder=decoder_of(run))
        weights = packed + 4.0 * (shape.projection_taps + decoder)
        model = weights + 12.0 * trained_weights(run, shape) + activation_bytes(run, shape)
        if not self._device.process_bytes:
            return model, "closed form"
        process = f"{self._device.process_bytes / 2**30:.2f} GiB of the process, as measured once"
        return model + self._device.process_bytes, f"closed form and {process}"


def _machine(record: Record) -> str:
    """What a record was made on, in words."""
    device, threads = record.environment.get("device", "another machine"), record.environment.get("threads")
    return f"{device} with {threads} threads" if threads and device.startswith("cpu") else device


def levels(run: Run) -> tuple[tuple[object, ...], ...]:
    """Keys under which earlier runs are looked up, from what is most like ``run`` to what is least."""
    rules = run.rules
    device_shape = (model_of(run), rules.get("image_size"), rules.get("precision"), rules.get("quantise", ""))
    config = tuple(sorted((name, str(value)) for name, value in run.method_config.items()))
    batch = (rules.get("batch_size"), rules.get("activation_checkpointing"))
    return (
        ("same", run.method, config, *device_shape, *batch),
        ("method", run.method, *device_shape),
        ("any", *device_shape),
    )


def trained_weights(run: Run, shape: BackboneShape) -> float:
    config = method_config_class(run.method)(**run.method_config)
    head = trained_in_decoder(config, run.backbone, task="binary", decoder=decoder_of(run))
    return float(config.encoder_parameters(shape)) + head


_WEIGHT_BYTES = {"": 4.0, "nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Of a weight in a block's linear layers: 4 bits and a scale in fp32 for 64 of them; 8 bits, the scale of a row is nothing."""


UNFINISHED = 7
"""Times the trained tensors: two checkpoints, each with the weights and Adam's two moments, and the best state."""
FINISHED = 2
"""Times the trained tensors: the best and the last state."""
RECORD_BYTES, IMAGE_ROW_BYTES = 40_000, 150
"""Of a record, and of a row of its table of images: one an image and scored model."""


def image_cache_bytes(runs: Iterable[tuple[Run, Images]]) -> float:
    """Input images with their masks (4 bytes a pixel), once for all runs that see the same ones.

    Masks at their own size, which scoring keeps as well, are not in it: nothing tells their size before they are read.
    """
    caches = {}
    for run, images in runs:
        if run.rules.get("cache_images"):
            size = int(run.rules["image_size"])
            caches[run.benchmark, run.manifest, size] = 4.0 * size**2 * (images.train + images.val + images.test)
    return min(sum(caches.values()), CACHE_BYTES)


def embedding_cache_bytes(runs: Iterable[tuple[Run, Images, BackboneShape]]) -> float:
    """Training images as a frozen encoder gives them, plain and flipped, once for all runs with one encoder."""
    caches = {}
    for run, images, shape in runs:
        if encodes_once(run):
            side = int(run.rules["image_size"]) // shape.embedding_patch
            encoder = (run.backbone, run.checkpoint or run.seed, run.rules.get("precision"), side)
            needed = 2.0 * images.train * 4 * side**2 * shape.embedding_channels
            caches[(*encoder, run.benchmark, run.manifest)] = needed if needed <= CACHE_BYTES else 0.0
    return sum(caches.values())


def token_cache_bytes(runs: Iterable[tuple[Run, Images, BackboneShape]]) -> float:
    """Training images as the blocks in front of the first trained one leave them (`harness.training.prefix`), plain and
    flipped, once for all runs that leave the same blocks alone. They are kept on a CPU only."""
    caches = {}
    for run, images, shape in runs:
        blocks = kept_blocks(config_of(run), shape)
        if run.rules.get("cache_prefix") and blocks is not None:
            side = int(run.rules["image_size"]) // shape.patch
            encoder = (run.backbone, run.checkpoint or run.seed, run.rules.get("precision"), side, blocks)
            last = shape.blocks[max(blocks - 1, 0)]  # the stem leaves the map of the first
            needed = 2.0 * images.train * 4 * ((side * last.scale) ** 2 + shape.prefix_tokens) * last.dim
            caches[(*encoder, run.benchmark, run.manifest)] = needed if needed <= TOKEN_BYTES else 0.0
    return sum(caches.values())


def kept_blocks(config: MethodConfig, shape: BackboneShape) -> int | None:
    """How many blocks are in front of the tokens that runs of a method keep; None where they keep none."""
    blocks = config.untouched_blocks(shape)
    # Embedding an image sets the rotations of every block.
    rotates = not shape.stem and (shape.pre_norm or shape.learnt_positions == 0)
    return blocks if blocks is not None and worth_keeping(shape, blocks) and not rotates else None


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """What one run will cost.

    Args:
        hours: device-hours, as on one device.
        peak_memory_bytes: during training.
        disk_bytes: what it holds while it is unfinished, such as after an interruption.
        kept_bytes: what it leaves behind once it is finished.
        time_basis, memory_basis: what the numbers rest on.
    """

    run: Run
    hours: float
    peak_memory_bytes: float
    disk_bytes: float
    kept_bytes: float
    time_basis: str
    memory_basis: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a plan will cost; ``finish`` is None without a start, or beyond the year 9999. Caches are shared by runs."""

    runs: tuple[RunForecast, ...]
    parallel: int
    finish: datetime | None
    image_cache_bytes: float
    embedding_cache_bytes: float
    token_cache_bytes: float

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)

    @property
    def disk_bytes(self) -> float:
        return sum(run.disk_bytes for run in self.runs)

    def by_method(self) -> dict[tuple[str, str], list[RunForecast]]:
        """(variant, backbone with its decoder) -> its runs, in the order of the plan."""
        rows: dict[tuple[str, str], list[RunForecast]] = {}
        for run in self.runs:
            rows.setdefault((run.run.variant, model_of(run.run)), []).append(run)
        return rows


def forecast(
    runs: Sequence[Run],
    records: Iterable[Record],
    *,
    images_of: Callable[[Run], Images],
    seconds_of: Callable[[Record], float],
    device: Device = GPU,
    parallel: int = 1,
    devices_of: Callable[[Run], int] = lambda run: 1,
    start: datetime | None = None,
) -> Forecast:
    """Price the runs.

    Args:
        records: earlier records, any; those of failed runs are ignored.
        images_of: run -> images of its splits, before the protocol's limits.
        seconds_of: record -> device-seconds of all its starts, the test included; 0 where nothing tells. Its own
            ``wall_time_s`` ends with training.
        device: where the runs will run; its assumed speed counts where no record tells of that kind of device.
        parallel: runs at the same time, for the finish date, as is ``devices_of``: run -> devices that it has together.
    """
    earlier = [record for record in records if record.code == "OK" and record.cost.get("wall_time_s")]
    alike = [record for record in earlier if device.made(record)]
    known = EarlierRuns(alike, device, seconds_of, shapes={levels(run)[-1] for run in runs})
    priced: list[RunForecast] = []
    sizes: list[tuple[Run, Images, BackboneShape]] = []
    alone: dict[tuple[object, ...], RunForecast] = {}
    for run in runs:
        shape = backbone_shape(run.backbone)
        images = limited(images_of(run), run.rules)
        sizes.append((run, images, shape))
        # Seeds of one plan hold the same options and rules, the very objects, and cost the same.
        place = (run.method, id(run.method_config), run.benchmark, run.backbone, id(run.rules), images)
        if place not in alone:
            alone[place] = _priced(run, shape, images, known)
        priced.append(replace(alone[place], run=run))
    finish = None
    if start is not None:
        with suppress(OverflowError):  # beyond the calendar
            finish = start + timedelta(hours=_makespan([run.hours / devices_of(run.run) for run in priced], parallel))
    return Forecast(
        runs=tuple(priced),
        parallel=parallel,
        finish=finish,
        image_cache_bytes=image_cache_bytes((run, images) for run, images, _ in sizes),
        embedding_cache_bytes=embedding_cache_bytes(sizes),
        token_cache_bytes=token_cache_bytes(sizes) if device.kind == "cpu" else 0.0,
    )


def _priced(run: Run, shape: BackboneShape, images: Images, known: EarlierRuns) -> RunForecast:
    scored = images.val + images.test * (2 + len(run.rules.get("merge", ())))
    states, results = 4.0 * trained_weights(run, shape), RECORD_BYTES + IMAGE_ROW_BYTES * scored
    seconds, time_basis = known.seconds(run, run_flops(run, shape, images), images)
    memory, memory_basis = known.memory(run, shape)
    return RunForecast(
        run=run,
        hours=seconds / 3600,
        peak_memory_bytes=memory,
        disk_bytes=UNFINISHED * states + results,
        kept_bytes=FINISHED * states + results,
        time_basis=time_basis,
        memory_basis=memory_basis,
    )


def within_budget(prices: Forecast, hours: float) -> tuple[RunForecast, ...]:
    """The runs that fit into ``hours`` device-hours, in the order of the plan.

    Whole comparisons first: all methods on one benchmark under one seed stand or fall together, low seeds before high
    ones, cheap benchmarks before dear ones. Where not even one comparison fits, single runs, cheapest first.

    Raises:
        UsageError: the budget is not above zero.
    """
    if not hours > 0:
        raise UsageError(f"--budget {hours:g}: give device-hours above zero")
    groups: dict[tuple[int, str, str], list[RunForecast]] = {}
    for priced in prices.runs:
        groups.setdefault((priced.run.seed, priced.run.benchmark, priced.run.backbone), []).append(priced)
    order = sorted(groups, key=lambda group: (group[0], sum(priced.hours for priced in groups[group]), group))
    chosen = _fitting([groups[key] for key in order], hours)
    if not chosen:
        singles = sorted(prices.runs, key=lambda priced: (priced.hours, priced.run.seed, priced.run.key))
        chosen = _fitting([[priced] for priced in singles], hours)
    keys = {priced.run.key for priced in chosen}
    return tuple(priced for priced in prices.runs if priced.run.key in keys)


def _fitting(groups: Iterable[list[RunForecast]], hours: float) -> list[RunForecast]:
    chosen: list[RunForecast] = []
    left = hours
    for group in groups:
        price = sum(priced.hours for priced in group)
        if price <= left:
            chosen += group
            left -= price
    return chosen


def _makespan(hours: Sequence[float], parallel: int) -> float:
    """Hours until all runs are done on ``parallel`` devices: the longest first, each onto the device that is free first."""
    loads = [0.0] * max(1, parallel)
    for duration in sorted(hours, reverse=True):
        loads[loads.index(min(loads))] += duration
    return max(loads)


def published_images(benchmark: str) -> Images:
    """How many images a benchmark has by the sizes that it states: nine tenths of an unsplit one train; a tenth of train validates."""
    sizes = dict(BENCHMARKS.get(benchmark).published_sizes)
    train = sizes.get("train", round(0.9 * sizes.get("all", 1000)))
    test = sizes.get("test", sizes.get("all", 1000) - train)
    val = sizes.get("val", round(0.1 * train))
    return Images(train=train if "val" in sizes else train - val, val=val, test=test)
