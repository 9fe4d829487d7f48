"""Inputs and outputs of training: selection, progress, stopping, errors, the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from harness.archive.schema import Code
from harness.methods.base import Method
from harness.models.decoders import Task
from harness.protocols.card import Protocol
from harness.training.batches import TrainingImages
from harness.training.cache import EmbeddingCache


class Diverged(RuntimeError):
    """The loss or a gradient is not finite."""

    code: ClassVar[Code] = "DIVERGED"


class Blank(RuntimeError):
    """The trained model predicts background alone in every test image: no score of it says anything."""

    code: ClassVar[Code] = "BLANK"


class Interrupted(RuntimeError):
    """A stop was requested; the checkpoint is written and the same call continues from it."""


class StopRequest:
    """A flag that a signal handler sets; the loop finishes its update, writes a checkpoint and raises `Interrupted`."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        self.requested = True


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What chooses the best epoch on validation.

    Args:
        metric: a name among those that ``validate`` returns.
        lower_is_better: for errors, such as BER and MAE.
    """

    metric: str
    lower_is_better: bool = False

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` beats ``best``; ties keep the earlier epoch, and a value that is not a number never wins."""
        if best is None or math.isnan(best):
            return True
        return value < best if self.lower_is_better else value > best


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop reports while it runs.

    Args:
        kind: ``step`` after an update, ``epoch`` after an epoch, ``checkpoint`` after writing one, ``note`` for a line
            of text.
        epoch, epochs: 1-based, and how many there are.
        step, steps: updates done in the epoch, and how many it has.
        loss: of the update, or the epoch's mean.
        rate: latest learning rate of the weights.
        seconds: in the epoch's updates so far.
        metrics: validation metrics of an epoch.
        text: a line for the user, empty where there is none.
    """

    kind: Literal["step", "epoch", "checkpoint", "note"]
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float = math.nan
    rate: float = 0.0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What training hands over.

    Args:
        history: one entry an epoch: ``epoch`` (1-based), ``loss`` (mean over updates), ``lr`` (of the weights, last
            update), ``val`` (metrics, empty where not validated), ``seconds``, ``updates`` (by role).
        architecture: one entry an epoch: site -> softmax(α); empty for methods without.
        selected_epoch: 1-based; 0 where nothing trains.
        best_state, last_state: safetensors files for `harness.methods.base.Method.load_state`.
        cost: ``step_time_s`` (median over all passes, two in a step of weights and α; ``step_time_weights_s`` and
            ``step_time_architecture_s`` by role), ``data_wait_s`` (median), ``peak_memory_bytes``, ``train_time_s`` (updates),
            ``wall_time_s`` (with validation), ``steps`` (updates).
        budget: see `harness.archive.schema.Record`.
        earlier_codes: `Assignment.code` of earlier starts with other code, in order.
        earlier_machines: likewise `Assignment.machine`.
    """

    history: list[dict[str, Any]]
    architecture: list[dict[str, list[float]]]
    selected_epoch: int
    best_state: Path
    last_state: Path
    cost: dict[str, float]
    budget: dict[str, float]
    earlier_codes: list[str]
    earlier_machines: list[str]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What is trained, on which images, and by which rules.

    Args:
        segmenter: on ``device``, with ``method`` attached: images (B, 3, S, S) to low-resolution logits.
        images: the training split at the network's input size.
        task, num_classes: of the benchmark; they choose the loss.
        seed: of batch order, flips and the method's noise.
        folder: the run's state folder.
        identity: the run's key.
        data: the fingerprint of its files, empty if unknown: a run whose files changed starts over.
        code: fingerprint of the code; a checkpoint of other code is continued, and the result says so.
        machine: such as ``NVIDIA H100, torch 2.6.0``; a checkpoint of another one is continued, and the result says so.
        validate: scores the segmenter on validation; called in evaluation mode without gradient.
        selection: which of these scores chooses the best epoch.
        embeddings: cache of a frozen encoder's embeddings; None to compute them every time.
        stop: requests an early, resumable end.
        report: called with every step.
    """

    segmenter: nn.Module
    method: Method
    images: TrainingImages
    protocol: Protocol
    task: Task
    num_classes: int
    seed: int
    folder: Path
    identity: str
    validate: Callable[[], dict[str, float]]
    selection: Selection
    device: torch.device
    code: str = ""
    machine: str = ""
    data: str = ""
    embeddings: EmbeddingCache | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    report: Callable[[Progress], None] = lambda progress: None
