"""A training run small enough for tests: drawn discs, the tiny SAM, a fraction of a second an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.methods.base import Method
from harness.models.build import build_segmenter
from harness.models.known import IMAGENET
from harness.models.segmenter import probabilities
from harness.protocols.protocol import Protocol
from harness.registry import METHODS, method_config_class
from harness.training.cache import EmbeddingCache
from harness.training.checkpoint import BEST, LAST, Position
from harness.training.feeding import normalise
from harness.training.loop import Training
from harness.training.outcome import Interrupted, StopRequest

SIZE = 64
CPU = torch.device("cpu")


class Discs:
    """A bright disc on noise, its position a function of the index."""

    def __init__(self, count: int, *, size: int = SIZE, classes: int = 2) -> None:
        self.count, self.size, self.classes = count, size, classes

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 90, (3, self.size, self.size), dtype=np.uint8)
        return noise + 60 * self.mask_input(index)

    def mask_input(self, index: int) -> np.ndarray:
        rows, columns = np.mgrid[: self.size, : self.size] / self.size
        centre = 0.3 + 0.4 * np.random.default_rng([index, 1]).random(2)
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.05
        return (inside * (1 + index % (self.classes - 1))).astype(np.uint8)


def protocol(**fields: Any) -> Protocol:
    mean, std = IMAGENET
    fields = {"pixel_mean": mean, "pixel_std": std, **fields}
    return Protocol(**{"name": "tiny", "image_size": SIZE, "epochs": 3, "batch_size": 2, "lr": 2e-3, **fields})


def attached(
    name: str, *, seed: int = 0, task: Any = "binary", classes: int = 2, **config: Any
) -> tuple[nn.Module, Method]:
    """A segmenter with a method attached."""
    segmenter = build_segmenter("tiny", task=task, num_classes=classes, mask_tokens=4, image_size=SIZE, head_seed=seed)
    method = METHODS.get(name)(method_config_class(name)(**config), seed=seed)
    method.attach(segmenter)
    return segmenter, method


@dataclass(kw_only=True)
class Run:
    """One run of the loop with everything that a test may want to look at."""

    folder: Path
    method: str = "lora"
    config: dict[str, Any] = field(default_factory=dict)
    rules: Protocol = field(default_factory=protocol)
    images: int = 7
    seed: int = 0
    task: Any = "binary"
    classes: int = 2
    embeddings: EmbeddingCache | None = None
    stop: StopRequest | None = None
    code: str = "code"
    machine: str = "a CPU"
    validate: Callable[[], dict[str, float]] | None = None
    report: Callable[[dict[str, Any]], None] = lambda progress: None

    def __post_init__(self) -> None:
        self.source = Discs(self.images, classes=self.classes)
        self.segmenter, self.attached = attached(
            self.method, seed=self.seed, task=self.task, classes=self.classes, **self.config
        )

    def train(self) -> Position:
        return Training(
            segmenter=self.segmenter, method=self.attached, images=self.source, protocol=self.rules, task=self.task,
            num_classes=self.classes, seed=self.seed, folder=self.folder, identity="tiny",
            validate=self.validate or self.scores, metric="iou", device=CPU,
            embeddings=self.embeddings, stop=self.stop or StopRequest(), report=self.report,
            code=self.code, machine=self.machine,
        ).run()  # fmt: skip

    def scores(self) -> dict[str, float]:
        """IoU on three images that are not trained on."""
        held_out = Discs(200, classes=self.classes)
        images = torch.from_numpy(np.stack([held_out.image(index) for index in (100, 101, 102)]))
        masks = torch.from_numpy(np.stack([held_out.mask_input(index) for index in (100, 101, 102)])) > 0
        batch = normalise(images, self.rules.pixels)
        predicted = probabilities(self.segmenter(batch), (SIZE, SIZE))
        marked = predicted > 0.5 if self.task == "binary" else predicted.argmax(dim=1) > 0
        return {"iou": float((marked & masks).sum() / (marked | masks).sum())}


def stop_at(folder: Path, *, at: dict[str, Any], **run: Any) -> None:
    """Train until the progress is ``at``, where a stop is requested and heard."""
    stop = StopRequest()

    def look(progress: dict[str, Any]) -> None:
        if progress.items() >= at.items():
            stop.request()

    with pytest.raises(Interrupted, match="repeat the command to continue"):
        Run(folder=folder, stop=stop, report=look, **run).train()


def scripted(*values: float) -> Any:
    """A validation that returns these scores one after the other."""
    left = iter(values)
    return lambda: {"iou": next(left)}


def summary(run: Run) -> dict[str, Any]:
    """Train; what must not depend on interruptions: every number except times and memory."""
    result = run.train()
    untimed = [{key: value for key, value in entry.items() if key != "seconds"} for entry in result.history]
    return {
        "history": untimed, "architecture": result.architecture, "selected": result.best_epoch,
        "steps": result.cost()["steps"], "best": hashlib.sha256((run.folder / BEST).read_bytes()).hexdigest(),
        "last": hashlib.sha256((run.folder / LAST).read_bytes()).hexdigest(),
    }  # fmt: skip
