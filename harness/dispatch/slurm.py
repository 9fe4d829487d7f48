"""Runs on a SLURM cluster: a job array for each resource shape, whose batch file submitit writes, and the cluster's clients.

What is queued is what squeue lists under the names of the arrays. A run that is queued twice is trained once, by whoever gets its
lease. So a submitter may die at any point, and two may submit at once: that costs slots of an array, never a result.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from harness.dispatch.run_states import INTERRUPTED, Queue, QueuedTask, RunState, ShowStates, survey
from harness.dispatch.supervise import STARTED
from harness.dispatch.sweeps import (
    AGAIN,
    CANCELLED,
    PYTHON_OPTIONS,
    WORKER,
    JobArray,
    Sweep,
    create_sweep,
    read_sweeps,
)
from harness.dispatch.target import ClusterProfile, JobShape, minutes
from harness.planning.request import Job
from harness.system.errors import UsageError, writing_to
from harness.system.files import own_folder
from harness.system.text import counted

POLL_S = 2.0
MOST_POLL_S = 30.0
"""Seconds between two looks at the queue: soon after submitting, then less and less often, since each is work for the controller."""
REQUEUE_S = 40.0
"""Seconds for which a requeued job may look ended: its processes have half a minute to end."""


TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|zero bytes were transmitted"
    r"|resource temporarily unavailable|slurm temporarily unable to accept job|backup controller|communication connection failure"
    r"|controller.*(standby|not responding)|unexpected message received|message receive failure|missing socket|bufs_sendto|broken pipe",
    re.IGNORECASE,
)
_NAMES = 1000
"""Job names in one call of squeue; the kernel bounds the length of an argument."""


class Unreachable(UsageError):
    """Raised if the controller did not answer in time."""


class Slurm:
    """A cluster's command-line clients; ``patience_s``: how long to wait for a controller that does not answer."""

    def __init__(self, *, patience_s: float = 300.0) -> None:
        self.patience_s = patience_s

    @staticmethod
    def require() -> None:
        """Raises UsageError where SLURM is not installed."""
        if shutil.which("sbatch") is None:
            raise UsageError(
                "no SLURM here: sbatch is not on this machine's PATH; run this on a login node of the cluster, or leave out"
                " --cluster to run here"
            )

    def queue(self, names: Iterable[str]) -> Queue:
        """The tasks of the arrays with these names, whoever submitted them, as long as the controller remembers them."""
        ordered, queue = sorted(set(names)), dict[tuple[str, int], QueuedTask]()
        for start in range(0, len(ordered), _NAMES):
            named = f"--name={','.join(ordered[start : start + _NAMES])}"
            command = ["squeue", "--noheader", "--array", "--format=%F|%K|%T|%j|%r", "--states=all", named]
            for line in self.ask(command).splitlines():
                fields = line.split("|", 4)
                if len(fields) == 5 and fields[1].isdigit():  # else a heading, a warning, or not an array
                    array, index, state, name, reason = fields
                    queue[name, int(index)] = QueuedTask(job=f"{array}_{index}", state=state, reason=reason)
        return queue

    def cancel(self, jobs: Sequence[str]) -> None:
        self.ask(["scancel", *jobs])

    def ask(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
        """A client's answer; waits for a controller that does not answer. Raises Unreachable: no answer for ``patience_s``. Raises
        UsageError: refused."""
        # Without variables that change what the clients print, or which cluster they ask.
        changing = ("SQUEUE_", "SCANCEL_", "SLURM_CLUSTERS")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
        deadline, pause, announced = time.monotonic() + self.patience_s, 0.5, False
        while True:
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=120, check=False, env=dict(environment or plain)
                )
                message = done.stderr or done.stdout
                if not done.returncode:
                    return done.stdout
            except subprocess.TimeoutExpired:
                message = "socket timed out"
            lines = [re.sub(rf"^{command[0]}:\s*(error:\s*)?", "", line.strip()) for line in message.splitlines()]
            message = f"{command[0]}: {'; '.join(dict.fromkeys(filter(None, lines))) or 'failed without a message'}"
            if not TRANSIENT.search(message):
                raise UsageError(message)
            waiting = f"the SLURM controller does not answer ({message})"
            if time.monotonic() > deadline:
                raise Unreachable(f"{waiting} for {self.patience_s:.0f} s; try again later")
            if not announced:
                print(f"{waiting}; waiting up to {self.patience_s:.0f} s for it", file=sys.stderr)
                announced = True
            time.sleep(pause)
            pause = min(pause * 1.5, 10.0)


