"""One run from its job to its record: build, attach, train, select, test unmerged and merged, write. Read `run_experiment` downwards.

All random numbers come from the run's seed, in separate streams for data order, head and method.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.archive.files import images_csv
from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.datasets.base import AWAY
from harness.experiment.building import RunData, attached_segmenter, attention_of, open_data
from harness.experiment.environment import (
    Stopwatch,
    device_name,
    environment,
    one_line,
    own_device,
    reason_code,
    unusable_gpu,
)
from harness.experiment.number_code import number_code
from harness.experiment.scoring import EVALUATION_BATCH, KeptMasks, Report, ScoresByImage, Scoring, Summary
from harness.methods.base import Method
from harness.models.attention_choice import Choice, apply_choice, in_words
from harness.models.published import fingerprint
from harness.models.segmenter import count_parameters
from harness.planning.data import selects_by
from harness.planning.request import Job
from harness.protocols.load import from_rules
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS, METHODS, load_plugin
from harness.system.errors import UsageError, device_fault
from harness.system.files import write_atomically
from harness.system.machine import now
from harness.training.cache import ArrayCache, weights_fingerprint
from harness.training.checkpoint import BEST, CHECKPOINT, LAST, Position, read_state
from harness.training.loop import Training
from harness.training.outcome import Interrupted, StopRequest


def run_experiment(
    job: Job,
    *,
    progress: Report | None = None,
    stop: StopRequest | None = None,
    complete: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Build, attach, train, select, test (unmerged and merged), write one record.

    A failure becomes a record with its reason code, unless a file server is away or the GPU fails: then it is raised, and the run can be
    started again. An interruption (time limit, preemption, Ctrl-C) leaves a checkpoint and no record, and raises `Interrupted`.

    Args:
        progress: called with the stage that the run is in.
        stop: requests an early, resumable end; a worker's signal handlers set it.
        complete: applied to the record just before it is written, of success or failure. A worker adds its attempts, their GPU-hours and
            the code snapshot.
    """
    for plugin in job.plugins:
        load_plugin(Path(plugin))
    device = own_device()
    experiment = Experiment(job, device=device, report=progress or (lambda _: None))
    store = RecordStore(Path(job.results))
    images, masks = "", b""
    try:
        with experiment.stages.during("training"):
            trained = experiment.train(stop=stop)
        record, images, masks = experiment.test(experiment.record("OK"), trained)
    except Interrupted:
        raise
    except Exception as error:
        if device_fault(error) or (isinstance(error, OSError) and error.errno in AWAY):
            raise  # no result: the run is restarted from its checkpoint
        code = reason_code(error)
        advice = ""
        if code == "OOM":
            advice = "; repeat the whole command with --set activation_checkpointing=true, or a smaller batch_size and larger accumulate"
        record = replace(experiment.record(code), message=one_line(error) + advice)
        write_atomically(experiment.folder / "error.log", traceback.format_exc())
    record = complete(replace(record, finished=now()))
    store.write(record, images, masks)
    if record.code == "OK":  # only an unfinished run needs it
        (experiment.folder / CHECKPOINT).unlink(missing_ok=True)
    return record


