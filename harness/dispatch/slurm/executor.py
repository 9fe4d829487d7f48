"""Runs on a SLURM cluster: one job array for each resource shape, through submitit.

The intent is on disk before sbatch, under a name that nothing else has. Nothing has to happen after sbatch for the jobs to
run: a task finds its job in the intent by its array index. So a submitter that dies at any point loses nothing, and the next
one asks the cluster for the name before it submits anything.

Where sbatch refuses, the message says what to do; it also names jobs that run and are not those of the command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.archive.schema import content_hash
from harness.dispatch.attempt_end import give_up
from harness.dispatch.attempts import LEASE_SECONDS, Held, Holder, Lease, attempts, beating, state_folder
from harness.dispatch.executor import Executor, ShowStates, Submission
from harness.dispatch.queue import Task
from harness.dispatch.run_states import INTERRUPTED, LOST, RunState, survey
from harness.dispatch.slurm.client import Refused, Slurm, Unreachable, client_message, patiently
from harness.dispatch.slurm.profile import ClusterProfile, Shape, minutes
from harness.dispatch.slurm.reconcile import reconcile, submitted_by_us
from harness.dispatch.snapshot import freeze, worker_arguments
from harness.dispatch.sweeps import (
    AttemptLimits,
    Chunk,
    Sweep,
    attempt_limits,
    begin_sweep,
    create_chunk,
    job_log,
    read_chunks,
    read_sweep,
    sweeps_folder,
    writing,
)
from harness.system.errors import UsageError
from harness.system.files import own_folder, write_atomically
from harness.system.text import counted

if TYPE_CHECKING:
    from harness.planning.job import Job

POLL_S = 2.0
MOST_POLL_S = 30.0
"""Between two looks at the queue: the first soon after submitting, then ever more rarely, since squeue asks for the whole cluster's."""
ENDING_S = 60.0
"""A submission waits so long for jobs that are ending: a cancelled one has 30 s for it (SLURM's KillWait, unless it is configured)."""


