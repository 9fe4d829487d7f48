"""A plan's price where it would run, and what of the plan a budget buys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from harness.archive.schema import Record, Run, seconds_of
from harness.archive.store import RecordStore
from harness.dispatch.attempts import attempts, state_folder
from harness.dispatch.place import Place, gpu_name
from harness.models.catalog import backbone_shape
from harness.planning.data import Images
from harness.planning.job import Job
from harness.planning.needs import SMALL
from harness.planning.plan import Plan
from harness.pricing.assumed import GPU, Device, cpu
from harness.pricing.forecast import Forecast, forecast, published_images, within_budget
from harness.system.errors import BudgetError
from harness.system.machine import cores, processor


def device(planned: Plan, where: Place) -> tuple[Device, int]:
    """What one run has there, and how many run at the same time."""
    if where.profile is not None:
        shapes = [where.profile.shape(name) for name in dict.fromkeys(job.run.backbone for job in planned.jobs)]
        gpus = any(shape.gpus for shape in shapes)
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
    """What is not finished of the plan, priced from the records below ``results`` where they tell."""
    one, parallel = device(planned, where)

    def images_of(run: Run) -> Images:
        return planned.images.get(run.benchmark) or published_images(run.benchmark)

    def taken(record: Record) -> float:
        seconds, whole = seconds_of(record.cost)
        starts = 3600 * sum(start.hours for start in attempts(state_folder(results, record.key)))
        return starts or (seconds if whole else 0.0)  # what lies beside records is not in every archive

    return forecast(
        [job.run for job in planned.pending],
        RecordStore(results).summaries()[0],
        backbone_shape,
        images_of=images_of,
        seconds_of=taken,
        device=one,
        parallel=parallel,
        start=datetime.now(),
    )


def affordable(planned: Plan, prices: Forecast, *, hours: float) -> tuple[Plan, str]:
    """The plan without the runs that do not fit into ``hours`` device-hours, and a line that says what is left out.

    Raises:
        BudgetError: not one run fits.
        UsageError: the budget is not above zero.
    """
    chosen = within_budget(prices, hours)
    if prices.runs and not chosen:
        cheapest = min(one.hours for one in prices.runs)
        raise BudgetError(
            f"--budget {hours:g}: none of {len(prices.runs)} runs fits, the cheapest takes {cheapest:.2g} hours;"
            " --plan shows the prices"
        )
    keys = {one.run.key for one in chosen}
    left_out = {one.run.key: run_in_words(one.run) for one in prices.runs if one.run.key not in keys}
    kept = tuple(job for job in planned.jobs if job.run.key not in left_out)
    failed = {key: code for key, code in planned.failed.items() if key not in left_out}
    text = f"--budget: {len(chosen)} of {len(prices.runs)} runs fit into {hours:g} hours"
    if left_out:
        names = list(left_out.values())
        more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
        text += f"; left out: {'; '.join(names[:3])}{more}"
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
    return planned, prices, {one.run.key: one.hours for one in chosen}


def run_in_words(run: Run) -> str:
    """A run in words."""
    return f"{run.variant} · {run.backbone} · {run.benchmark} · seed {run.seed}"
