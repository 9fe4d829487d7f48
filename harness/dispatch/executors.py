"""One interface over three ways to run jobs: `inline` (this process), `local` (worker processes here), `slurm` (job arrays).

    outcome = run_jobs(planned, results=root, executor=None, workers=None, cluster="gpu", …)

or, below that,

    executor = make_executor("local", results=root, workers=2)
    submission = executor.submit(jobs, command="python -m harness.run …")
    runs = executor.wait(submission, on_change=show)

All three run jobs under the lease of the run's key, with the same attempts, logs, states and records.
"""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.dispatch.attempts import attempts, state_folder
from harness.dispatch.survey import INTERRUPTED, RunState
from harness.dispatch.sweeps import Limits
from harness.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.dispatch.job import Job
    from harness.dispatch.profile import ClusterProfile

ShowStates = Callable[[Mapping[str, RunState]], None]

RETRY_CLASSES = ("oom", "timeout", "preempted", "node_fail", "diverged", "no_data", "error")
LOCAL_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What `Executor.submit` did.

    Args:
        sweep: id of the sweep, empty when there was nothing to submit.
        keys: runs handed to workers by this call.
        elsewhere: key -> who has it already (another sweep's queued job, a live worker); these are not submitted again.
        job_ids: SLURM or process ids.
    """

    sweep: str
    keys: tuple[str, ...]
    elsewhere: dict[str, str]
    job_ids: tuple[str, ...] = ()


class Executor(ABC):
    """Takes jobs, runs each once, leaves records.

    Args:
        results: the results root; state goes to ``results/state`` and ``results/sweeps``.
    """

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
            jobs: what to run.
            command: the command line, kept with the sweep.

        Raises:
            UsageError: the cluster refuses (partition, time limit, quota …); what was submitted before stays known.
        """

    @abstractmethod
    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        """Block until every run of the submission has a record or cannot get one; returns key -> state.

        Args:
            on_change: told the states now and then.
        """


class Planned(Protocol):
    """What `run_jobs` needs of `harness.dispatch.plan.Plan`."""

    @property
    def jobs(self) -> tuple[Job, ...]: ...
    @property
    def finished(self) -> Collection[str]: ...
    @property
    def failed(self) -> Mapping[str, str]: ...
    @property
    def request(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Args:
        submitted: True where runs go on without this process; then there is no table to print yet.
        failed: key -> reason code or state of runs that have no success.
    """

    submitted: bool
    failed: dict[str, str]


def make_executor(
    name: str,
    *,
    results: Path,
    workers: int | None = None,
    cluster: str | None = None,
    cluster_overrides: Mapping[str, Any] | None = None,
    request: str = "",
) -> Executor:
    """An executor by name; ``slurm`` needs the ``cluster`` profile's name, and tells sweeps apart by ``request``.

    Raises:
        UsageError: unknown name or profile, a wrong override, no sbatch.
    """
    if name == "inline":
        from harness.dispatch.local import InlineExecutor

        return InlineExecutor(results=results)
    if name == "local":
        from harness.dispatch.local import LocalExecutor

        return LocalExecutor(results=results, workers=workers)
    if name == "slurm":
        from harness.dispatch.arrays import SlurmExecutor

        profile = cluster_profile(cluster, cluster_overrides)
        return SlurmExecutor(results=results, profile=profile, request=request)
    raise UsageError(f"unknown executor {name!r}{did_you_mean(name, ('inline', 'local', 'slurm'))}")


def executor_name(
    executor: str | None, *, workers: int | None, cluster: str | None, cluster_overrides: Mapping[str, Any] | None
) -> str:
    """Which executor the options of a command line ask for.

    Raises:
        UsageError: they contradict each other.
    """
    if cluster and executor not in (None, "slurm"):
        raise UsageError(f"--cluster {cluster} and --executor {executor} contradict each other; give one of them")
    if cluster_overrides and not cluster:
        raise UsageError(f"--set cluster.{next(iter(cluster_overrides))} needs --cluster NAME")
    name = "slurm" if cluster else executor or "local"
    if workers is not None and name != "local":
        raise UsageError(f"--workers is for worker processes here, not for the executor {name}")
    return name


def cluster_profile(cluster: str | None, overrides: Mapping[str, Any] | None) -> ClusterProfile:
    """The profile that ``--cluster`` names, with ``--set cluster.KEY=VALUE`` in it.

    Raises:
        UsageError: none is named, or `harness.dispatch.profile.load_profile` refuses it.
    """
    from harness.dispatch.profile import load_profile

    if not cluster:
        raise UsageError("--executor slurm needs --cluster NAME (a profile in slurm/profiles, or the path of one)")
    return load_profile(cluster, overrides)


def run_jobs(
    planned: Planned,
    *,
    results: Path,
    executor: str | None,
    workers: int | None,
    cluster: str | None,
    cluster_overrides: Mapping[str, str],
    wait: bool,
    retry: str | None,
    cancel: bool,
) -> Outcome:
    """Run what is not finished, or cancel it; prints where runs go and how they fare.

    Without ``cluster``, runs that failed before are started again; on a cluster only those that ``retry`` names, because a
    queue is dear. Runs that were interrupted always continue.

    Raises:
        UsageError: contradicting options, or what `make_executor` and `Executor.submit` raise.
    """
    from harness.dispatch.display import Display

    name = executor_name(executor, workers=workers, cluster=cluster, cluster_overrides=cluster_overrides)
    chosen = make_executor(
        name,
        results=results,
        workers=workers,
        cluster=cluster,
        cluster_overrides=cluster_overrides,
        request=planned.request,
    )
    if cancel:
        return _cancel(planned, chosen)
    again = _to_retry(planned, results, retry, everything=not chosen.detached)
    pending = [
        job
        for job in planned.jobs
        if job.run.key not in planned.finished and (job.run.key not in planned.failed or job.run.key in again)
    ]
    left_out = {key: code for key, code in planned.failed.items() if key not in again}
    if left_out:
        classes = ",".join(sorted({code.lower() for code in left_out.values()}))
        print(
            f"{len(left_out)} runs failed before and are not started again; --retry {classes} does that",
            file=sys.stderr,
        )
    if not pending:
        return Outcome(submitted=False, failed=left_out)
    print(chosen.describe(), file=sys.stderr)
    submission = chosen.submit(pending, command=shlex.join(["python", "-m", "harness.run", *sys.argv[1:]]))
    for key, who in list(submission.elsewhere.items())[:3]:
        print(f"not submitted again: {key} {who}", file=sys.stderr)
    if len(submission.elsewhere) > 3:
        print(f"not submitted again: {len(submission.elsewhere) - 3} more", file=sys.stderr)
    if chosen.detached:
        _say_next(submission, results)
        if not wait:
            return Outcome(submitted=True, failed=left_out)
    with Display(total=len(pending)) as display:
        states = chosen.wait(submission, on_change=display.show)
    _say_interrupted([state for state in states.values() if state.state == INTERRUPTED])
    failed = {key: state.state for key, state in states.items() if state.state != "OK"}
    return Outcome(submitted=False, failed={**left_out, **failed})


def attempt_limits(results: Path, keys: Collection[str], *, allowed: int) -> dict[str, Limits]:
    """The attempts of a new submission: ``allowed`` more than there were."""
    limits = {}
    for key in keys:
        starts = attempts(state_folder(results, key))
        before = starts[-1].number if starts else 0
        limits[key] = Limits(before=before, limit=before + allowed)
    return limits


def _say_next(submission: Submission, results: Path) -> None:
    if submission.keys:
        jobs = ", ".join(submission.job_ids)
        print(f"sweep {submission.sweep}: {len(submission.keys)} runs submitted (jobs {jobs})")
    else:
        print("nothing to submit: every run is finished, queued or running")
    print(f"watch:  python -m harness.status --results {results} --watch")
    print("cancel: the same command with --cancel")


def _say_interrupted(runs: Sequence[RunState]) -> None:
    if not runs:
        return
    names = "; ".join(f"{run.variant} on {run.benchmark}, seed {run.seed}" for run in runs[:3])
    more = f"; and {len(runs) - 3} more" if len(runs) > 3 else ""
    print(f"{len(runs)} interrupted: {names}{more}; run the same command again to go on", file=sys.stderr)


def _cancel(planned: Planned, executor: Executor) -> Outcome:
    from harness.dispatch.arrays import SlurmExecutor

    if not isinstance(executor, SlurmExecutor):
        raise UsageError("--cancel needs --cluster NAME; a local run is stopped with Ctrl-C")
    cancelled = executor.cancel([job.run.key for job in planned.jobs])
    print(
        f"cancelled {len(cancelled)} jobs"
        if cancelled
        else "nothing to cancel: no job that this command submitted is queued or running"
    )
    return Outcome(submitted=True, failed={})


def _to_retry(planned: Planned, results: Path, retry: str | None, *, everything: bool) -> set[str]:
    """Keys of failed runs that are to be started again."""
    if retry is None:
        return set(planned.failed) if everything else set()
    from harness.records.store import RecordStore

    wanted = {word.strip().lower().replace("-", "_") for word in retry.split(",") if word.strip()}
    for word in wanted - set(RETRY_CLASSES) - {"all"}:
        raise UsageError(f"--retry: unknown class {word!r}{did_you_mean(word, (*RETRY_CLASSES, 'all'))}")
    store = RecordStore(results)
    chosen = set()
    for key, code in planned.failed.items():
        record = store.summary(key)
        node_failed = record is not None and record.message.startswith("NODE_FAIL")
        if "all" in wanted or ("node_fail" if node_failed else code.lower()) in wanted:
            chosen.add(key)
    return chosen
