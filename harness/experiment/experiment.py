"""One run from its job to its record: build, attach, train, select, test unmerged and merged, write.

Read `run_experiment` downwards. Everything random comes from the run's seed by separate streams: data order, head, method.
"""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import UsageError
from harness.evaluation.evaluate import Item, evaluate_split
from harness.evaluation.names import CLASSES, OVERLAP, SALIENCY, higher_is_better
from harness.evaluation.scorer import SplitScorer
from harness.experiment.building import attached_segmenter
from harness.experiment.data import RunData, open_data
from harness.experiment.environment import environment
from harness.experiment.failure import one_line, reason_code
from harness.experiment.kept import kept_masks
from harness.experiment.number_code import number_code
from harness.experiment.stages import Stages, process_started
from harness.models.fingerprints import is_checkpoint
from harness.models.segmenter import probabilities
from harness.planning.job import Job
from harness.protocols.card import Protocol
from harness.protocols.load import from_rules
from harness.records.images import GROUP
from harness.records.masks import KeptMask, encoded_masks
from harness.records.schema import Code, Record
from harness.records.store import RecordStore
from harness.registry import BENCHMARKS, METHODS, load_plugin
from harness.training.assignment import Assignment
from harness.training.distributed import join, leave
from harness.training.embeddings import EmbeddingCache, RememberedEmbeddings, encoder_fingerprint, encoder_is_frozen
from harness.training.feeding import DTYPES, normalise
from harness.training.images import ImageSource
from harness.training.loop import train
from harness.training.outcome import Interrupted, Progress, Selection, StopRequest, TrainingResult
from harness.training.prefix import SCORED_BYTES, TOKEN_BYTES, FrozenPrefix, RememberedTokens, frozen_prefix
from methods.base import Method

EVALUATION_BATCH = 4
BINARY_METRICS = (*SALIENCY, *OVERLAP, "ber")

Tell = Callable[[dict[str, Any]], None]
"""Called now and then with ``stage`` (``training``, ``testing`` …), ``epoch``, ``epochs``, ``step``, ``steps``, ``loss``."""