def user_name() -> str:
    """The user that this process runs as, by SLURM's name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may have no entry for its user
        return str(os.geteuid())


class SlurmExecutor:
    """Submits job arrays, waits for them, cancels them. ``grid``: identity of the command's runs."""

    submitted = ""
    """The latest submission, in words."""

    def __init__(self, results: Path, profile: ClusterProfile, *, grid: str = "") -> None:
        self.results = results.absolute()
        self.profile = profile
        self.grid = grid
        self.slurm = Slurm(patience_s=profile.patience_seconds)
        self.slurm.require()

    def submit(self, jobs: Sequence[Job], *, command: str = "", later: int = 0) -> dict[str, str]:
        """Submit the runs that are not on the cluster yet; returns key -> location of each of the others. Raises UsageError: the cluster
        refuses."""
        self._keys = [job.run.key for job in jobs]
        shapes = {job.run.key: self.profile.shape(job.run.backbone) for job in jobs}  # before anything is written
        with writing_to(f"{self.results}", then=AGAIN), self._alone():
            elsewhere = self._elsewhere({*shapes})
            jobs = [job for job in jobs if job.run.key not in elsewhere]
            if not jobs:
                return elsewhere
            jobs = sorted(jobs, key=lambda job: [*shapes.values()].index(shapes[job.run.key]))
            groups = [shapes[job.run.key] for job in jobs]
            sweep = create_sweep(
                self.results,
                jobs,
                executor="slurm",
                command=command,
                later=later,
                request=self.grid,
                user=user_name(),
                frozen=True,
                settings=asdict(self.profile),
                allowed=self.profile.max_attempts,
                arrays=tuple(self._arrays(groups)),
            )
            ids = ", ".join(self._submit_arrays(sweep, groups))
        self.submitted = f"sweep {sweep.id}: {counted(len(jobs), 'run')} submitted (jobs {ids})"
        return elsewhere

    def _submit_arrays(self, sweep: Sweep, shapes: Sequence[JobShape]) -> list[str]:
        """Submit the arrays of a sweep, whose lines have these ``shapes``; returns their job ids. Raises UsageError: the cluster
        refuses; the sweep keeps what it took before."""
        ids: list[str] = []
        for number, array in enumerate(sweep.arrays):
            try:
                ids.append(self._sbatch(sweep, number, shapes[array.first]))
            except Unreachable:
                raise  # it is unknown whether it was submitted; squeue will show the next command
            except UsageError as error:
                if ids:
                    replace(sweep, arrays=sweep.arrays[:number]).save()
                else:
                    shutil.rmtree(sweep.folder)
                raise UsageError(refusal(str(error), ids, of=len(sweep.arrays))) from error
            arrays = [*sweep.arrays[:number], replace(array, job=ids[-1]), *sweep.arrays[number + 1 :]]
            sweep = replace(sweep, arrays=tuple(arrays)).save()
        return ids

    def wait(self, *, on_change: ShowStates) -> Mapping[str, RunState]:
        """Wait until none of the runs is on the cluster; the same command resubmits those that the cluster ended."""
        pause, seen = POLL_S, time.monotonic()
        while True:
            runs = survey(self.results, queue=self._queue(self._sweeps()), keys=self._keys).runs
            on_change(runs)
            if any(run.unsettled for run in runs.values()):
                seen = time.monotonic()
            elif all(run.state != INTERRUPTED for run in runs.values()) or time.monotonic() - seen > REQUEUE_S:
                return runs
            time.sleep(pause)
            pause = min(1.2 * pause, MOST_POLL_S)

    def cancel(self) -> list[str]:
        """Cancel the queued and running tasks of this user's sweeps of the same grid; returns their names."""
        cancelled: list[str] = []
        with self._alone():
            own = [sweep for sweep in self._sweeps() if (sweep.request, sweep.user) == (self.grid, user_name())]
            queue = self._queue(own)
            for sweep in own:
                tasks = [queue.get((sweep.names[number], task)) for _, number, task in sweep.slots()]
                if active := [task.job for task in tasks if task and task.active]:
                    self.slurm.cancel(sorted({job.partition("_")[0] for job in active}))
                    replace(sweep, ended=CANCELLED).save()
                    cancelled += dict.fromkeys(active)
        return cancelled

    def _sweeps(self) -> list[Sweep]:
        return [sweep for sweep in read_sweeps(self.results, {}) if sweep.executor == "slurm"]

    def _queue(self, sweeps: Sequence[Sweep]) -> Queue:
        return self.slurm.queue(name for sweep in sweeps for name in sweep.names)

    def _elsewhere(self, keys: set[str]) -> dict[str, str]:
        """Key -> location of each run that is already queued or running on the cluster."""
        sweeps = self._sweeps()
        queue, locations = self._queue(sweeps), dict[str, str]()
        for sweep in sweeps:
            for line, number, task in sweep.slots():
                there, key = queue.get((sweep.names[number], task)), sweep.runs[line].key
                if key in keys and there is not None and there.active:
                    whose = "" if sweep.user == user_name() else f" of {sweep.user}"
                    locations[key] = f"is {there.state.lower()} as job {there.job} of sweep {sweep.id}{whose}"
        return locations

    def _arrays(self, shapes: Sequence[JobShape]) -> Iterator[JobArray]:
        """The lines of each shape as arrays no larger than the cluster accepts."""
        largest, first = self.profile.max_array_size, 0
        while first < len(shapes):
            shape = shapes[first]
            count = min(shapes.count(shape) + shapes.index(shape) - first, largest * shape.runs_per_job)
            yield JobArray(first=first, runs=count, per_task=shape.runs_per_job, gpus=self.profile.gpus_of(shape))
            first += count

    def _sbatch(self, sweep: Sweep, number: int, shape: JobShape) -> str:
        """Submit an array; returns its job id. Where the controller's answer is lost, the queue is searched for the array's name."""
        (sweep.folder / f"job-{number}.sh").write_text(job_script(sweep, number, self.profile, shape), encoding="utf-8")
        script = sweep.folder / f"sbatch-{number}.sh"
        script.write_text(sbatch_script(sweep, number, self.profile, shape), encoding="utf-8")
        command = ["sbatch", "--parsable", str(script)]
        # Inside a job, sbatch would inherit that job's limits from the environment.
        kept = {"SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in LEFT_TO_THE_SHELL if not getattr(shape, name))}
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in kept or not name.startswith(("SLURM_", "SBATCH_"))
        }
        deadline, impatient = time.monotonic() + self.profile.patience_seconds, Slurm(patience_s=0.0)
        while True:
            try:
                return impatient.ask(command, environment=environment).strip().partition(";")[0]
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
                if known := list(self.slurm.queue([sweep.names[number]]).values()):
                    return known[0].job.partition("_")[0]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One submitter at a time, where the file system has locks; two at once would only submit too many jobs."""
        path = own_folder(self.results / "sweeps") / ".lock"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o664), "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another submission", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass
            yield


LEFT_TO_THE_SHELL = ("account", "partition", "qos", "constraint")
"""Users of some clusters export these as SBATCH_*; those values apply where the profile leaves them empty."""


def sbatch_script(sweep: Sweep, number: int, profile: ClusterProfile, shape: JobShape) -> str:
    """The batch file of an array: options as submitit writes them, and our job script in place of submitit's pickled function."""
    from submitit.slurm.slurm import _make_sbatch_string

    array = sweep.arrays[number]
    named = ("account", "partition", "qos", "gres", "constraint", "mem")
    return _make_sbatch_string(
        command=f"exec bash -l {shlex.quote(str(sweep.folder / f'job-{number}.sh'))}",
        folder=sweep.logs,
        job_name=sweep.names[number],
        comment=str(sweep.results),
        map_count=array.tasks,
        array_parallelism=profile.parallelism,
        **{name: value for name in named if (value := getattr(shape, name))},
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=shape.cpus,
        time=minutes(shape.time),
        signal_delay_s=profile.signal_seconds,
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters={
            "requeue": True,
            "output": f"{str(sweep.logs).replace('%', '%%')}/%A_%a.out",
            **{name: value == "true" or value for name, value in profile.extra.items()},
        },
    )