class SlurmExecutor(Executor):
    """Submits job arrays and, if asked to wait, submits again what the cluster ended.

    Args:
        request: identity of the grid that the command asks for; empty takes the runs of each call for the whole of it.
    """

    name: ClassVar[str] = "slurm"
    detached: ClassVar[bool] = True

    def __init__(self, *, results: Path, profile: ClusterProfile, request: str = "") -> None:
        super().__init__(results=results)
        self.profile = profile
        self.request = request
        self.slurm = Slurm(patience_s=profile.patience_seconds)
        self.slurm.require()
        self._jobs: dict[str, Job] = {}
        self._limits: dict[str, AttemptLimits] = {}
        self._submissions: Counter[str] = Counter()
        self._cancelled: set[str] = set()
        self._origin = {"command": "", "request": request}

    def describe(self) -> str:
        partition = self.profile.partition or "its default partition"
        return f"slurm: profile {self.profile.name}, {partition}, at most {self.profile.parallelism} runs of an array at once"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        self._jobs |= {job.run.key: job for job in jobs}
        self._origin = {"command": command, "request": self._request_of(job.run.key for job in jobs)}
        return self._submit(jobs)

    def _submit(self, jobs: Sequence[Job]) -> Submission:
        shapes = self._by_shape(jobs)  # a wrong profile is found before anything is written
        sent: list[str] = []
        with writing(self.results, sent=sent), self._alone():
            elsewhere, ending = self._elsewhere({job.run.key for job in jobs})
            groups = {shape: [job for job in group if job.run.key not in elsewhere] for shape, group in shapes.items()}
            keys = tuple(job.run.key for group in groups.values() for job in group)
            if not keys:
                return Submission(sweep="", keys=(), elsewhere=elsewhere, ending=ending)
            limits = attempt_limits(self.results, keys, allowed=self.profile.max_attempts) | {
                key: limit for key, limit in self._limits.items() if key in keys
            }
            self._limits |= limits
            chunks = self._write_intent(groups, limits)
            self._submissions.update(keys)
            job_ids = []
            for chunk in chunks:
                sent.append(chunk.name)
                try:
                    job_ids.append(self._sbatch(chunk).job)
                except Unreachable:
                    raise  # whether it was submitted is not known; the next command finds out
                except UsageError as error:
                    for unsent in chunks[len(job_ids) :]:
                        unsent.close("abandoned")
                    raise UsageError(refusal(error, chunks, job_ids)) from error
        return Submission(sweep=chunks[0].sweep, keys=keys, elsewhere=elsewhere, ending=ending, job_ids=tuple(job_ids))

    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        """As `Executor.wait`; runs that the cluster ended (preempted without requeue, lost with their node, out of time, gone
        before their worker began) are submitted again, ``max_attempts`` times at most; not what somebody cancelled."""
        keys = [*submission.keys, *submission.elsewhere]
        pause = POLL_S
        while True:
            chunks = list(read_chunks(self.results, open_only=True))
            tasks: Mapping[str, Task] = self.slurm.tasks(chunk.name for chunk in chunks)
            self._note_cancelled(chunks, tasks)
            runs = self._survey(keys, tasks)
            if on_change is not None:
                on_change(runs)
            if not any(run.unsettled for run in runs.values()):
                with self._alone():
                    tasks = reconcile(self.results, self.slurm)
                    self._give_up_spent(self._survey(keys, tasks))
                runs = self._survey(keys, tasks)
                again = [self._jobs[run.key] for run in runs.values() if self._ended_by_cluster(run)]
                if not again:
                    if on_change is not None:
                        on_change(runs)
                    return runs
                print(f"{len(again)} runs were ended by the cluster; submitting them again", file=sys.stderr)
                self._submit(again)
                pause = POLL_S
            time.sleep(pause)
            pause = min(1.2 * pause, MOST_POLL_S)

    def cancel(self, keys: Sequence[str], *, command: str = "") -> list[str]:
        """Cancel the queued and running jobs of the sweeps that the request for these runs made, or this very ``command`` when a card,
        data or code gave its runs other keys; and say what other sweeps have of these runs, or where nothing was cancelled, of any.
        Returns the names of the cancelled jobs."""
        request, requested = self._request_of(keys), set(keys)
        asked = asked_for(command)
        cancelled: list[str] = []
        whole: list[Chunk] = []
        left: dict[str, dict[str, str]] = {}
        with self._alone():
            tasks = reconcile(self.results, self.slurm)
            for chunk in read_chunks(self.results, open_only=True):
                chunk = chunk.found_in(tasks)
                sweep = read_sweep(chunk.path.parent)
                active = {
                    task.job: run.key
                    for index, run in enumerate(chunk.runs)
                    if (task := chunk.on_cluster(tasks, index)) is not None and task.active
                }
                is_own = sweep.request == request or bool(asked and asked_for(sweep.command) == asked)
                if active and is_own and submitted_by_us(sweep, self.slurm):
                    whole.append(chunk)
                    cancelled += active
                else:
                    left.setdefault(sweep.id, {}).update(active)
            self.slurm.cancel([chunk.job for chunk in whole])
            for chunk in whole:
                chunk.close("cancelled")
        for sweep_id, active in left.items():
            of_these = [job for job, key in active.items() if key in requested]
            if jobs := of_these or ([] if cancelled else list(active)):
                sweep = read_sweep(sweeps_folder(self.results) / sweep_id)
                of = "of these runs" if of_these else "of other runs"
                print(left_alone(sweep, jobs, of, user=self.slurm.user), file=sys.stderr)
        return cancelled

    def _request_of(self, keys: Iterable[str]) -> str:
        return self.request or content_hash(sorted(keys))

    def _survey(self, keys: Sequence[str], tasks: Mapping[str, Task]) -> Mapping[str, RunState]:
        return survey(self.results, tasks=tasks, keys=keys, cluster=self.slurm.cluster()).runs

    def _note_cancelled(self, chunks: Sequence[Chunk], tasks: Mapping[str, Task]) -> None:
        """While the queue says so: it forgets within minutes, and accounting may be off."""
        for chunk in chunks:
            for index, run in enumerate(chunk.runs):
                if (task := chunk.on_cluster(tasks, index)) is not None and task.state == "CANCELLED":
                    self._cancelled.add(run.key)

    def _ended_by_cluster(self, run: RunState) -> bool:
        return run.state in (INTERRUPTED, LOST) and run.key in self._jobs.keys() - self._cancelled

    def _give_up_spent(self, runs: Mapping[str, RunState]) -> None:
        """Write the record of runs that were submitted as often as they may be: starts of a worker are bounded elsewhere, but
        a job that dies before its worker begins counts as none."""
        for run in runs.values():
            count = self._submissions[run.key]
            if not self._ended_by_cluster(run) or count < self.profile.max_attempts:
                continue
            sweep = sweeps_folder(self.results) / run.sweep
            detail = f"submitted {count} times without finishing; {run.message} ({job_log(sweep, run.task)})"
            give_up(
                self.results,
                self._jobs[run.key].run,
                end="lost",
                detail=detail,
                starts=attempts(state_folder(self.results, run.key)),
                environment=read_sweep(sweep).environment,
                accounting=self.slurm,
            )

    def _by_shape(self, jobs: Sequence[Job]) -> dict[Shape, list[Job]]:
        groups: dict[Shape, list[Job]] = {}
        for job in jobs:
            shape = self.profile.shape(job.run.backbone)
            self._require_images(shape, job)
            groups.setdefault(shape, []).append(job)
        return groups

    def _require_images(self, shape: Shape, job: Job) -> None:
        """Every worker of a run needs an image of each forward pass; refused here and not after a night in the queue."""
        batch = int(job.run.rules.get("batch_size", shape.gpus_per_run))
        if shape.gpus_per_run > batch:
            raise UsageError(
                f"profile {self.profile.name} gives a run gpus_per_run: {shape.gpus_per_run}, and {job.run.protocol} has batches "
                f"of {batch} images to share among them (batch_size); add --set cluster.gpus_per_run={batch}"
            )

    def _elsewhere(self, keys: set[str]) -> tuple[dict[str, str], frozenset[str]]:
        """Runs that are queued or running already, and where; and those of them that are still ending after `ENDING_S`, which
        would neither go on nor be submitted if nobody waited for them."""
        until = time.monotonic() + ENDING_S
        told = False
        while True:
            places, ending = self._places(reconcile(self.results, self.slurm), keys)
            if not ending or time.monotonic() > until:
                return places, ending
            if not told:
                first = places[min(ending)]
                print(
                    f"{counted(len(ending), 'run')} still ending ({first}); waiting {ENDING_S:g} s at most",
                    file=sys.stderr,
                )
                told = True
            time.sleep(POLL_S)

    def _places(self, tasks: Mapping[str, Task], keys: set[str]) -> tuple[dict[str, str], frozenset[str]]:
        """`_elsewhere` at one look at the queue, without waiting."""
        places, ending = {}, set()
        for chunk in read_chunks(self.results, open_only=True):
            chunk = chunk.found_in(tasks)
            for index, run in enumerate(chunk.runs):
                task = chunk.on_cluster(tasks, index)
                if run.key in keys and task is not None and task.active:
                    user = read_sweep(chunk.path.parent).user
                    whose = "" if user in ("", self.slurm.user) else f" of {user}"
                    places[run.key] = f"is {task.state.lower()} as job {task.job} of sweep {chunk.sweep}{whose}"
                    if task.state == "COMPLETING":
                        ending.add(run.key)
        for key in keys - places.keys():
            starts = attempts(state_folder(self.results, key))
            if starts and starts[-1].live():
                holder = starts[-1].holder
                places[key] = f"runs in process {holder.pid} on {holder.host}"
                if holder.job and not (holder.job in tasks and tasks[holder.job].active):
                    ending.add(key)
        return places, frozenset(ending)

    def _write_intent(self, groups: Mapping[Shape, list[Job]], limits: Mapping[str, AttemptLimits]) -> list[Chunk]:
        everything = [job for group in groups.values() for job in group]
        folder = Path(self.profile.snapshot_folder) if self.profile.snapshot_folder else self.results / "snapshots"
        frozen, everything = freeze(folder.absolute(), everything)
        frozen_jobs = {job.run.key: job for job in everything}
        settings = {
            **asdict(self.profile),
            "user": self.slurm.user,
            "cluster": self.slurm.cluster(),
            "request": self._origin["request"],
        }
        _, place = begin_sweep(
            self.results, executor=self.name, command=self._origin["command"], frozen=frozen, settings=settings
        )
        own_folder(place / "logs")
        largest = max(1, min(self.profile.max_array_size, (self.slurm.max_array_size() or 1001) - 1))
        chunks: list[Chunk] = []
        for shape, group in groups.items():
            for start in range(0, len(group), largest):
                part = [frozen_jobs[job.run.key] for job in group[start : start + largest]]
                data = {**asdict(shape), "gpus": self.profile.gpus_of(shape)}
                chunks.append(create_chunk(place, number=len(chunks), jobs=part, shape=data, limits=limits))
        self._frozen = frozen
        return chunks

    def _sbatch(self, chunk: Chunk) -> Chunk:
        """Submit a chunk, once: where the controller's answer is lost, it is asked for the name before another try."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = array_of(chunk, self.profile, self._frozen)
        tried = False

        def ask() -> str:
            nonlocal tried
            if tried and (known := self.slurm.ids_by_name([chunk.name])):
                return known[chunk.name]
            tried = True
            try:
                return str(executor.begin().job_id)
            except (FailedJobError, FailedSubmissionError) as error:
                raise Refused(client_message("sbatch", str(error))) from error

        job = patiently(ask, patience_s=self.profile.patience_seconds, say=lambda line: print(line, file=sys.stderr))
        return chunk.answered(job)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock of the results folder for one submitter at a time; that of a dead process is taken over."""
        folder = sweeps_folder(self.results) / ".submitting"
        deadline = time.monotonic() + self.profile.patience_seconds
        announced = False
        while True:
            try:
                lease = Lease.acquire(folder, holder=Holder.here(), lease_s=LEASE_SECONDS)
                break
            except Held as held:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"another submission is under way here ({held}); try again when it is done"
                    ) from held
                if not announced:
                    print(f"waiting for another submission ({held})", file=sys.stderr)
                    announced = True
                time.sleep(0.3)
        try:
            with beating(lease):
                yield
        finally:
            lease.release("finished")
            # The newest stay: a waiter that saw one of them must not be given its successor's number once more.
            for number in range(max(1, lease.attempt.number - 60), lease.attempt.number - 40):
                for path in (folder / f"attempt.{number}.json", folder / f"attempt.{number}.end.json"):
                    path.unlink(missing_ok=True)


