"""Runs on a SLURM cluster: one job array for each resource shape, through submitit.

The intent is on disk before sbatch, under a name that nothing else has. Nothing has to happen after sbatch for the jobs to
run: a task finds its job in the intent by its array index. So a submitter that dies at any point loses nothing, and the next
one asks the cluster for the name before it submits anything.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.dispatch.attempts import LEASE_SECONDS, Held, Holder, Lease, attempts, state_folder
from harness.dispatch.executors import Executor, ShowStates, Submission, attempt_limits
from harness.dispatch.local import beating, begin_sweep, freeze, worker_command, writing
from harness.dispatch.profile import ClusterProfile, Shape, as_data, minutes
from harness.dispatch.reconcile import reconcile
from harness.dispatch.slurm import Refused, Slurm, Task, Unreachable, one_line, patiently
from harness.dispatch.survey import INTERRUPTED, LOST, RunState, survey
from harness.dispatch.sweeps import Chunk, Limits, create_chunk, read_chunks, sweeps_folder
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.dispatch.job import Job

POLL_S = 2.0


class SlurmExecutor(Executor):
    """Submits job arrays and, if asked to wait, submits again what the cluster ended.

    Args:
        profile: what a job asks for.
    """

    name: ClassVar[str] = "slurm"
    detached: ClassVar[bool] = True

    def __init__(self, *, results: Path, profile: ClusterProfile) -> None:
        super().__init__(results=results)
        self.profile = profile
        self.slurm = Slurm(patience_s=profile.patience_seconds)
        self.slurm.require()
        self._jobs: dict[str, Job] = {}
        self._limits: dict[str, Limits] = {}

    def describe(self) -> str:
        partition = self.profile.partition or "its default partition"
        return f"slurm: profile {self.profile.name}, {partition}, at most {self.profile.parallelism} runs at once"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        self._jobs |= {job.run.key: job for job in jobs}
        shapes = self._by_shape(jobs)  # a wrong profile is found before anything is written
        with writing(self.results), self._alone():
            tasks = self.slurm.tasks()
            reconcile(self.results, self.slurm, tasks=tasks)
            elsewhere = self._elsewhere(tasks, {job.run.key for job in jobs})
            wanted = {shape: [job for job in group if job.run.key not in elsewhere] for shape, group in shapes.items()}
            keys = tuple(job.run.key for group in wanted.values() for job in group)
            if not keys:
                return Submission(sweep="", keys=(), elsewhere=elsewhere)
            limits = attempt_limits(self.results, keys, allowed=self.profile.max_attempts) | {
                key: limit for key, limit in self._limits.items() if key in keys
            }
            self._limits |= limits
            chunks = self._write_intent(wanted, limits, command)
            job_ids = []
            for chunk in chunks:
                try:
                    job_ids.append(self._sbatch(chunk).job)
                except Unreachable:
                    raise  # whether it was submitted is not known; the next command finds out
                except UsageError as error:
                    for unsent in chunks[len(job_ids) :]:
                        unsent.close("abandoned")
                    raise UsageError(_refusal(error, chunks, job_ids)) from error
        return Submission(sweep=chunks[0].sweep, keys=keys, elsewhere=elsewhere, job_ids=tuple(job_ids))

    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        """As `Executor.wait`; runs that the cluster ended (preempted without requeue, lost with their node, out of time) are
        submitted again, within ``max_attempts``."""
        keys = [*submission.keys, *submission.elsewhere]
        while True:
            tasks = self.slurm.tasks()
            runs = survey(self.results, tasks=tasks, keys=keys).runs
            if on_change is not None:
                on_change(runs)
            if not any(run.unsettled for run in runs.values()):
                with self._alone():
                    tasks = self.slurm.tasks()
                    reconcile(self.results, self.slurm, tasks=tasks)
                runs = survey(self.results, tasks=tasks, keys=keys).runs
                again = [
                    self._jobs[key]
                    for key, run in runs.items()
                    if run.state in (INTERRUPTED, LOST) and key in self._jobs
                ]
                if not again:
                    if on_change is not None:
                        on_change(runs)
                    return runs
                print(f"{len(again)} runs were ended by the cluster; submitting them again", file=sys.stderr)
                self.submit(again, command="resubmission")
            time.sleep(POLL_S)

    def cancel(self, keys: Sequence[str]) -> list[str]:
        """Cancel the queued and running jobs of these runs and no others; returns their names."""
        wanted = set(keys)
        with self._alone():
            tasks = self.slurm.tasks()
            reconcile(self.results, self.slurm, tasks=tasks)
            cancelled: list[str] = []
            whole: list[str] = []
            for chunk in read_chunks(self.results, open_only=True):
                mine = [chunk.on_cluster(tasks, index) for index, run in enumerate(chunk.runs) if run.key in wanted]
                active = [task.job for task in mine if task is not None and task.active]
                if not active:
                    continue
                if len(mine) == len(chunk.runs):
                    whole.append(chunk.job)
                    chunk.close("cancelled")
                else:
                    whole += active
                cancelled += active
            self.slurm.cancel(whole)
        return cancelled

    def _by_shape(self, jobs: Sequence[Job]) -> dict[Shape, list[Job]]:
        groups: dict[Shape, list[Job]] = {}
        for job in jobs:
            groups.setdefault(self.profile.shape(job.run.backbone), []).append(job)
        return groups

    def _elsewhere(self, tasks: Mapping[str, Task], keys: set[str]) -> dict[str, str]:
        """Runs that are queued or running already, and where."""
        found = {}
        for chunk in read_chunks(self.results, open_only=True):
            for index, run in enumerate(chunk.runs):
                task = chunk.on_cluster(tasks, index)
                if run.key in keys and task is not None and task.active:
                    found[run.key] = f"is {task.state.lower()} as job {task.job} of sweep {chunk.sweep}"
        for key in keys - found.keys():
            starts = attempts(state_folder(self.results, key))
            if starts and starts[-1].live():
                found[key] = f"runs in process {starts[-1].holder.pid} on {starts[-1].holder.host}"
        return found

    def _write_intent(
        self, wanted: Mapping[Shape, list[Job]], limits: Mapping[str, Limits], command: str
    ) -> list[Chunk]:
        everything = [job for group in wanted.values() for job in group]
        folder = Path(self.profile.snapshot_folder) if self.profile.snapshot_folder else self.results / "snapshots"
        frozen, everything = freeze(folder.absolute(), everything)
        frozen_jobs = {job.run.key: job for job in everything}
        _, place = begin_sweep(
            self.results, executor=self.name, command=command, frozen=frozen, settings=as_data(self.profile)
        )
        (place / "logs").mkdir()
        largest = min(self.profile.max_array_size, (self.slurm.max_array_size() or 1001) - 1)
        chunks: list[Chunk] = []
        for shape, group in wanted.items():
            for start in range(0, len(group), largest):
                part = [frozen_jobs[job.run.key] for job in group[start : start + largest]]
                data = {**asdict(shape), "gpus": shape.gpus}
                chunks.append(create_chunk(place, number=len(chunks), jobs=part, shape=data, limits=limits))
        self._frozen = frozen
        return chunks

    def _sbatch(self, chunk: Chunk) -> Chunk:
        """Submit a chunk, once: where the controller's answer is lost, it is asked for the name before another try."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = _array(chunk, self.profile, self._frozen)
        tried = False

        def ask() -> str:
            nonlocal tried
            if tried and (known := self.slurm.ids_by_name([chunk.name])):
                return known[chunk.name]
            tried = True
            try:
                return str(executor.begin().job_id)
            except (FailedJobError, FailedSubmissionError) as error:
                raise Refused(one_line("sbatch", str(error))) from error

        job = patiently(ask, patience_s=self.profile.patience_seconds, say=lambda line: print(line, file=sys.stderr))
        return chunk.answered(job)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One submitter at a time for one results folder; a dead one is replaced."""
        folder = sweeps_folder(self.results) / ".submitting"
        deadline = time.monotonic() + self.profile.patience_seconds
        told = False
        while True:
            try:
                lease = Lease.acquire(folder, holder=Holder.here(), lease_s=LEASE_SECONDS)
                break
            except Held as held:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"another submission is under way here ({held}); try again when it is done"
                    ) from held
                if not told:
                    print(f"waiting for another submission ({held})", file=sys.stderr)
                    told = True
                time.sleep(0.3)
        try:
            with beating(lease):
                yield
        finally:
            lease.release("finished")
            for number in range(max(1, lease.attempt.number - 20), lease.attempt.number):
                for path in (folder / f"attempt.{number}.json", folder / f"attempt.{number}.end.json"):
                    path.unlink(missing_ok=True)


def _array(chunk: Chunk, profile: ClusterProfile, frozen: Path) -> Any:
    """submitit's executor for one chunk, with our worker as command: the chunk on disk takes the place of pickles."""
    from submitit import SlurmExecutor as SubmititSlurm

    python = profile.python or shlex.quote(sys.executable)
    command = worker_command(chunk, frozen, python=python, variables={})

    class Array(SubmititSlurm):
        def begin(self) -> Any:
            return self._submit_command(command)

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            # Inside a job, sbatch would inherit that job's limits from the environment.
            inherited = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
            return ["env", *(f"--unset={name}" for name in inherited), "sbatch", str(submission_file_path)]

    shape = Shape(**{name: value for name, value in chunk.shape.items() if name != "gpus"})
    executor = Array(folder=chunk.path.parent / "logs")
    options: dict[str, Any] = {
        "account": shape.account,
        "partition": shape.partition,
        "qos": shape.qos,
        "gres": shape.gres,
        "constraint": shape.constraint,
        "mem": shape.mem,
    }
    executor.update_parameters(
        **{name: value for name, value in options.items() if value},
        job_name=chunk.name,
        comment=chunk.sweep,
        time=minutes(shape.time),
        nodes=1,
        ntasks_per_node=shape.gpus_per_run,
        cpus_per_task=shape.cpus,
        signal_delay_s=profile.signal_seconds,
        array_parallelism=profile.parallelism,
        stderr_to_stdout=True,
        setup=list(profile.setup),
        # The step may be killed as a whole; what it could not say is said after it.
        teardown=["status=$?", f"{command} --after $status", "exit $?"],
        # since SLURM 22.05 srun does not inherit the CPUs of a task
        srun_args=[f"--cpus-per-task={shape.cpus}", *(["--kill-on-bad-exit=1"] if shape.gpus_per_run > 1 else [])],
        additional_parameters={"requeue": True, **{k: v == "true" or v for k, v in profile.extra.items()}},
        wckey=None,
    )
    executor.parameters["map_count"] = len(chunk.runs)
    return executor


def _refusal(error: UsageError, chunks: Sequence[Chunk], job_ids: Sequence[str]) -> str:
    text = str(error)
    hints = {
        "qos": "your quota of submitted jobs or its QOS forbids it; wait for jobs to end, or set --set cluster.qos=NAME",
        "partition": "choose one of sinfo's with --set cluster.partition=NAME",
        "time limit": "lower it with --set cluster.time=2h; a run continues from its checkpoint",
        "account": "set it with --set cluster.account=NAME",
        "writing": "the controller's disk is full; tell its administrator, then give the same command again",
        "memory": "lower it with --set cluster.mem=16G",
        "node configuration": "no node has so many CPUs, GPUs or so much memory; lower them with --set cluster.KEY=VALUE",
    }
    hint = next(
        (hint for word, hint in hints.items() if word in text.lower()),
        "nothing is lost; mend it and give the same command again",
    )
    done = (
        f"; {len(job_ids)} of {len(chunks)} arrays are submitted ({', '.join(job_ids)})"
        if job_ids
        else "; nothing was submitted"
    )
    return f"{text}{done}; {hint}"