def job_script(sweep: Sweep, number: int, profile: ClusterProfile, shape: JobShape) -> str:
    """The job script of a task: the worker as a step, then reports and requests that must be made outside of the step.

    It runs in a login shell, which knows ``module``. A requeue is requested while the job still runs, since one that ended by itself
    is COMPLETED or FAILED. Where the cluster ends the whole job, SIGTERM comes to this script, and no requeue is requested. Status 140
    is that of a worker that got the warning before the time limit (SIGUSR2) before it could handle it.
    """
    python = profile.python or shlex.quote(sys.executable)
    paths = shlex.join([str(Path(sweep.snapshot) / WORKER), str(sweep.folder)])
    worker = f"{python} {PYTHON_OPTIONS} {paths} --array {number}"
    # since SLURM 22.05 srun does not inherit the CPUs of a task
    srun = f"srun --cpus-per-task={shape.cpus} {shlex.join(profile.srun_args)}".rstrip()
    return f"""#!/bin/bash -l
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
again={shlex.quote(str(sweep.logs))}/$task.again
echo "{STARTED}: $task on $(hostname), restart ${{SLURM_RESTART_COUNT:-0}}"
trap 'ended=yes' TERM
rm -f "$again"
{chr(10).join(profile.setup)}
{srun} {worker}
status=$?
[ "$ended" ] && exit $status
case $status in
    0 | 3 | 4) ;;
    140) [ "${{SLURM_RESTART_COUNT:-0}}" -lt {profile.max_attempts} ] && touch "$again" ;;
    *) {srun} {worker} --after $status ;;
esac
if [ -e "$again" ]; then
    rm -f "$again"
    scontrol requeue "$task" && sleep 300
fi
exit $status
"""


def refusal(text: str, done: Sequence[str], *, of: int) -> str:
    """One line: sbatch's answer, what was submitted before, and what to do."""
    submitted = f"{len(done)} of {of} arrays are submitted ({', '.join(done)})" if done else "nothing was submitted"
    return (
        f"{text}; {submitted}; wait for quota, or change the refused value with --set cluster.KEY=VALUE "
        "(sinfo -o '%P %f %G %l' lists what nodes have), and repeat the command"
    )
