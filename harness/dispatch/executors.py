"""One interface over three ways to run jobs: `inline` (this process), `local` (worker processes here), `slurm` (job arrays).

    executor = make_executor("local", results=root, workers=2)
    submission = executor.submit(jobs, command="python -m harness.run …")
    survey = executor.wait(submission, on_change=show)

All three run `harness.dispatch.worker` on every job, so leases, attempts, logs and records are the same. A worker calls
``harness.dispatch.job.execute(job)`` under the lease of the run's key. What a job must offer (`harness.dispatch.job.Job`, free of torch
until `execute` runs): ``job.run`` (`harness.records.schema.Run`), ``job.results`` (the results root), ``job.as_json()`` and
``Job.from_json(data)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from harness.dispatch.job import Job


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What `Executor.submit` did.

    Args:
        sweep: id of the sweep, empty when there was nothing to submit.
        keys: runs handed to workers by this call.
        elsewhere: key -> who has it already (another sweep's queued job, a live worker); these are not submitted again.
        job_ids: SLURM or process ids.
        next_steps: lines to print: what runs where, and the command that shows or stops it.
    """

    sweep: str
    keys: tuple[str, ...]
    elsewhere: dict[str, str]
    job_ids: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()


class Executor(ABC):
    """Takes jobs, runs each once, leaves records.

    Args:
        results: the results root; state goes to ``results/state`` and ``results/sweeps``.
    """

    name: ClassVar[str]
    detached: ClassVar[bool] = False
    """True where work goes on after this process ends (SLURM); then `wait` is optional."""

    def __init__(self, *, results: Path) -> None:
        self.results = results

    @abstractmethod
    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        """Write the intent to disk and hand the jobs over. Jobs that have an OK record or run elsewhere are left out.

        Args:
            jobs: what to run.
            command: the command line, kept with the sweep.

        Raises:
            UsageError: the cluster refuses (partition, time limit, quota …); what was submitted before stays known.
        """

    @abstractmethod
    def wait(self, submission: Submission, *, on_change: Callable[[dict[str, str]], None] | None = None) -> dict[str, str]:
        """Block until every run of the submission has a record or cannot get one; returns key -> state.

        Args:
            on_change: called with key -> state (``queued``, ``running``, ``OK``, ``OOM``, ``interrupted`` …) whenever one changes.
        """


def describe(executor: Executor) -> str:
    """One line that says where runs will go."""
    return f"executor: {executor.name}"