def run_experiment(
    job: Job,
    *,
    progress: Tell | None = None,
    stop: StopRequest | None = None,
    complete: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Build, attach, train, select, test (unmerged and merged), write one record.

    A failure becomes a record with its reason code. An interruption (time limit, preemption, Ctrl-C) leaves a checkpoint and no record, and
    raises `Interrupted`.

    Args:
        job: what to do.
        progress: is told where the run is.
        stop: asks for an early, resumable end; a worker's signal handlers set it.
        complete: applied to the record, of success or failure, just before it is written: the worker adds what only it knows (attempts,
            GPU-hours of all of them, the code snapshot).
    """
    for plugin in job.plugins:
        load_plugin(Path(plugin))
    device = own_device()
    workers = join(device=device)
    experiment = Experiment(job, device=device, tell=progress or (lambda _: None))
    store = RecordStore(Path(job.results))
    images, masks = "", b""
    try:
        with experiment.stages.during("training"):
            trained = experiment.train(workers=workers, stop=stop)
        record = experiment.record("OK")
        if workers.leads:
            record, images = experiment.test(record, trained)
            masks = encoded_masks(experiment.kept)
    except Interrupted:
        raise
    except Exception as error:
        code = reason_code(error)
        record = replace(experiment.record(code), message=one_line(error))
        if workers.leads:
            _keep_traceback(experiment.folder)
    finally:
        leave(workers)
    record = complete(replace(record, finished=datetime.now(UTC).isoformat(timespec="seconds")))
    if workers.leads:
        store.write(record, images, masks)
        if record.code == "OK":
            experiment.discard_checkpoints()
    return record


def own_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


class Experiment:
    """The parts of one run on one device.

    Args:
        job: what to do.
        device: where to compute.
        tell: is told the stage and the position in it.
    """

    def __init__(self, job: Job, *, device: torch.device, tell: Tell) -> None:
        self.job, self.run, self.device, self.tell = job, job.run, device, tell
        self.stages = Stages(started=process_started())
        self.folder = Path(job.results) / "state" / job.run.key
        self.rules: Protocol = from_rules(job.run.rules)
        self.parameters: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.remembered: RememberedEmbeddings | None = None
        """Embeddings of scored images, where the encoder is frozen."""
        self.tokens: RememberedTokens | None = None
        """The same of tokens, where the first blocks are."""
        self.kept: list[KeptMask] = []
        """Masks that `test` keeps of a few images, by the best checkpoint."""

    @cached_property
    def data(self) -> RunData:
        """Opened when somebody asks: a run whose files are gone fails with their name, and has a record all the same."""
        return open_data(self.run, Path(self.job.dataset_root), cache=Path(self.job.results) / "cache" / "images")

    @cached_property
    def num_classes(self) -> int:
        """Quirk 7: released code counts the classes that the training masks show."""
        if self.data.benchmark.task == "multiclass" and self.rules.quirks.class_count == "released":
            masks = (self.data.train.mask_input(index) for index in range(len(self.data.train)))
            return 1 + max(int(mask[mask != 255].max(initial=0)) for mask in masks)
        return self.data.benchmark.num_classes

    def train(self, *, workers: Any, stop: StopRequest | None) -> TrainingResult:
        """Train with selection on validation, continuing from a checkpoint of an earlier attempt."""
        with self.stages.during("loading"):
            self._require_checkpoint()
            self.tell({"stage": "opening data"})
            self.counts = self.data.counts
            self.tell({"stage": "building the model"})
        segmenter, method = self._attached()
        self.parameters = count_parameters(segmenter)
        if self.rules.cache_embeddings and encoder_is_frozen(method, segmenter):
            self.remembered = RememberedEmbeddings()
        # On a GPU a block may take less than reading its tokens: not measured, so not done.
        prefix = frozen_prefix(segmenter) if self.rules.cache_prefix and self.device.type == "cpu" else None
        self.tokens = None if prefix is None else RememberedTokens(prefix)
        scored = self.data.tests if self.rules.quirks.selection == "released" else {"val": self.data.val}
        metric = self.data.benchmark.selection_metric
        return train(
            Assignment(
                segmenter=segmenter,
                method=method,
                images=self.data.train,
                protocol=self.rules,
                task=self.data.benchmark.task,
                num_classes=self.num_classes,
                seed=self.run.seed,
                folder=self.folder,
                identity=self.run.key,
                validate=lambda: self._score(segmenter, scored, metrics=(metric,), stage="validation")[0]["all"],
                selection=Selection(metric=metric, lower_is_better=not higher_is_better(metric)),
                device=self.device,
                workers=workers,
                embeddings=self._embeddings(segmenter, prefix),
                prefix=prefix,
                stop=stop or StopRequest(),
                report=self._report,
            )
        )

    def test(self, record: Record, trained: TrainingResult) -> tuple[Record, str]:
        """Score best and last checkpoint, every merged form of the best and the best decoded; returns the record and the per-image CSV."""
        scores: dict[str, dict[str, dict[str, float]]] = {}
        images: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        merges: dict[str, dict[str, Any]] = {}
        metrics = self._metrics
        segmenter, method = self._attached()
        variants = {"best": trained.best_state, "last": trained.last_state}
        if trained.selected_epoch == len(trained.history):
            variants.pop("last")
        for variant, path in variants.items():
            method.load_state(self._on_device(load_file(path)))
            scores[variant], images[variant] = self._score(
                segmenter, self.data.tests, metrics=metrics, stage=f"test {variant}"
            )
            if variant == "best":
                self.kept = kept_masks(
                    self.data.tests,
                    count=self.rules.keep_masks,
                    predict=self._predictor(segmenter),
                    read=self._input,
                    threshold=self.rules.evaluation.threshold if metrics is BINARY_METRICS else None,
                )
        if "last" not in scores:
            scores["last"] = scores["best"]
        validated = [entry["val"] for entry in trained.history if entry["epoch"] == trained.selected_epoch]
        scores["best"] = {"val": validated[0], **scores["best"]} if validated else scores["best"]
        for mode in (mode for mode in self.rules.merge if mode in method.merge_modes):
            merged, merging = self._attached()
            merging.load_state(self._on_device(load_file(trained.best_state)))
            merged.eval()
            self.tell({"stage": f"merging ({mode})"})
            with self.stages.during("merging"):
                report = merging.merge(
                    mode,
                    calibration=list(self._batches(self.data.train, self.rules.calibration_images)),
                    held_out=list(self._batches(self.data.val, EVALUATION_BATCH)),
                )
            merges[mode] = asdict(report)
            variant = f"merged-{mode}"
            scores[variant], images[variant] = self._score(
                merged, self.data.tests, metrics=metrics, stage=f"test {variant}"
            )
        if trained.architecture:
            method.load_state(self._on_device(load_file(trained.best_state)))
            if method.decode():
                scores["decoded"], images["decoded"] = self._score(
                    segmenter, self.data.tests, metrics=metrics, stage="test decoded"
                )
        record = replace(
            record,
            scores=scores,
            selected_epoch=trained.selected_epoch,
            history=trained.history,
            architecture=trained.architecture,
            cost={**trained.cost, **self.stages.cost(trained.cost)},
            budget=trained.budget,
            merge=merges,
        )
        groups = {split: self.data.groups(split) for split in self.data.tests}
        return record, images_csv(images, groups)

    def test_scores(self, segmenter: nn.Module, *, stage: str) -> dict[str, dict[str, float]]:
        """Split -> metric -> score of a model on this run's test images, whoever trained it."""
        return self._score(segmenter, self.data.tests, metrics=self._metrics, stage=stage)[0]

    @property
    def _metrics(self) -> Sequence[str]:
        return CLASSES if self.data.benchmark.task == "multiclass" else BINARY_METRICS

    def record(self, code: Code) -> Record:
        """What is known of the run without its result."""
        return Record(
            run=self.run,
            key=self.run.key,
            code=code,
            parameters=self.parameters,
            counts=self.counts,
            environment={**environment(self.device), **self._number_code()},
        )

    def _number_code(self) -> dict[str, str]:
        method = METHODS.get(self.run.method)
        return number_code(method, method.config_class, BENCHMARKS.get(self.run.benchmark))

    def discard_checkpoints(self) -> None:
        """What only an unfinished run needs."""
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            (self.folder / name).unlink(missing_ok=True)

    def _require_checkpoint(self) -> None:
        """The file may be another one than when the run was planned: its whole hash, where it is not remembered here."""
        path = self.job.checkpoint
        if path and not is_checkpoint(Path(path), self.run.checkpoint):
            raise UsageError(f"the checkpoint {path} changed since this run was planned; plan it again")

    def _attached(self) -> tuple[nn.Module, Method]:
        checkpoint = Path(self.job.checkpoint) if self.job.checkpoint else None
        task, num_classes = self.data.benchmark.task, self.num_classes
        with self.stages.during("loading"):
            segmenter, method = attached_segmenter(self.run, task=task, num_classes=num_classes, checkpoint=checkpoint)
            return segmenter.to(self.device), method

    def _embeddings(self, segmenter: nn.Module, prefix: FrozenPrefix | None) -> EmbeddingCache | None:
        """Where embeddings of training images are kept, or the tokens of ``prefix``."""
        if prefix is not None:
            encoder = f"tokens {prefix.fingerprint()}"
        elif self.remembered is not None:
            encoder = encoder_fingerprint(segmenter.get_submodule("encoder"))
        else:
            return None
        data = f"{self.run.manifest}{self.run.data_fingerprint}"
        key = f"{encoder} {self.rules.precision} {self.rules.image_size} {data} {self.counts['train']}"
        bounds = {} if prefix is None else {"memory_limit": SCORED_BYTES, "file_limit": TOKEN_BYTES}
        return EmbeddingCache(
            count=len(self.data.train), key=key, folder=Path(self.job.results) / "cache" / "embeddings", **bounds
        )

    def _score(
        self, segmenter: nn.Module, sets: dict[str, ImageSource], *, metrics: Sequence[str], stage: str
    ) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[str, float]]]]:
        """Summary and per-image scores by split; ``all`` is every split together where there are several."""
        segmenter.eval()
        scorers: dict[str, SplitScorer] = {}
        together = self._scorer(metrics)
        for name, source in sets.items():
            self.tell({"stage": stage, "split": name, "images": len(source)})
            with self.stages.during("validating" if stage == "validation" else "testing"):
                predict = self.stages.timed(self._predictor(segmenter))
                scorers[name] = evaluate_split(
                    predict, self._items(source), self._scorer(metrics), batch_size=EVALUATION_BATCH
                )
            together.merge(scorers[name])
        if len(scorers) > 1 or stage == "validation":
            scorers["all"] = together
        summaries = {name: scorer.summary() for name, scorer in scorers.items()}
        return summaries, {name: scorer.images() for name, scorer in scorers.items() if name != "all"}

    def _scorer(self, metrics: Sequence[str]) -> SplitScorer:
        return SplitScorer(
            metrics,
            task=self.data.benchmark.task,
            num_classes=self.data.benchmark.num_classes,
            conventions=self.rules.evaluation,
        )

    def _predictor(self, segmenter: Any) -> Callable[[Tensor], Tensor]:
        size = (self.rules.image_size, self.rules.image_size)
        prefix = None if self.tokens is None else self.tokens.like(segmenter)

        def predict(images: Tensor) -> Tensor:
            images = images.to(self.device)
            with self._autocast():
                if self.remembered is not None:
                    output = segmenter.decode(self.remembered.get(images, segmenter.encode))
                elif self.tokens is not None and prefix is not None:
                    output = segmenter.decode(self.tokens.get(images, prefix))
                else:
                    output = segmenter(images)
            scores = probabilities(output, size)
            missing = self.data.benchmark.num_classes - self.num_classes
            return nn.functional.pad(scores, (0, 0, 0, 0, 0, missing)) if missing > 0 else scores

        return predict

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES.get(self.rules.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _items(self, source: ImageSource) -> Iterator[Item]:
        for index in range(len(source)):
            yield source.stem(index), self._input(source, index), source.mask_native(index)

    def _batches(self, source: ImageSource, count: int) -> Iterator[Tensor]:
        inputs = [self._input(source, index) for index in range(min(count, len(source)))]
        for start in range(0, len(inputs), EVALUATION_BATCH):
            yield torch.stack(inputs[start : start + EVALUATION_BATCH]).to(self.device)

    def _input(self, source: ImageSource, index: int) -> Tensor:
        image = torch.from_numpy(source.image(index)).unsqueeze(0)
        return normalise(image, mean=self.rules.pixel_mean, std=self.rules.pixel_std)[0]

    def _on_device(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in state.items()}

    def _report(self, step: Progress) -> None:
        content = {key: value for key, value in asdict(step).items() if value not in ("", {})}
        self.tell({"stage": "training", **content})


def count_parameters(segmenter: nn.Module) -> dict[str, int]:
    """Trained parameters by part, and all of the segmenter's (the method's own included)."""
    trained = {name: p.numel() for name, p in segmenter.named_parameters() if p.requires_grad}
    encoder = sum(count for name, count in trained.items() if name.startswith("encoder."))
    everything = sum(p.numel() for p in segmenter.parameters())
    return {
        "encoder": encoder,
        "decoder": sum(trained.values()) - encoder,
        "trainable": sum(trained.values()),
        "total": everything,
    }


def images_csv(
    images: dict[str, dict[str, dict[str, dict[str, float]]]], groups: Mapping[str, Mapping[str, str]]
) -> str:
    """variant -> split -> stem -> metric -> value, as CSV; ``groups`` (split -> stem -> group) is a column where there is one."""
    grouped = any(groups.values())
    rows = [
        {
            "variant": variant,
            "split": split,
            "stem": stem,
            **({GROUP: groups[split].get(stem, stem)} if grouped else {}),
            **values,
        }
        for variant, splits in images.items()
        for split, stems in splits.items()
        for stem, values in sorted(stems.items())
    ]
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    return text.getvalue()


def _keep_traceback(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
