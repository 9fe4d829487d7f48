"""Checks whether a machine's GPU is fit for runs, in parts that are each *right* or *not right*: `sam-peft doctor --device cuda --accept`.

The results of a part stay in a file, so that the same command continues after an interruption. A part is a function of the machine and of a
dictionary that it fills with what it measures; it yields a line for each thing that is not right.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.archive.schema import Record, Run
from harness.contract.gpu import LIMITS, examine_gpu, facts, steps_of
from harness.costing.instruments import busy_share, first_wait
from harness.costing.measure import build_subject, measure
from harness.costing.session import Session, release
from harness.datasets.base import DatasetError
from harness.datasets.samples import write_samples
from harness.dispatch.run_jobs import LocalExecutor, make_executor
from harness.dispatch.run_states import RUNNING, RunState
from harness.dispatch.sweeps import code_digest, contents_of_command
from harness.dispatch.target import target_of
from harness.experiment.building import first_images, open_data
from harness.experiment.environment import Stopwatch, one_line
from harness.experiment.experiment import run_experiment
from harness.experiment.exporting import export
from harness.experiment.scoring import Scoring
from harness.experiment.trained import of_results
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoders import DECODERS
from harness.models.segmenter import probabilities
from harness.planning.plan import configured, find, plan
from harness.planning.request import Job, PlannedRow, Request
from harness.planning.work import training_bytes
from harness.pricing import gpu, step_seconds
from harness.protocols.load import from_rules, load_protocol
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, device_fault
from harness.system.files import write_atomically
from harness.training.feeding import normalise
from harness.training.outcome import Interrupted, StopRequest

ROWS: Mapping[str, dict[str, Any]] = {
    "lora": {}, "naslora": {"search_start_epoch": 0}, "convlora": {}, "full": {}, "decoder": {},
}  # fmt: skip
"""The methods whose steps are measured, with options; NAS-LoRA's cell searches from the first step."""
WAITS = ("convlora",)
"""Those of them whose steps wait for the GPU by design (docs/gpu.md)."""
SHORT_RUN: Mapping[str, Any] = {
    "precision": "bf16", "epochs": 2, "epoch_images": 16, "batch_size": 4, "val_limit": 4, "test_limit": 4, "keep_masks": 0,
    "cache_embeddings": False,
}  # fmt: skip
"""Options of every run: two epochs of four steps."""
FED: Mapping[str, Any] = {"epoch_images": 160, "val_limit": 40, "test_limit": 1}
"""Options of runs whose images are fed to the GPU while it is watched."""
_QUEUED: Mapping[str, Any] = {"epochs": 200, "select_every": 10}
"""Options of runs in a queue: minutes of training."""
ROUNDS = 5
STOPPED_AFTER = 6
"""Steps after which a run is stopped: in the middle of its second epoch."""
LEAST_BUSY = 0.9
OFF_TIME, OFF_MEMORY, OFF_SCORE = 0.25, 0.1, 1e-3
"""Largest relative deviations of a step's seconds and peak from the plan, and absolute one of scores and probabilities across devices."""

Measured = dict[str, Any]
"""The measurements of a part."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine to accept, and what the parts need.

    Args:
        backbones: those whose steps are measured; most runs train the first.
        methods: those examined on a tiny SAM.
        data: a folder of benchmarks, whose images are fed to the GPU; None for generated ones.
        results, shared: folders of the runs here, and of those on ``cluster``, the name of a profile, or empty for none.
        report: is called with what is being done.
    """

    device: torch.device
    backbones: Sequence[str]
    methods: Sequence[str]
    data: Path | None
    results: Path
    shared: Path
    cluster: str
    report: Callable[[str], None]

    def job(
        self, method: str = "lora", *, backbone: str = "", task: str = "binary", data: Path | None = None, **rules: Any
    ) -> Job:
        """A run of a method of `ROWS` from random weights, on a benchmark below ``data`` or on generated images."""
        backbone = backbone or self.backbones[0]
        size = backbone_shape(backbone).image_size
        benchmark = benchmark_below(data, task)
        if data is None:
            data = self.results / "samples"
            write_samples(benchmark, data, size=size)
        request = Request(
            rows=(PlannedRow(method=method, options=ROWS[method]),),
            benchmarks=(benchmark,),
            protocol=load_protocol("demo", {"image_size": size, "data": "files", **SHORT_RUN, **rules}),
            backbones=(backbone,),
            checkpoints={"": Path("none")},
            data_root=data,
            results=self.results,
        )
        (job,) = plan(request, find(request)).jobs
        return job


