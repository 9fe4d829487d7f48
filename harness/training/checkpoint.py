"""A run's state: its position, resumable checkpoints, and the trained tensors of the best and the last epoch.

``FOLDER/checkpoint.pt`` holds what a run needs to continue, including the best state so far; ``best.safetensors`` and ``last.safetensors``
are training's results. Each is written to a temporary file, synced and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import statistics
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.archive.schema import update_budget
from harness.models.checkpoint import read_tensors, require_unpacked
from harness.system.errors import UsageError, shortened
from harness.system.files import replace_atomically

FORMAT = "sam-peft-harness checkpoint 2"
CHECKPOINT = "checkpoint.pt"
BEST = "best.safetensors"
LAST = "last.safetensors"
_METADATA = "sam-peft-harness"


@dataclass(kw_only=True)
class Position:
    """The position of a run; all of it is saved in checkpoints as plain data.

    Args:
        epoch, step: epochs done, and updates done in the one that follows.
        losses, lr, updates, epoch_seconds: of this epoch: losses of its updates, latest rate of the weights, updates by
            roles, and their seconds.
        alpha_lr_sum: the architecture's rate, summed over its updates so far.
        best_epoch, best_value: 1-based epoch with the best validation score so far, 0 before the first, and its score.
        history: one entry per epoch: ``epoch`` (1-based), ``loss`` (mean over updates), ``lr`` (of the weights, last update), ``val``
            (metrics, empty where not validated), ``seconds``, ``updates`` (by role).
        architecture: one entry per epoch: site -> softmax(α); empty for methods without.
        step_times: seconds of each update by role.
        waits: seconds that each update waited for its images.
        train_seconds, wall_seconds: in updates, and in total.
        peak: bytes at the highest point of training.
        threads: threads of the process that wrote the checkpoint.
        codes, machines: of all attempts of the run so far (`harness.training.loop.Training`), one entry for each change.
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

    def count_pass(self, role: str, *, loss: float, seconds: float, waited: float, timed: bool, made: bool) -> None:
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
        """``step_time_s`` (median over all passes, two in a step of weights and α; ``step_time_weights_s`` and
        ``step_time_architecture_s`` by role), ``data_wait_s`` (median), ``peak_memory_bytes``, ``train_time_s`` (updates), ``wall_time_s``
        (with validation), ``steps`` (updates)."""
        every = [seconds for times in self.step_times.values() for seconds in times]
        cost = {
            "step_time_s": statistics.median(every or [0.0]),
            "data_wait_s": statistics.median(self.waits or [0.0]),
            "peak_memory_bytes": float(self.peak),
            "train_time_s": self.train_seconds,
            "wall_time_s": self.wall_seconds,
            "steps": float(sum(sum(entry["updates"].values()) for entry in self.history)),
        }
        if len(self.step_times) > 1:
            cost |= {f"step_time_{role}_s": statistics.median(times) for role, times in self.step_times.items()}
        return cost

    def budget(self) -> dict[str, float]:
        """See `harness.archive.schema.Record`."""
        operations = max(map(len, self.architecture[-1].values()), default=0) if self.architecture else 0
        return update_budget(self.history, alpha_lr_sum=self.alpha_lr_sum, operations=operations)


class CheckpointFile:
    """The newest checkpoint of one run.

    Args:
        folder: the run's state folder.
        identity: the run's key; a checkpoint of another run is refused.
        data: the fingerprint of the files that it trains on, empty where none is known; a checkpoint of others is refused.
    """

    def __init__(self, folder: Path, *, identity: str, data: str = "") -> None:
        self._path, self._identity, self._data = folder / CHECKPOINT, identity, data

    def save(self, content: dict[str, Any]) -> None:
        """Write ``content`` (tensors, numbers, strings, lists, dicts). A crash at any point leaves this checkpoint or the one before."""
        whole = {"format": FORMAT, "identity": self._identity, "data": self._data, **content}
        replace_atomically(self._path, lambda path: torch.save(whole, path))

    def load(self) -> tuple[dict[str, Any] | None, str]:
        """The checkpoint, or None and a line that says why there is no usable one.

        An unusable file is set aside as ``NAME.unusable``. Half-written files of a process that was killed are deleted.

        Raises:
            OSError: a file is there and the system does not let us read it.
        """
        for stale in self._path.parent.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        if not self._path.exists():
            return None, ""
        try:
            return self._read(self._path), ""
        except UsageError as error:
            aside = self._path.with_name(f"{self._path.name}.unusable")
            os.replace(self._path, aside)
            return None, f"{error}; set aside as {aside.name}, and the run restarts from the beginning"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            require_unpacked(path)
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise UsageError(f"{path} is damaged at {damaged}")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # a permission, or a server that did not answer: the file may be whole
            raise UsageError(f"{path} is truncated or not a checkpoint ({type(error).__name__})") from error
        except pickle.UnpicklingError as error:
            raise UsageError(f"{path} holds code, which is never loaded") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UsageError(f"{path} is not a checkpoint of this version of the harness")
        if content["identity"] != self._identity:
            raise UsageError(f"{path} belongs to run {content['identity']}, not to {self._identity}")
        if self._data and content.get("data", "") not in ("", self._data):
            raise UsageError(f"{path} was trained on images or masks that have changed since")
        return content


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trained tensors as they are now, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def write_state(path: Path, state: dict[str, Tensor], *, identity: str, epoch: int) -> None:
    """Write trained tensors (`harness.methods.base.Method.state`) as a safetensors file that names their run and epoch."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One entry: safetensors writes several in a random order, and equal states should be equal files.
    metadata = {_METADATA: json.dumps({"identity": identity, "epoch": epoch})}
    replace_atomically(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def read_state(path: Path, *, identity: str) -> dict[str, Tensor]:
    """The trained tensors of the run with the key ``identity``.

    Raises:
        UsageError: the file is another run's, or is not a state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            owner = str(json.loads((file.metadata() or {})[_METADATA])["identity"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError):
        owner = ""
    if owner != identity:
        of = f"is the state of run {shortened(owner)}" if owner else "is damaged or belongs to no run"
        raise UsageError(
            f"{path} {of}, not that of {identity}; put that back, or train it in another folder (--results)"
        )
    return read_tensors(path)
