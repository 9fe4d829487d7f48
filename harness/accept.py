"""Whether a machine's GPU is fit for runs, in parts that are each *right* or *not right*: `sam-peft doctor --device cuda --accept`.

What a part found stays in a file, so that the same command goes on after an interruption. A part is a function that returns what it
measured, and a line for each thing that is not right.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from harness.archive.schema import Record, Run, content_hash
from harness.contract.gpu import LIMITS, examine_gpu, facts, steps_of
from harness.costing.instruments import busy_seconds, kernels, without_waits
from harness.costing.measure import build_subject, measure
from harness.costing.session import Session, release
from harness.datasets.base import DatasetError
from harness.datasets.samples import write_samples
from harness.dispatch.run_jobs import LocalExecutor, make_executor
from harness.dispatch.run_states import RUNNING, RunState
from harness.dispatch.sweeps import contents_of_command
from harness.dispatch.target import target_of
from harness.experiment.building import first_images, open_data
from harness.experiment.environment import Stages, one_line
from harness.experiment.experiment import run_experiment
from harness.experiment.exporting import export
from harness.experiment.scoring import Scoring
from harness.experiment.trained import of_results
from harness.models.attention_choice import choose
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoders import DECODERS
from harness.models.segmenter import probabilities
from harness.planning.memory import ROOM, less_memory, training_bytes
from harness.planning.plan import plan
from harness.planning.request import Job, PlannedRow, Request, configured
from harness.pricing import gpu, step_seconds
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, device_fault
from harness.system.files import write_atomically
from harness.training.feeding import normalise
from harness.training.outcome import Interrupted, StopRequest

ROWS: Mapping[str, dict[str, Any]] = {
    "lora": {}, "naslora": {"search_start_epoch": 0}, "convlora": {}, "full": {}, "decoder": {},
}  # fmt: skip
"""The methods whose steps are measured, with options; a cell searches from the first step."""
WAITS = ("convlora",)
"""Of these, those whose steps wait for the GPU by design (docs/gpu.md)."""
RULES: Mapping[str, Any] = {
    "precision": "bf16", "epochs": 2, "epoch_images": 16, "batch_size": 4, "val_limit": 4, "test_limit": 4, "keep_masks": 0,
    "cache_embeddings": False,
}  # fmt: skip
"""Of every run: two epochs of four steps."""
FED: Mapping[str, Any] = {"epoch_images": 160, "val_limit": 40, "test_limit": 1}
"""Of runs whose images are fed to the GPU while it is watched."""
QUEUED: Mapping[str, Any] = {"epochs": 200, "select_every": 10}
"""Of runs in a queue: minutes of training."""
ROUNDS = 5
STOPPED_AFTER = 6
"""Steps, in the middle of the second epoch."""
LEAST_BUSY = 0.9
OFF_TIME, OFF_MEMORY, OFF_SCORE = 0.25, 0.1, 1e-3
"""How far a step's seconds and its peak may be from the plan's, relative; and scores and probabilities from the processor's."""

