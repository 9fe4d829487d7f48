"""One interface over three ways to run jobs: `inline` (this process), `local` (worker processes here), `slurm` (job arrays).

    submission = executor.submit(jobs, command="python -m harness.run …")
    runs = executor.wait(submission, on_change=show)

All three run jobs under the lease of the run's key, with the same attempts, logs, states and records.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.dispatch.run_states import RunState

if TYPE_CHECKING:
    from harness.planning.job import Job

ShowStates = Callable[[Mapping[str, RunState]], None]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What `Executor.submit` did.

    Args:
        sweep: id of the sweep, empty when there was nothing to submit.
        keys: runs handed to workers by this call.
        elsewhere: key -> who has it already (another sweep's queued job, a live worker); these are not submitted again.
        ending: of these, runs whose job has ended or been cancelled while its process is still there.
        job_ids: SLURM or process ids.
    """

    sweep: str
    keys: tuple[str, ...]
    elsewhere: dict[str, str]
    ending: frozenset[str] = frozenset()
    job_ids: tuple[str, ...] = ()


class Executor(ABC):
    """Takes jobs, runs each once, leaves records. ``results``: the results root; state goes to ``results/state`` and
    ``results/sweeps``."""

    name: ClassVar[str]
    detached: ClassVar[bool] = False
    """True where work goes on after this process ends (SLURM); then `wait` is optional."""

    def __init__(self, *, results: Path) -> None:
        self.results = results.absolute()

    @abstractmethod
    def describe(self) -> str:
        """One line that says where and how runs go."""

    @abstractmethod
    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        """Write the intent to disk and hand the jobs over. Jobs that have a record or run elsewhere are left out.

        Args:
            command: the command line, kept with the sweep.

        Raises:
            UsageError: the cluster refuses (partition, time limit, quota …); what was submitted before stays known.
        """

    @abstractmethod
    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        """Block until every run of the submission has a record or cannot get one; returns key -> state. ``on_change``: told the
        states now and then."""
