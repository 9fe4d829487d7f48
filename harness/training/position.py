"""A run's position in its epochs, and what it has recorded so far: all of a checkpoint that is not a tensor."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(kw_only=True)
class Position:
    """Everything here goes into a checkpoint as plain data and comes back from it.

    Args:
        epoch, step: epochs done, and updates done in the one that follows.
        losses, lr, updates, epoch_seconds: of this epoch: losses of its updates, latest rate of the weights, updates by
            roles, and their seconds.
        alpha_lr_sum: the architecture's rate, summed over its updates so far.
        best_epoch, best_value: 1-based epoch with the best validation score so far, 0 before the first, and its score.
        history, architecture: see `harness.training.outcome.TrainingResult`.
        step_times: seconds of each update by role.
        waits: seconds that each update waited for its images.
        train_seconds, wall_seconds: in updates, and in all.
        peak: bytes at the highest point of training.
        threads: of the process that wrote the checkpoint.
        codes, machines: of all starts of the run so far (`Assignment.code`, `Assignment.machine`), one entry for each change.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    lr: float = 0.0
    updates: dict[str, int] = field(default_factory=dict)
    epoch_seconds: float = 0.0
    alpha_lr_sum: float = 0.0
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    architecture: list[dict[str, list[float]]] = field(default_factory=list)
    step_times: dict[str, list[float]] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak: int = 0
    threads: int = 0
    codes: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)

    def count_update(self, role: str, *, loss: float, seconds: float, waited: float, timed: bool, made: bool) -> None:
        """One more step of ``role`` is done, an update where it was ``made`` and not skipped by fp16's scaler; its time enters
        the medians where ``timed``."""
        self.losses.append(loss)
        self.updates[role] = self.updates.get(role, 0) + made
        self.epoch_seconds += seconds
        self.train_seconds += seconds
        if timed:
            self.step_times.setdefault(role, []).append(seconds)
            self.waits.append(waited)

    def out_of_patience(self, patience: int) -> bool:
        """Whether none of the latest ``patience`` validations was better than the best before them; never for 0."""
        since = sum(bool(entry["val"]) for entry in self.history if entry["epoch"] > self.best_epoch)
        return 0 < patience <= since

    def mean_loss(self) -> float:
        return statistics.fmean(self.losses)

    def after_epoch(self, metrics: dict[str, float], *, architecture: dict[str, list[float]]) -> Position:
        """The position at the start of the next epoch, with this one in the history."""
        entry = {
            "epoch": self.epoch + 1,
            "loss": self.mean_loss(),
            "lr": self.lr,
            "val": metrics,
            "seconds": self.epoch_seconds,
            "updates": self.updates,
        }
        return replace(
            self,
            epoch=self.epoch + 1,
            step=0,
            losses=[],
            updates={},
            epoch_seconds=0.0,
            history=[*self.history, entry],
            architecture=[*self.architecture, *([architecture] if architecture else [])],
        )

    def cost(self) -> dict[str, float]:
        """See `harness.training.outcome.TrainingResult`."""
        every = [seconds for times in self.step_times.values() for seconds in times]
        cost = {
            "step_time_s": _median(every),
            "data_wait_s": _median(self.waits),
            "peak_memory_bytes": float(self.peak),
            "train_time_s": self.train_seconds,
            "wall_time_s": self.wall_seconds,
            "steps": float(sum(sum(entry["updates"].values()) for entry in self.history)),
        }
        if len(self.step_times) > 1:
            cost |= {f"step_time_{role}_s": _median(times) for role, times in self.step_times.items()}
        return cost


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
