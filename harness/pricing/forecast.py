"""What a plan will cost before it starts: hours, memory, disk, finish date, and what a budget buys.

Time scales with closed-form work. How fast the device does it comes from earlier records, the most alike first, and
only without any from an assumed speed; every line says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from harness.archive.schema import Record, Run
from harness.methods.parts.placement import BackboneShape
from harness.planning.data import Images, limited
from harness.pricing.assumed import GPU, Device
from harness.pricing.disk import (
    FINISHED,
    UNFINISHED,
    embedding_cache_bytes,
    image_cache_bytes,
    result_bytes,
    token_cache_bytes,
)
from harness.pricing.earlier_runs import EarlierRuns, SecondsOf, ShapeOf, levels, trained_weights
from harness.pricing.flops import model_of, run_flops
from harness.system.errors import UsageError

ImagesOf = Callable[[Run], Images]


@dataclass(frozen=True, kw_only=True)
class RunForecast:
    """Of one run.

    Args:
        run: the run.
        hours: on one device.
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
    """Of a plan; ``finish`` is None without a start, or beyond the year 9999. Runs share the caches, so these are no run's own."""

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
        found: dict[tuple[str, str], list[RunForecast]] = {}
        for run in self.runs:
            found.setdefault((run.run.variant, model_of(run.run)), []).append(run)
        return found


def forecast(
    runs: Sequence[Run],
    records: Iterable[Record],
    shape_of: ShapeOf,
    *,
    images_of: ImagesOf,
    seconds_of: SecondsOf = lambda record: 0.0,
    device: Device = GPU,
    parallel: int = 1,
    start: datetime | None = None,
) -> Forecast:
    """Price the runs.

    Args:
        runs: what is to be run.
        records: earlier records, any; those of failed runs are ignored.
        shape_of: backbone name -> its numbers.
        images_of: run -> images of its splits, before the protocol's limits.
        seconds_of: record -> seconds of all its starts, the test included; 0 where nothing tells. Its own
            ``wall_time_s`` ends with training.
        device: where the runs will run; its assumed speed counts where no record tells of that kind of device.
        parallel: runs at the same time, for the finish date.
        start: when the first run starts.
    """
    earlier = [record for record in records if record.code == "OK" and record.cost.get("wall_time_s")]
    alike = [record for record in earlier if device.made(record)]
    known = EarlierRuns(alike, shape_of, device, seconds_of, shapes={levels(run)[-1] for run in runs})
    priced = []
    sizes = []
    alone: dict[tuple[object, ...], RunForecast] = {}
    for run in runs:
        shape = shape_of(run.backbone)
        images = limited(images_of(run), run.rules)
        sizes.append((run, images, shape))
        # Seeds of one plan hold the same options and rules, the very objects, and cost the same.
        place = (run.method, id(run.method_config), run.benchmark, run.backbone, id(run.rules), images)
        if place not in alone:
            alone[place] = _priced(run, shape, images, known)
        priced.append(replace(alone[place], run=run))
    finish = None if start is None else _after(start, _makespan([run.hours for run in priced], parallel))
    return Forecast(
        runs=tuple(priced),
        parallel=parallel,
        finish=finish,
        image_cache_bytes=image_cache_bytes((run, images) for run, images, _ in sizes),
        embedding_cache_bytes=embedding_cache_bytes(sizes),
        token_cache_bytes=token_cache_bytes(sizes) if device.kind == "cpu" else 0.0,
    )


def _priced(run: Run, shape: BackboneShape, images: Images, known: EarlierRuns) -> RunForecast:
    states, results = 4.0 * trained_weights(run, shape), result_bytes(run, images)
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
    order = sorted(groups, key=lambda group: (group[0], sum(one.hours for one in groups[group]), group))
    chosen = _fitting([groups[key] for key in order], hours)
    if not chosen:
        singles = sorted(prices.runs, key=lambda one: (one.hours, one.run.seed, one.run.key))
        chosen = _fitting([[one] for one in singles], hours)
    keys = {priced.run.key for priced in chosen}
    return tuple(priced for priced in prices.runs if priced.run.key in keys)


def _fitting(groups: Iterable[list[RunForecast]], hours: float) -> list[RunForecast]:
    chosen: list[RunForecast] = []
    left = hours
    for group in groups:
        price = sum(one.hours for one in group)
        if price <= left:
            chosen += group
            left -= price
    return chosen


def _after(start: datetime, hours: float) -> datetime | None:
    """None beyond the calendar."""
    try:
        return start + timedelta(hours=hours)
    except OverflowError:
        return None


def _makespan(hours: Sequence[float], parallel: int) -> float:
    """Longest first onto whichever device is free first."""
    loads = [0.0] * max(1, parallel)
    for one in sorted(hours, reverse=True):
        loads[loads.index(min(loads))] += one
    return max(loads)


def published_images(benchmark: str) -> Images:
    """From the sizes that a benchmark states: nine tenths of an unsplit one train; a tenth of train validates."""
    from harness.registry import BENCHMARKS

    sizes = dict(BENCHMARKS.get(benchmark).published_sizes)
    train = sizes.get("train", round(0.9 * sizes.get("all", 1000)))
    test = sizes.get("test", sizes.get("all", 1000) - train)
    val = sizes.get("val", round(0.1 * train))
    return Images(train=train if "val" in sizes else train - val, val=val, test=test)