def refusal(error: UsageError, chunks: Sequence[Chunk], job_ids: Sequence[str]) -> str:
    """What sbatch said, what was submitted before, and what to do, in one line."""
    text = str(error)
    hints = {
        "qos": "your quota of submitted jobs or its QOS forbids it; wait for jobs to end, submit fewer at once with"
        " --set cluster.max_array_size=N, or set --set cluster.qos=NAME",
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


def left_alone(sweep: Sweep, jobs: Sequence[str], of: str, *, user: str) -> str:
    """A line about another sweep's jobs, which ``user`` did not cancel: whose they are, and how they are cancelled."""
    if sweep.user not in ("", user):
        who = f"user {sweep.user} submitted, who cancels it with"
    else:
        who = "another command submitted; cancel it with"
    how = cancelling(sweep.command) if sweep.command and sweep.request else f"scancel {' '.join(jobs)}"
    return f"left: {len(jobs)} jobs {of}, of sweep {sweep.id}, which {who}: {how}"


def cancelling(command: str) -> str:
    """The command that cancels what ``command`` submitted: without the options that ``--cancel`` refuses."""
    kept = _without_how(command)
    return f"{command} --cancel" if kept is None else shlex.join([*kept, "--cancel"])


def asked_for(command: str) -> list[str]:
    """What a command asks for, however its program is called and whether it starts, awaits or cancels runs."""
    words = _without_how(command) or []
    return words[next((place for place, word in enumerate(words) if word.startswith("--")), len(words)) :]


def _without_how(command: str) -> list[str] | None:
    """Its words but for the options that say how its runs are started or awaited; None where it is no command line of ours."""
    how = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in ("--wait", "--cancel"):
        how.add_argument(option, action="store_true")
    for option in ("--retry", "--budget"):
        how.add_argument(option)
    try:
        return how.parse_known_args(shlex.split(command))[1]
    except (ValueError, argparse.ArgumentError):
        return None


LEFT_TO_THE_SHELL = ("account", "partition", "qos", "constraint")
"""What clusters have their users export as SBATCH_*: that holds where the profile does not say."""


def array_of(chunk: Chunk, profile: ClusterProfile, frozen: Path) -> Any:
    """submitit's executor for one chunk, with our worker as command: the chunk on disk takes the place of pickles."""
    from submitit import SlurmExecutor as SubmititSlurm

    command = f"{profile.python or shlex.quote(sys.executable)} {shlex.join(worker_arguments(chunk, frozen))}"
    shape = Shape(**{name: value for name, value in chunk.shape.items() if name != "gpus"})
    options: dict[str, Any] = {
        "account": shape.account,
        "partition": shape.partition,
        "qos": shape.qos,
        "gres": shape.gres,
        "constraint": shape.constraint,
        "mem": shape.mem,
    }

    class Array(SubmititSlurm):
        def begin(self) -> Any:
            with tempfile.TemporaryDirectory() as private:  # nobody changes the script before sbatch has read it
                self.folder = Path(private)
                job = self._submit_command(command)
                write_atomically(logs / f"{job.job_id}_submission.sh", job.paths.submission_file.read_bytes())
            return job

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            # Inside a job, sbatch would inherit that job's limits from the environment; and it takes SBATCH_* over the script.
            kept = {"SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in LEFT_TO_THE_SHELL if not options.get(name))}
            inherited = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")) and name not in kept]
            return ["env", *(f"--unset={name}" for name in inherited), "sbatch", str(submission_file_path)]

    logs = chunk.path.parent / "logs"
    escaped_logs = str(logs).replace("%", "%%")  # which SLURM takes for a placeholder, and submitit leaves
    executor = Array(folder=logs)
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
        teardown=["status=$?", f"[ $status = 0 ] || {command} --after $status", "exit $?"],
        # since SLURM 22.05 srun does not inherit the CPUs of a task
        srun_args=[
            f"--output={escaped_logs}/%A_%a_%t_log.out",
            f"--cpus-per-task={shape.cpus}",
            *(["--kill-on-bad-exit=1"] if shape.gpus_per_run > 1 else []),
        ],
        additional_parameters={
            "requeue": True,
            "output": f"{escaped_logs}/%A_%a_0_log.out",
            **{k: v == "true" or v for k, v in profile.extra.items()},
        },
        wckey=None,
    )
    executor.parameters["map_count"] = len(chunk.runs)
    return executor