def benchmark_below(data: Path | None, task: str = "binary") -> str:
    """The benchmark of a task with the most classes, of those in a folder if one is given. Raises UsageError: there is none."""
    kinds = {name: BENCHMARKS.get(name) for name in BENCHMARKS.names() if BENCHMARKS.get(name).task == task}
    for name in sorted(kinds, key=lambda name: -kinds[name].num_classes):
        with suppress(DatasetError):
            if data is not None:
                kinds[name]().locate(data)
            return name
    raise UsageError(
        f"--data {data}: there is no benchmark of a {task} task; sam-peft data list says where to get each"
    )


def accept(machine: Machine, out: Path, *, every_part: bool = True) -> Iterator[tuple[str, bool]]:
    """Run the parts, or only the first, that the file ``out`` does not hold yet for this machine and this code. Yields a line for each
    part and whether it is right."""
    identity = {
        "machine": {"host": platform.node(), **facts(machine.device)},
        "code": code_digest(contents_of_command()),
        "asked": [[*machine.backbones], [*machine.methods], str(machine.data or "")],
    }
    held = dict[str, Any]()
    parts = {number: part for number, part in ACCEPTANCE_PARTS.items() if every_part or number == "1"}
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(out.read_text(encoding="utf-8"))
        if {name: content[name] for name in identity} == identity:
            held = dict(content["parts"])
    if machine.cluster:
        parts[f"8 ({machine.cluster})"] = ("two runs through the queue, one of them requeued", queued)
    for number, (title, part) in parts.items():
        if number not in held:
            machine.report(f"{number}. {title}")
            begun, found, wrong = time.monotonic(), Measured(), list[str]()
            try:
                wrong.extend(part(machine, found))
            except Exception as error:  # the other parts run all the same
                if device_fault(error):
                    yield f"{number}. {title}: not right: {one_line(error)}; the same command continues here", False
                    return
                wrong.append(one_line(error))
            release()
            seconds = round(time.monotonic() - begun, 1)
            held[number] = {"title": title, "wrong": wrong, "seconds": seconds, "found": found}
            write_atomically(out, json.dumps({**identity, "parts": held}, indent=1, default=str) + "\n")
        wrong = held[number]["wrong"]
        yield f"{number}. {title}: {'not right: ' + '; '.join(wrong) if wrong else 'right'}", not wrong


def examined(machine: Machine, found: Measured) -> Iterator[str]:
    """Every method and every tuner of peft in every precision, attention and rates; and LoRA under every decoder."""
    found.update(examine_gpu(backbone=machine.backbones[0], methods=machine.methods, report=machine.report))
    yield from found["failures"]
    for decoder in DECODERS[1:]:
        steps = steps_of("lora", machine.device, backbone="tiny_timm", decoder=decoder)
        yield from (f"lora under {decoder}, {step.where}: {step.text}" for step in steps if not step.right)