class Experiment:
    """One run on one device. ``report``: called with the stage and the position in it."""

    def __init__(self, job: Job, *, device: torch.device, report: Report) -> None:
        self.job, self.run, self.device, self.report = job, job.run, device, report
        self.stages = Stopwatch()
        self.folder = Path(job.results) / "state" / job.run.key
        self.rules: Protocol = from_rules(job.run.rules)
        self.parameters: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.available: dict[str, int] = {}
        self.stop = StopRequest()
        self.cache = ArrayCache(job.cache_folder, gib=job.cache_gib)

    @cached_property
    def data(self) -> RunData:
        """The run's images, opened on first use, so that a run whose files are missing has a record that names them."""
        return open_data(self.run, Path(self.job.dataset_root), cache=self.cache)

    @cached_property
    def scoring(self) -> Scoring:
        """Scores every model of this run; it keeps embeddings of a frozen encoder."""
        return Scoring(
            self.data,
            self.rules,
            device=self.device,
            stages=self.stages,
            report=self.report,
            run=self.run,
            cache=self.cache,
            stop=lambda: self.stop.requested,
        )

    def train(self, *, stop: StopRequest | None) -> Position:
        """Train with selection on validation, continuing from a checkpoint of an earlier attempt."""
        self.stop = stop or self.stop
        with self.stages.during("loading"):
            self._open()
        segmenter, method = self._attached()
        self.parameters = count_parameters(segmenter)
        embeddings = self.scoring.remember_frozen(segmenter, method)
        scored = self.data.tests if self.rules.quirks.selection == "released" else {"val": self.data.val}
        metric = selects_by(self.run)

        def validate() -> dict[str, float]:
            scores, _ = self.scoring.scores(segmenter, scored, metrics=(metric,))
            return scores.get("all", {})

        return Training(
            segmenter=segmenter,
            method=method,
            images=self.data.train,
            protocol=self.rules,
            task=self.data.benchmark.task,
            num_classes=self.scoring.num_classes,
            seed=self.run.seed,
            folder=self.folder,
            identity=self.run.key,
            code=" ".join(self._number_code().values()),
            machine=f"{device_name(self.device)}, torch {torch.__version__}",  # another one rounds differently
            data=self.run.data_fingerprint,
            validate=validate,
            metric=metric,
            device=self.device,
            embeddings=embeddings,
            stop=self.stop,
            report=lambda progress: self.report({"stage": "training", **progress}),
        ).run()

    def _open(self) -> None:
        """Open the files. Raises UsageError: the checkpoint has changed, or the GPU of a sweep's job cannot be used."""
        path = self.job.checkpoint
        if path and fingerprint(Path(path)) != self.run.checkpoint:
            raise UsageError(
                f"the checkpoint {path} changed since this run was planned; repeat the command to plan it anew"
            )
        self.report({"stage": "opening data"})
        sources = {"train": self.data.train, "val": self.data.val, **self.data.tests}
        self.counts = {name: len(source) for name, source in sources.items()}
        self.available = self.data.available
        if self.device.type == "cpu" and (warning := unusable_gpu()):
            self.report({"stage": "opening data", "kind": "note", "text": warning})
        self.report({"stage": "building the model"})

    def test(self, record: Record, trained: Position) -> tuple[Record, str, bytes]:
        """Score the best and the last checkpoint, every merged form of the best, and its decoded form.

        Returns:
            The record and its sidecar files: per-image scores (`harness.archive.files`), masks of a few images (`harness.archive.masks`).
        """
        scores: dict[str, Summary] = {}
        images: dict[str, ScoresByImage] = {}
        kept = KeptMasks(self.data, self.rules, run=self.run)
        segmenter, method = self._attached()
        validated = {entry["epoch"]: {"val": entry["val"]} for entry in trained.history}
        for model, epoch in {"best": trained.best_epoch, "last": len(trained.history)}.items():
            if model == "last" and epoch == trained.best_epoch:
                scores[model] = scores["best"]
                continue
            method.load_state(self._state(model))
            scores[model], images[model] = self.scoring.test(
                segmenter,
                model=model,
                must_find=model == "best" and method.config.trains and self.rules.select != "last",
                seen=kept if model == "best" else None,
            )
            scores[model] = {**validated.get(epoch, {}), **scores[model]}
        merges = self._test_merged(method, scores, images)
        if trained.architecture:
            method.load_state(self._state("best"))
            if method.decode():
                scores["decoded"], images["decoded"] = self.scoring.test(segmenter, model="decoded")
        begun = {"begun_by": ", ".join(trained.codes[:-1]), "begun_on": "; ".join(trained.machines[:-1])}
        record = replace(
            record,
            scores=scores,
            selected_epoch=trained.best_epoch or None,
            history=trained.history,
            architecture=trained.architecture,
            cost={**trained.cost(), **self.stages.cost()},
            budget=trained.budget(),
            merge=merges,
            counts={**record.counts, **self.scoring.exceptions},
            ignored=dict(self.scoring.ignored),
            foreground=self.scoring.foreground,
            environment=record.environment | {name: words for name, words in begun.items() if words},
        )
        groups = {split: self.data.groups(split) for split in self.data.tests}
        return record, images_csv(images, groups), kept.encoded(images["best"])

    def _test_merged(
        self, method: Method, scores: dict[str, Summary], images: dict[str, ScoresByImage]
    ) -> dict[str, dict[str, Any]]:
        """Add the scores of every merged form of the best state; returns what each merge did."""
        merges: dict[str, dict[str, Any]] = {}
        folded: dict[str, str] = {}  # fingerprint of a fully folded model -> the first form tested with it
        for mode in (mode for mode in self.rules.merge if mode in method.merge_modes):
            merged, merging = self._attached()
            merging.load_state(self._state("best"))
            merged.eval()
            self.report({"stage": "merging", "mode": mode})
            with self.stages.during("merging"):
                report = merging.merge(
                    mode,
                    calibration=list(self.scoring.batches(self.data.train, self.rules.calibration_images)),
                    held_out=list(self.scoring.batches(self.data.val, EVALUATION_BATCH)),
                )
            merges[mode] = asdict(report)
            model = f"merged-{mode}"
            equal = model if report.left else folded.setdefault(weights_fingerprint(merged), model)
            if equal == model:
                scores[model], images[model] = self.scoring.test(merged, model=model)
            else:
                scores[model], images[model] = scores[equal], images[equal]
        return merges

    def record(self, code: Code) -> Record:
        """The run's record without the result."""
        return Record(
            run=self.run,
            key=self.run.key,
            code=code,
            parameters=self.parameters,
            counts=self.counts,
            available=self.available,
            environment={  # no attention if the run failed before choosing it: kernels are not timed for this
                **environment(self.device),
                **self._number_code(),
                **({"attention": in_words(chosen)} if (chosen := vars(self).get("attention")) else {}),
                **{package: version(package) for package in METHODS.get(self.run.method).packages},
            },
        )

    def _number_code(self) -> dict[str, str]:
        method = METHODS.get(self.run.method)
        return number_code(method, method.config_class, BENCHMARKS.get(self.run.benchmark))

    def _attached(self) -> tuple[nn.Module, Method]:
        checkpoint = Path(self.job.checkpoint) if self.job.checkpoint else None
        task, num_classes = self.data.benchmark.task, self.scoring.num_classes
        with self.stages.during("loading"):
            segmenter, method = attached_segmenter(
                self.run, task=task, num_classes=num_classes, checkpoint=checkpoint, checked_on=self.device
            )
            apply_choice(segmenter, self.attention)
            return segmenter.to(self.device), method

    @cached_property
    def attention(self) -> Choice:
        """How the run's blocks attend, chosen once: a resumed run keeps it, as do all its tests."""
        note = self.folder / "attention.json"
        if note.is_file():
            return dict(json.loads(note.read_text(encoding="utf-8")))
        choice = attention_of(self.run.backbone, self.rules, self.device)
        if choice:
            write_atomically(note, json.dumps(choice))
        return choice

    def _state(self, model: str) -> dict[str, Tensor]:
        """The trained tensors of the ``best`` or the ``last`` epoch."""
        tensors = read_state(self.folder / {"best": BEST, "last": LAST}[model], identity=self.run.key)
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}
