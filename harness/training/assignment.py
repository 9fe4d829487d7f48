"""What a run hands to the training loop: one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from harness.methods.base import Method
from harness.models.decoder_shape import Task
from harness.protocols.card import Protocol
from harness.training.batches import TrainingImages
from harness.training.distributed import ALONE, Workers
from harness.training.embeddings import EmbeddingCache
from harness.training.outcome import Progress, Selection, StopRequest


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What is trained, on what, by which rules, and who gets reports.

    Args:
        segmenter: on ``device``, with ``method`` attached: images (B, 3, S, S) to low-resolution logits.
        images: the training split at the network's input size.
        task, num_classes: of the benchmark; they choose the loss.
        seed: of batch order, flips and the method's noise.
        folder: the run's state folder; only worker 0 writes there.
        identity: the run's key.
        data: the fingerprint of its files, empty where none is known: a run whose files changed starts anew.
        code: what code makes its numbers: a checkpoint that other code wrote is continued, and the result says so.
        machine: on what it runs, such as ``NVIDIA H100, torch 2.6.0``; on another one a run goes on, too, and the result says so.
        validate: scores the segmenter on validation; called on every worker in evaluation mode without gradient, and what it returns on
            the first one counts.
        selection: which of these scores chooses the best epoch.
        workers: of this run, each with its own process; a batch of the protocol is shared out among them.
        embeddings: where a frozen encoder's embeddings go; None to compute them every time.
        stop: asks for an early, resumable end.
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
    workers: Workers = ALONE
    code: str = ""
    machine: str = ""
    data: str = ""
    embeddings: EmbeddingCache | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    report: Callable[[Progress], None] = lambda progress: None