def as_planned(machine: Machine, found: Measured) -> Iterator[str]:
    """Seconds and allocated peak memory of steps, against those that a plan states; and whether the allocator follows its settings."""
    speed = gpu(torch.cuda.get_device_name(machine.device))
    for backbone, method in itertools.product(machine.backbones, ROWS):
        name = f"{method} on {backbone}"
        machine.report(f"steps of {name}")
        session, run = _session(machine, method, backbone=backbone)
        try:
            (cost,) = measure(session).methods
        except UsageError as error:  # out of memory, for example
            yield f"{name}: {error}"
            continue
        planned = (step_seconds(run, speed), training_bytes(run, session.attention))
        measured = (statistics.median(cost.step_seconds["total"]), float(cost.memory_bytes["allocated"]))
        found[name] = {"planned": planned, "measured": measured}
        for unit, plans, seen, off in zip(("seconds", "bytes"), planned, measured, (OFF_TIME, OFF_MEMORY), strict=True):
            if abs(seen / plans - 1) > off:
                yield f"{name}: {seen:.3g} {unit} per step, planned {plans:.3g}"
        release()
    settings = " ".join(os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    found["allocator"] = torch.cuda.memory._snapshot().get("allocator_settings", {})
    if "expandable_segments:True" in settings and not found["allocator"].get("expandable_segments"):
        yield f"the allocator does not follow {settings.strip()}"


def free_of_waits(machine: Machine, found: Measured) -> Iterator[str]:
    """No step but those of `WAITS` makes the processor wait for the GPU. The first of each kind, which makes kernels and moments, may."""
    for method in ROWS:
        session, _ = _session(machine, method)
        subject = build_subject(session.rows[0], session)
        subject.clock = time.perf_counter  # one without the waits of the session's own
        with closing(subject):
            for kind in subject.shares():
                subject.step(kind)
                if line := first_wait(machine.device, partial(subject.step, kind)):
                    found[method] = line
        if method in found and method not in WAITS:
            yield f"a step of {method} waits at {found[method]}"


def _session(machine: Machine, method: str, **changes: Any) -> tuple[Session, Run]:
    """A session of one method, and the run that a plan would price; ``changes`` as `Machine.job` takes them."""
    run = machine.job(method, **changes).run
    rules = from_rules(run.rules)
    row = configured(PlannedRow(method=method, options=ROWS[method]), rules)
    fields: Any = {"rows": (row,), "backbone": run.backbone, "checkpoint": None, "rounds": ROUNDS}
    return Session(protocol=rules, device=machine.device, **fields), run


def kept_busy(machine: Machine, found: Measured) -> Iterator[str]:
    """The share of the time in which the GPU computes: in LoRA's training, and in evaluation with one class and with several."""
    for task in ("binary", "multiclass"):
        data, shares = machine.data, dict[str, float]()
        try:
            benchmark_below(data, task)
        except UsageError:  # only benchmarks of other tasks are there
            data = None
        job, watch = machine.job(task=task, data=data, **FED), _watch(shares)
        next(watch)
        record = run_experiment(job, progress=watch.send)
        if record.code not in ("OK", "BLANK"):  # a start from random weights may see nothing in photographs
            _right(record)
        found[task] = {"benchmark": job.run.benchmark, "data": str(data or "generated"), **shares}
        if shares["training"] < LEAST_BUSY:
            yield f"the GPU is busy for {shares['training']:.0%} of training on {job.run.benchmark}"


def _watch(shares: dict[str, float]) -> Generator[None, Mapping[str, Any], None]:
    """Is sent what a run reports, and puts into ``shares`` the share of the time in which the GPU computed, in ``training`` and in
    ``evaluation`` of the run's second epoch."""
    while (content := (yield)).get("epoch") != 2 or content.get("kind") != "step":
        pass
    for doing, end in (("training", "validation"), ("evaluation", "epoch")):
        with busy_share(shares, doing):
            while (content := (yield)).get("kind", content["stage"]) != end:
                pass
    while True:
        yield


def requeued(machine: Machine, found: Measured) -> Iterator[str]:
    """A run that gets the signal of a requeue in the middle of an epoch and is started again, against one that is left alone."""
    for precision in ("bf16", "fp16"):
        job = machine.job(precision=precision)
        whole = _right(run_experiment(replace(job, results=f"{job.results}/left-alone")))
        if not _interrupted(job):
            yield f"{precision}: the run ended before it got the signal"
        losses = [[entry["loss"] for entry in record.history] for record in (whole, _right(run_experiment(job)))]
        off = max(abs(x - y) / max(abs(x), 1e-12) for x, y in zip(*losses, strict=True))
        found[precision] = {"losses": losses, "deviation": off}
        if not off <= LIMITS[precision][0]:
            yield f"{precision}: losses after the requeue deviate by {off:.1e}"


def _right(record: Record) -> Record:
    """The record of a run that did not fail. Raises RuntimeError: it failed."""
    if record.code != "OK":
        raise RuntimeError(f"a run of {record.run.label} ended as {record.code}: {record.message}")
    return record


def _interrupted(job: Job) -> bool:
    """Whether a run stops at the signal that a job gets before its time is up."""
    stop, steps = StopRequest(), itertools.count(1)

    def report(content: Mapping[str, Any]) -> None:
        if content.get("kind") == "step" and next(steps) == STOPPED_AFTER:
            signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, lambda *_: stop.request())
    try:
        run_experiment(job, progress=report, stop=stop)
    except Interrupted:
        return True
    finally:
        signal.signal(signal.SIGUSR2, before)
    return False


