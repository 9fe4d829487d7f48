"""A run with where its inputs lie and where its results go: all that a worker needs. Free of torch until `execute` runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.records.schema import Record, Run

if TYPE_CHECKING:
    from harness.training.outcome import StopRequest

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


def execute(
    job: Job,
    *,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
    complete: Callable[[Record], Record] = lambda record: record,
) -> Record:
    """Build, attach, train, select, test (unmerged and merged), write one record; see `harness.dispatch.experiment`.

    A failure becomes a record with its reason code. An interruption (time limit, preemption, Ctrl-C) leaves a checkpoint and no record, and
    raises `harness.training.outcome.Interrupted`.

    Args:
        job: what to do.
        progress: is told where the run is.
        stop: asks for an early, resumable end; a worker's signal handlers set it.
        complete: applied to the record, of success or failure, just before it is written: the worker adds what only it knows (attempts,
            GPU-hours of all of them, the code snapshot).
    """
    from harness.dispatch.experiment import run_experiment

    return run_experiment(job, progress=progress, stop=stop, complete=complete)