Findings = tuple[dict[str, Any], list[str]]
"""What a part measured, and what is not right."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is accepted, and with what.

    Args:
        backbones: whose steps are measured; runs train the first.
        methods: examined on a tiny SAM.
        data: a folder of benchmarks, whose images are fed to the GPU; None for generated ones.
        results: folder of the runs here, and in ``shared`` of those on ``cluster``, a profile's name or empty for none.
        report: called with what is done now.
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

        def samples(name: str) -> Path:
            write_samples(name, self.results / "samples", size=size)
            return self.results / "samples"

        request = Request(
            rows=(PlannedRow(method=method, options=ROWS[method]),),
            benchmarks=(benchmark_below(data, task),),
            protocol="demo",
            overrides={"image_size": size, "data": "files" if data else "sample", **RULES, **rules},
            backbones=(backbone,),
            checkpoints={"": Path("none")},
            data_root=data,
            results=self.results,
        )
        (job,) = plan(request, prepare_samples=samples).jobs
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
        f"--data {data}: no benchmark of a {task} task is there; sam-peft data list says where to get each"
    )


def accept(machine: Machine, out: Path) -> Iterator[tuple[str, bool]]:
    """Do what the file ``out`` does not hold of this machine and this code. Gives a line for each part, and whether it is right."""
    code = {name: hashlib.sha256(content).hexdigest() for name, content in contents_of_command().items()}
    identity = {
        "machine": {"host": platform.node(), **facts(machine.device)},
        "code": content_hash(code),
        "asked": [[*machine.backbones], [*machine.methods], str(machine.data or "")],
    }
    held, parts = _held(out, identity), dict(PARTS)
    if machine.cluster:
        parts[f"8 ({machine.cluster})"] = ("two runs through the queue, one of them requeued", queued)
    for number, (title, part) in parts.items():
        if number not in held:
            machine.report(f"{number}. {title}")
            begun = time.monotonic()
            try:
                found, wrong = part(machine)
            except Exception as error:  # the other parts still want their turn
                if device_fault(error):
                    yield f"{number}. {title}: not right: {one_line(error)}; the same command goes on here", False
                    return
                found, wrong = {}, [one_line(error)]
            release()
            seconds = round(time.monotonic() - begun, 1)
            held[number] = {"title": title, "wrong": wrong, "seconds": seconds, "found": found}
            write_atomically(out, json.dumps({**identity, "parts": held}, indent=1, default=str) + "\n")
        wrong = held[number]["wrong"]
        yield f"{number}. {title}: {'not right: ' + '; '.join(wrong) if wrong else 'right'}", not wrong


def _held(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The parts in the file, if they are of this identity."""
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
        same = {name: content[name] for name in identity} == identity
        return dict(content["parts"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def examined(machine: Machine) -> Findings:
    """Every method and every tuner of peft in every precision, attention and rates; and LoRA under every decoder."""
    found = examine_gpu(backbone=machine.backbones[0], methods=machine.methods, report=machine.report)
    wrong = list(found["failures"])
    for decoder in DECODERS[1:]:
        steps = steps_of("lora", machine.device, backbone="tiny_timm", decoder=decoder)
        wrong += [f"lora under {decoder}, {step.where}: {step.text}" for step in steps if not step.right]
    return found, wrong


def as_planned(machine: Machine) -> Findings:
    """Seconds and allocated peak of steps, against those that a plan states; and whether the allocator does what it was told."""
    found, wrong, speed = dict[str, Any](), list[str](), gpu(torch.cuda.get_device_name(machine.device))
    for backbone, method in itertools.product(machine.backbones, ROWS):
        machine.report(f"steps of {method} on {backbone}")
        session, run = _session(machine, method, backbone)
        try:
            (cost,) = measure(session).methods
        except UsageError as error:  # it finds no room, say
            wrong.append(f"{method} on {backbone}: {error}")
            continue
        planned = {"seconds": step_seconds(run, speed), "bytes": training_bytes(run, session.attention)}
        there = {
            "seconds": statistics.median(cost.step_seconds["total"]),
            "bytes": float(cost.memory_bytes["allocated"]),
        }
        found[f"{method} on {backbone}"] = {"planned": planned, "measured": there}
        wrong += [
            f"{method} on {backbone}: {there[name]:.3g} {name} a step, planned {planned[name]:.3g}"
            for name, off in (("seconds", OFF_TIME), ("bytes", OFF_MEMORY))
            if abs(there[name] / planned[name] - 1) > off
        ]
        release()
    told = " ".join(os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    found["allocator"] = torch.cuda.memory._snapshot().get("allocator_settings", {})
    if "expandable_segments:True" in told and not found["allocator"].get("expandable_segments"):
        wrong.append(f"the allocator does not follow {told.strip()}")
    return found, wrong


def free_of_waits(machine: Machine) -> Findings:
    """Steps of which none makes the processor wait for the GPU, but those of `WAITS`; the first of each makes kernels and moments."""
    found, wrong = dict[str, str](), list[str]()
    for method in ROWS:
        session, _ = _session(machine, method, machine.backbones[0])
        subject = build_subject(session.rows[0], session)
        subject.clock = time.perf_counter  # the session's own waits
        try:
            for kind in subject.shares():
                subject.step(kind)
                with without_waits(machine.device):
                    subject.step(kind)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            found[method] = _line_of(error)
        finally:
            subject.close()
        if method in found and method not in WAITS:
            wrong.append(f"a step of {method} waits at {found[method]}")
    return {"waits": found}, wrong


def _line_of(error: Exception) -> str:
    """The innermost line of this package in an error's traceback."""
    root, steps = Path(__file__).parent, traceback.extract_tb(error.__traceback__)
    step = [step for step in steps if Path(step.filename).is_relative_to(root)][-1]
    return f"{Path(step.filename).relative_to(root.parent)}:{step.lineno}"


def _session(machine: Machine, method: str, backbone: str) -> tuple[Session, Run]:
    """A session of one method, and the run that a plan would price."""
    run = machine.job(method, backbone=backbone).run
    rules = from_rules(run.rules)
    row = configured(PlannedRow(method=method, options=ROWS[method]), rules)
    session = Session(
        rows=(row,), backbone=backbone, checkpoint=None, protocol=rules, device=machine.device, rounds=ROUNDS
    )
    return session, run


class Busy:
    """Watches a run: ``shares`` of the time in which the GPU computed, in ``training`` and ``evaluation`` of its second epoch."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._doing, self._begun = "", 0.0
        self._profile: Any = None

    def __call__(self, content: Mapping[str, Any]) -> None:
        kind = content.get("kind", content["stage"])
        if self._doing and kind in ("validation", "epoch"):
            torch.cuda.synchronize()
            seconds = time.perf_counter() - self._begun
            self._profile.stop()
            self.shares[self._doing], self._doing = busy_seconds(kernels(self._profile)) / seconds, ""
        second = content.get("epoch") == 2
        starts = {"validation": "evaluation"} if "training" in self.shares else {"step": "training"} if second else {}
        if kind in starts and not self._doing and starts[kind] not in self.shares:
            self._doing, self._profile = starts[kind], profile(activities=[ProfilerActivity.CUDA])
            self._profile.start()
            self._begun = time.perf_counter()


def kept_busy(machine: Machine) -> Findings:
    """The share of the time in which the GPU computes: in LoRA's training, and in evaluation of one class and of several."""
    found, wrong = dict[str, Any](), list[str]()
    for task in ("binary", "multiclass"):
        data, watch = machine.data, Busy()
        try:
            benchmark_below(data, task)
        except UsageError:  # other tasks are there
            data = None
        job = machine.job(task=task, data=data, **FED)
        record = run_experiment(job, progress=watch)
        if record.code not in ("OK", "BLANK"):  # a start from random weights may see nothing in photographs
            _right(record)
        found[task] = {"benchmark": job.run.benchmark, "data": str(data or "generated"), **watch.shares}
        if watch.shares["training"] < LEAST_BUSY:
            wrong.append(f"the GPU is busy for {watch.shares['training']:.0%} of training on {job.run.benchmark}")
    return found, wrong


def requeued(machine: Machine) -> Findings:
    """A run that gets the signal of a requeue in the middle of an epoch and is started again, against one that is left alone."""
    found, wrong = dict[str, Any](), list[str]()
    for precision in ("bf16", "fp16"):
        job = machine.job(precision=precision)
        whole = _right(run_experiment(replace(job, results=f"{job.results}/left-alone")))
        if not _interrupted(job):
            wrong.append(f"{precision}: the run ended before it got the signal")
        resumed = _right(run_experiment(job))
        losses = [[entry["loss"] for entry in record.history] for record in (whole, resumed)]
        off = max(abs(x - y) / max(abs(x), 1e-12) for x, y in zip(*losses, strict=True))
        found[precision] = {"losses": losses, "deviation": off}
        if not off <= LIMITS[precision][0]:
            wrong.append(f"{precision}: losses after the requeue deviate by {off:.1e}")
    return found, wrong


def _right(record: Record) -> Record:
    """Raises RuntimeError: the run failed."""
    if record.code != "OK":
        raise RuntimeError(f"a run of {record.run.label} ended as {record.code}: {record.message}")
    return record


def _interrupted(job: Job) -> bool:
    """Whether a run stops at the signal that a job gets before its time is up."""
    stop, steps = StopRequest(), 0

    def report(content: Mapping[str, Any]) -> None:
        nonlocal steps
        steps += content.get("kind") == "step"
        if steps == STOPPED_AFTER and not stop.requested:
            signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, lambda *_: stop.request())
    try:
        run_experiment(job, progress=report, stop=stop)
    except Interrupted:
        return True
    finally:
        signal.signal(signal.SIGUSR2, before)
    return False


def out_of_memory(machine: Machine) -> Findings:
    """A run that asks for more memory than there is; then one with each of the settings that its advice says to fit."""
    backbone, total = machine.backbones[-1], torch.cuda.get_device_properties(machine.device).total_memory

    def job(images: int, **rules: Any) -> Job:
        return machine.job(backbone=backbone, **{"epochs": 1, "epoch_images": images, "batch_size": images, **rules})

    images = 2 * RULES["batch_size"]
    while training_bytes(job(images).run) < 1.2 * total:
        images *= 2
    failed = run_experiment(job(images))
    release()
    found: dict[str, Any] = {"images": images, "code": failed.code, "advice": failed.message}
    if failed.code != "OOM":
        return found, [f"a batch of {images} images should find no room, and ended as {failed.code}: {failed.message}"]
    run = job(images).run
    rules, shape = from_rules(run.rules), backbone_shape(backbone)
    sizes: Any = {"batch": images, "image_size": rules.image_size, "precision": rules.precision}
    kinds = choose(shape, rules.attention, device=machine.device, **sizes)
    changes = less_memory(run, available=total, kinds=kinds)
    tried = {
        json.dumps(change): run_experiment(job(images, **change)) for change, size in changes if size <= ROOM * total
    }
    found["tried"] = {change: record.code for change, record in tried.items()}
    wrong = [f"{change} was advised and ends as {each.code}" for change, each in tried.items() if each.code != "OK"]
    return found, wrong if tried else [f"no setting is advised: {failed.message}"]


def on_the_processor(machine: Machine) -> Findings:
    """One trained model on the GPU and on the processor: its scores; its probabilities, and those of its merged and exported forms."""
    job = machine.job(precision="fp32")
    run, rules, record = job.run, from_rules(job.run.rules), _right(run_experiment(job))
    trained, data, processor = (
        of_results(Path(job.results), run.key),
        open_data(run, Path(job.dataset_root)),
        torch.device("cpu"),
    )
    unmerged, (split, source) = trained.segmenter(None)[0], next(iter(data.tests.items()))
    scoring = Scoring(data, rules, device=processor, stages=Stages(), report=lambda _: None, run=run)
    there, here = record.scores["best"][split], scoring.test(unmerged, stage="test")[0][split]
    off = {f"score {name}": abs(value - here[name]) for name, value in there.items() if not math.isnan(value)}
    file = Path(job.results) / "exported.pth"
    _, merged, _ = export(trained, out=file)
    exported = build_segmenter(run.backbone, task="binary", image_size=rules.image_size, checkpoint=file)
    images = normalise(first_images(source, RULES["batch_size"]), rules.pixels)
    expected = _probabilities(unmerged, images, processor)
    for name, model in {"unmerged": unmerged, "merged": merged, "exported": exported}.items():
        off[name] = float((_probabilities(model, images, machine.device) - expected).abs().max())
    return off, [f"{name} differs by {by:.1e}" for name, by in off.items() if not by <= OFF_SCORE]


@torch.no_grad()
def _probabilities(model: Any, images: Tensor, device: torch.device) -> Tensor:
    """(B, S, S), on the CPU."""
    height, width = images.shape[-2:]
    return probabilities(model.to(device).eval()(images.to(device)), (height, width)).cpu()


def queued(machine: Machine) -> Findings:
    """Two runs through a cluster's queue, of which the first that trains is requeued."""
    anew = machine.shared.absolute() / time.strftime("%Y%m%d-%H%M%S")
    shared = replace(machine, results=anew)
    jobs = [shared.job(method, **QUEUED) for method in ("lora", "decoder")]
    executor, again = make_executor(target_of(cluster=machine.cluster), results=shared.results), ""
    assert not isinstance(executor, LocalExecutor)
    executor.submit(jobs)

    def requeue(runs: Mapping[str, RunState]) -> None:
        nonlocal again
        training = [run for run in runs.values() if run.state == RUNNING and run.task and run.done]
        if training and not again:
            again = training[0].key
            executor.slurm.ask(["scontrol", "requeue", training[0].task])

    ended = executor.wait(on_change=requeue)
    found = {key: {"state": run.state, "attempts": run.attempts} for key, run in ended.items()}
    wrong = [f"run {key} ended as {run.state}: {run.message}" for key, run in ended.items() if run.state != "OK"]
    if not again or ended[again].attempts < 2:
        wrong.append("no run was started again after a requeue")
    return found, wrong


Part = Callable[[Machine], Findings]
PARTS: Mapping[str, tuple[str, Part]] = {
    "1": ("a step of every method, attention, rates", examined),
    "2": ("steps as fast and as large as planned", as_planned),
    "3": ("no step waits for the GPU", free_of_waits),
    "4": ("the GPU is kept busy", kept_busy),
    "5": ("a requeue in the middle of an epoch", requeued),
    "6": ("advice where memory is short", out_of_memory),
    "7": ("the same scores on the processor", on_the_processor),
}
