"""The trained model of a finished run, from a results folder or from an exported adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.archive.schema import Run
from harness.archive.store import RecordStore, finished_run
from harness.datasets.base import BINARY
from harness.experiment.building import attached_segmenter
from harness.experiment.number_code import has_changed
from harness.methods.base import Method
from harness.models.catalog import backbone_shape
from harness.models.checkpoint import read_tensors
from harness.models.decoders import Task
from harness.models.published import fingerprint
from harness.models.segmenter import Segmenter
from harness.protocols.load import as_rules, for_backbone, protocol_hash
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS, METHODS, add_own, add_own_of, canonical_spelling
from harness.system.errors import UsageError
from harness.system.streams import say
from harness.training.checkpoint import BEST, read_state

METADATA = "sam-peft-harness"
"""Key of an exported file's metadata that holds its run."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run and its trained tensors. ``state``: the method's own and the trained tensors of the best checkpoint. ``published``: it is not a
    run but weights that their authors published, and takes images as their predictor does."""

    run: Run
    state: Mapping[str, Tensor]
    published: bool = False

    @property
    def task(self) -> Task:
        """The task of its benchmark."""
        return BENCHMARKS.get(self.run.benchmark).task

    def segmenter(self, checkpoint: Path | None) -> tuple[Segmenter, Method]:
        """The segmenter in evaluation mode with the method attached and the state loaded, on the CPU.

        Args:
            checkpoint: the pretrained weights that the run started from, None for a run from random weights.

        Raises:
            UsageError: it is another file.
        """
        self.require_checkpoint(checkpoint)
        return trained_segmenter(self.run, dict(self.state), checkpoint=checkpoint)

    def require_checkpoint(self, checkpoint: Path | None) -> None:
        """Raises UsageError where ``checkpoint`` is not what the run started from."""
        run = self.run
        if checkpoint is None:
            if run.checkpoint:
                raise UsageError(
                    f"run {run.key} started from pretrained {run.backbone} weights; give them with --checkpoint"
                )
            return
        if fingerprint(checkpoint) != run.checkpoint:
            needed = run.checkpoint or "none (random weights; leave out --checkpoint)"
            raise UsageError(
                f"--checkpoint {checkpoint} is not the file that run {run.key} started from: its fingerprint is {needed}"
            )


def published_sam(backbone: str, checkpoint: Path, *, label: str = "") -> Trained:
    """A SAM with the weights of its checkpoint, without training: a run of ``zeroshot`` at the backbone's own image size.

    Args:
        backbone: one of SAM's own.
        checkpoint: its weights.
        label: text shown in place of the method.
    """
    name = "adopted"
    add_own(name, BINARY)
    size = backbone_shape(backbone).image_size
    rules = for_backbone(Protocol(name=name, image_size=size, own_classes=BINARY), backbone)
    run = Run(
        method="zeroshot",
        method_config={"lr": None},
        label=label or "zeroshot",
        benchmark=name,
        backbone=backbone,
        checkpoint=fingerprint(checkpoint),
        protocol=name,
        protocol_hash=protocol_hash(rules),
        rules=as_rules(rules),
        seed=0,
        manifest="",
        split_rule="",
    )
    return Trained(run=run, state={}, published=True)


def load_adapter(file: Path | str, *, checkpoint: Path | str | None = None) -> tuple[Segmenter, Method]:
    """A segmenter and its method from an adapter file (``--adapter-only`` of ``sam-peft export``), ready to predict.

    Args:
        file: the ``.safetensors`` file; it names its run, so nothing else is needed.
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.

    Returns:
        The segmenter on the CPU in evaluation mode: images (B, 3, S, S), normalised, to mask logits. The method, which
        can be merged.

    Raises:
        UsageError: no such adapter, or the checkpoint has another fingerprint.
    """
    return adapter(Path(file)).segmenter(None if checkpoint is None else Path(checkpoint))


def adapter(file: Path) -> Trained:
    """The content of an exported adapter. Raises UsageError: it cannot be read, or does not name its run."""
    try:
        with safe_open(file, framework="pt") as content:
            metadata = (content.metadata() or {})[METADATA]
        run = TypeAdapter(dict[str, Run]).validate_json(metadata, strict=True)["run"]
    except (SafetensorError, OSError, ValidationError, KeyError) as error:
        raise UsageError(
            f"{file} is not a .safetensors file that names its run; give what sam-peft export --adapter-only wrote"
        ) from error
    _require_known(run)
    add_own_of(run.benchmark, run.rules)
    return Trained(run=run, state=read_tensors(file))


def _require_known(run: Run) -> None:
    """Raises UsageError: the run's method belongs to a plug-in that is not loaded."""
    if not METHODS.is_fixed(run.method) and canonical_spelling(run.method) not in METHODS.names():
        raise UsageError(
            f"the method {run.method} of run {run.key} is a plug-in's; give its file with --plugin FILE.py (in Python: "
            "harness.registry.load_plugin)"
        )


def of_results(results: Path, key: str) -> Trained:
    """The best state of the run with ``key`` in a results folder. Raises UsageError: the run is unknown, failed, or has no state here."""
    run = finished_run(results, key)
    file = results / "state" / run.key / BEST
    if not file.is_file():
        raise UsageError(
            f"run {run.key} has no trained state at {file}; to repeat the training take another --results, or delete "
            f"{results / 'records' / run.key}.json first"
        )
    _require_known(run)
    record = RecordStore(results).find(run.key)
    if record is not None and has_changed(record):
        say(
            f"the plug-in of {run.method}, or harness.methods, has changed since run {run.key}: its predictions may differ"
        )
    add_own_of(run.benchmark, run.rules)
    return Trained(run=run, state=read_state(file, identity=run.key))


def trained_segmenter(run: Run, state: dict[str, Tensor], *, checkpoint: Path | None) -> tuple[Segmenter, Method]:
    """The segmenter in evaluation mode with the method attached and ``state`` loaded; the checkpoint is not checked."""
    benchmark = BENCHMARKS.get(run.benchmark)
    # A quirk may have counted classes in the masks; the trained class head (C + 1 rows) or decoder (C) knows.
    tables = (
        ("head.weight", 1),
        ("decoder.head.weight", 0),
        ("decoder.mask_norm.weight", 0),
        ("decoder.model.class_predictor.weight", 1),
    )
    known = [len(state[name]) - nothing for name, nothing in tables if name in state and state[name].ndim]
    num_classes = known[0] if known else benchmark.num_classes
    segmenter, method = attached_segmenter(run, task=benchmark.task, num_classes=num_classes, checkpoint=checkpoint)
    method.load_state(state)
    return segmenter.eval(), method
