"""A run with where its inputs lie and where its results go: all that a worker needs. Free of torch until `execute` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.records.schema import Record, Run

Progress = Callable[[dict[str, Any]], None]
"""Called now and then with ``stage`` (``training``, ``testing`` …), ``epoch``, ``epochs``, ``step``, ``steps``, ``loss``."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to execute.

    Args:
        run: what to do.
        dataset_root: the benchmark's folder.
        checkpoint: path of the pretrained weights, empty for random weights.
        results: results folder.
        plugins: plug-in files to load first.
    """

    run: Run
    dataset_root: str
    checkpoint: str
    results: str
    plugins: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "run": Run(**data["run"]), "plugins": tuple(data.get("plugins", ()))})


def execute(job: Job, *, progress: Progress | None = None) -> Record:
    """Build, attach, train, select, test (unmerged and merged), write one record; see `harness.dispatch.experiment`.

    A failure becomes a record with its reason code. An interruption (time limit, preemption, Ctrl-C) leaves a checkpoint and no record, and
    raises `harness.training.loop.Interrupted`.
    """
    from harness.dispatch.experiment import run_experiment

    return run_experiment(job, progress=progress)