def beyond_memory(machine: Machine, found: Measured) -> Iterator[str]:
    """A run that asks for more memory than there is, and then one that does not: the first must give all of its memory back."""
    total, images = torch.cuda.get_device_properties(machine.device).total_memory, SHORT_RUN["batch_size"]
    planned = 0.0
    while planned < 1.2 * total:
        images *= 2
        asked = {"backbone": machine.backbones[-1], "epochs": 1, "epoch_images": images, "batch_size": images}
        planned = training_bytes(machine.job(**asked).run)
    failed = run_experiment(machine.job(**asked))
    release()
    found |= {"images": images, "code": failed.code, "advice": failed.message}
    if failed.code != "OOM":
        yield f"a batch of {images} images should not fit into memory, but ended as {failed.code}: {failed.message}"
        return
    fewer = run_experiment(machine.job(**{**asked, "batch_size": SHORT_RUN["batch_size"]}))
    if fewer.code != "OK":
        yield f"after it, a batch of {SHORT_RUN['batch_size']} images ends as {fewer.code}: {fewer.message}"


def on_the_processor(machine: Machine, found: Measured) -> Iterator[str]:
    """One trained model on the GPU and on the processor: its scores; its probabilities, and those of its merged and exported forms."""
    job, processor = machine.job(precision="fp32"), torch.device("cpu")
    run, rules, record = job.run, from_rules(job.run.rules), _right(run_experiment(job))
    trained, data = of_results(Path(job.results), run.key), open_data(run, Path(job.dataset_root))
    unmerged, (split, source) = trained.segmenter(None)[0], next(iter(data.tests.items()))
    scoring = Scoring(data, rules, device=processor, stages=Stopwatch(), report=lambda _: None, run=run)
    there, here = record.scores["best"][split], scoring.test(unmerged, model="unmerged")[0][split]
    found |= {f"score {name}": abs(value - here[name]) for name, value in there.items() if not math.isnan(value)}
    file = Path(job.results) / "exported.pth"
    _, merged, _ = export(trained, out=file)
    exported = build_segmenter(run.backbone, task="binary", image_size=rules.image_size, checkpoint=file)
    images = normalise(first_images(source, SHORT_RUN["batch_size"]), rules.pixels)
    expected = _probabilities(unmerged, images, processor)
    for name, model in {"unmerged": unmerged, "merged": merged, "exported": exported}.items():
        found[name] = float((_probabilities(model, images, machine.device) - expected).abs().max())
    yield from (f"{name} differs by {by:.1e}" for name, by in found.items() if not by <= OFF_SCORE)


@torch.no_grad()
def _probabilities(model: Any, images: Tensor, device: torch.device) -> Tensor:
    """(B, S, S), on the CPU."""
    height, width = images.shape[-2:]
    return probabilities(model.to(device).eval()(images.to(device)), (height, width)).cpu()


def queued(machine: Machine, found: Measured) -> Iterator[str]:
    """Two runs through a cluster's queue; the first that trains is requeued."""
    shared = replace(machine, results=machine.shared.absolute() / time.strftime("%Y%m%d-%H%M%S"))
    executor, again = make_executor(target_of(cluster=machine.cluster), results=shared.results), list[str]()
    assert not isinstance(executor, LocalExecutor)
    executor.submit([shared.job(method, **_QUEUED) for method in ("lora", "decoder")])

    def requeue(runs: Mapping[str, RunState]) -> None:
        training = [run for run in runs.values() if run.state == RUNNING and run.task and run.done]
        if training and not again:
            again.append(training[0].key)
            executor.slurm.ask(["scontrol", "requeue", training[0].task])

    for key, run in executor.wait(on_change=requeue).items():
        found[key] = {"state": run.state, "attempts": run.attempts}
        if run.state != "OK":
            yield f"run {key} ended as {run.state}: {run.message}"
    if not any(found[key]["attempts"] > 1 for key in again):
        yield "no run was started again after a requeue"


AcceptancePart = Callable[[Machine, Measured], Iterator[str]]
ACCEPTANCE_PARTS: Mapping[str, tuple[str, AcceptancePart]] = {
    "1": ("a step of every method, attention, rates", examined),
    "2": ("steps as fast and as large as planned", as_planned),
    "3": ("no step waits for the GPU", free_of_waits),
    "4": ("the GPU is kept busy", kept_busy),
    "5": ("a requeue in the middle of an epoch", requeued),
    "6": ("a run beyond the memory", beyond_memory),
    "7": ("the same scores on the processor", on_the_processor),
}
