"""Runs on a SLURM cluster: one job array for each resource shape, whose batch file submitit writes.

What is queued is what squeue lists under the names of the arrays, and a run that is queued twice is trained once, by whoever gets
its lease. So a submitter may die at any point, and two may submit at once: it costs slots of an array, never a result.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.archive.schema import content_hash
from harness.dispatch.attempts import STARTED
from harness.dispatch.clients import Queue, Slurm, Unreachable, user_name
from harness.dispatch.profile import ClusterProfile, Shape, minutes
from harness.dispatch.run_states import INTERRUPTED, RunState, ShowStates, survey
from harness.dispatch.snapshot import WORKER, freeze
from harness.dispatch.sweeps import AGAIN, CANCELLED, Array, Sweep, create_sweep, read_sweeps
from harness.system.errors import UsageError, writing_to
from harness.system.text import counted

if TYPE_CHECKING:
    from harness.planning.request import Job

POLL_S = 2.0
MOST_POLL_S = 30.0
"""Between two looks at the queue: the first soon after submitting, then ever more rarely, since squeue asks for the whole cluster's."""
REQUEUE_S = 40.0
"""So long a job that is queued again may be seen as ended: its processes have half a minute to end."""


class SlurmExecutor:
    """Submits job arrays, waits for them, cancels them.

    Args:
        request: identity of the grid that the command asks for; empty takes the runs of each call for the whole of it.
    """

    submitted = ""
    """What was submitted last, in words."""

    def __init__(self, results: Path, profile: ClusterProfile, *, request: str = "") -> None:
        self.results = results.absolute()
        self.profile = profile
        self.request = request
        self.slurm = Slurm(patience_s=profile.patience_seconds)
        self.slurm.require()

    def describe(self) -> str:
        partition = self.profile.partition or "its default partition"
        return f"slurm: profile {self.profile.name}, {partition}, at most {self.profile.parallelism} tasks of an array at once"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> dict[str, str]:
        """Submit what nobody has yet; who has the others, by key. Raises UsageError: the cluster refuses."""
        self._keys = [job.run.key for job in jobs]
        request = self.request or content_hash(sorted(self._keys))
        shapes = {job.run.key: self._shape_of(job) for job in jobs}  # before anything is written
        with writing_to(f"{self.results}", then=AGAIN), self._alone():
            elsewhere = self._elsewhere({*shapes})
            jobs = [job for job in jobs if job.run.key not in elsewhere]
            if not jobs:
                return elsewhere
            jobs = sorted(jobs, key=lambda job: [*shapes.values()].index(shapes[job.run.key]))
            frozen, jobs = freeze(self.results, jobs)
            groups = [shapes[job.run.key] for job in jobs]
            sweep = create_sweep(
                self.results,
                jobs,
                executor="slurm",
                command=command,
                request=request,
                user=user_name(),
                snapshot=str(frozen),
                settings=asdict(self.profile),
                allowed=self.profile.max_attempts,
                arrays=tuple(self._arrays(groups)),
            )
            for number, array in enumerate(sweep.arrays):
                try:
                    job_id = self._sbatch(sweep, number, groups[array.first])
                except Unreachable:
                    raise  # whether it was submitted is not known; squeue shows the next command
                except UsageError as error:
                    done = [array.job for array in sweep.arrays[:number]]
                    if done:
                        replace(sweep, arrays=sweep.arrays[:number]).save()
                    else:
                        shutil.rmtree(sweep.folder)
                    raise UsageError(refusal(str(error), done, of=len(sweep.arrays))) from error
                arrays = [*sweep.arrays[:number], replace(array, job=job_id), *sweep.arrays[number + 1 :]]
                sweep = replace(sweep, arrays=tuple(arrays)).save()
        ids = ", ".join(array.job for array in sweep.arrays)
        self.submitted = f"sweep {sweep.id}: {counted(len(jobs), 'run')} submitted (jobs {ids})"
        return elsewhere

    def wait(self, *, on_change: ShowStates) -> Mapping[str, RunState]:
        """Until the cluster has nothing more of the runs; what it ended, the same command submits again."""
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

    def cancel(self, keys: Sequence[str]) -> list[str]:
        """Cancel the queued and running tasks of the sweeps that the request for these runs made; the names of those tasks."""
        request, cancelled = self.request or content_hash(sorted(keys)), list[str]()
        with self._alone():
            own = [sweep for sweep in self._sweeps() if sweep.request == request and sweep.user == user_name()]
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
        """Runs that are queued or running on the cluster already, and where."""
        sweeps = self._sweeps()
        queue, homes = self._queue(sweeps), dict[str, str]()
        for sweep in sweeps:
            for line, number, task in sweep.slots():
                there, key = queue.get((sweep.names[number], task)), sweep.runs[line].key
                if key in keys and there is not None and there.active:
                    whose = "" if sweep.user == user_name() else f" of {sweep.user}"
                    homes[key] = f"is {there.state.lower()} as job {there.job} of sweep {sweep.id}{whose}"
        return homes

    def _shape_of(self, job: Job) -> Shape:
        """Every process of a run needs an image of each forward pass; refused here and not after a night in the queue."""
        shape = self.profile.shape(job.run.backbone)
        batch = int(job.run.rules.get("batch_size", shape.gpus_per_run))
        if shape.gpus_per_run > batch:
            raise UsageError(
                f"profile {self.profile.name} gives a run gpus_per_run: {shape.gpus_per_run}, and {job.run.protocol} has batches "
                f"of {batch} images to share among them (batch_size); add --set cluster.gpus_per_run={batch}"
            )
        return shape

    def _arrays(self, shapes: Sequence[Shape]) -> Iterator[Array]:
        """Lines of one shape, in arrays that the cluster takes."""
        largest, first = self.profile.max_array_size, 0
        while first < len(shapes):
            shape = shapes[first]
            count = min(shapes.count(shape) + shapes.index(shape) - first, largest * shape.runs_per_job)
            yield Array(first=first, runs=count, per_task=shape.runs_per_job, gpus=self.profile.gpus_of(shape))
            first += count

    def _sbatch(self, sweep: Sweep, number: int, shape: Shape) -> str:
        """Submit an array; its job id. Where the controller's answer is lost, the queue is searched for the name before another try."""
        (sweep.folder / f"job-{number}.sh").write_text(job_script(sweep, number, self.profile, shape), encoding="utf-8")
        script = sweep.folder / f"sbatch-{number}.sh"
        script.write_text(sbatch_script(sweep, number, self.profile, shape), encoding="utf-8")
        command = ["sbatch", "--parsable", str(script)]
        # Inside a job, sbatch would inherit that job's limits from the environment; and SBATCH_* are what the shell says.
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
        """One submitter at a time, as far as the file system has locks; two at once would only submit too much."""
        path = self.results / "sweeps" / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another submission", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass
            yield


LEFT_TO_THE_SHELL = ("account", "partition", "qos", "constraint")
"""What clusters have their users export as SBATCH_*: that holds where the profile does not say."""


def sbatch_script(sweep: Sweep, number: int, profile: ClusterProfile, shape: Shape) -> str:
    """What sbatch reads of an array: its options as submitit writes them, and our job script instead of its pickled function."""
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
        ntasks_per_node=shape.gpus_per_run,
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


def job_script(sweep: Sweep, number: int, profile: ClusterProfile, shape: Shape) -> str:
    """What a task of an array runs: the worker as a step, then what has to be reported and requested outside of it.

    A login shell, which knows ``module``. Another turn is requested while the job still runs: one that had ended by itself
    would be COMPLETED or FAILED. SIGTERM comes to this script where the cluster ends the whole job, and then no turn is requested.
    """
    python = profile.python or shlex.quote(sys.executable)
    worker = f"{python} -u {shlex.quote(str(Path(sweep.snapshot) / WORKER))} {shlex.quote(str(sweep.folder))} --array {number}"
    # since SLURM 22.05 srun does not inherit the CPUs of a task
    srun = f"srun --cpus-per-task={shape.cpus} {shlex.join(profile.srun_args)}".rstrip()
    bad_exit = " --kill-on-bad-exit=1 --wait=60" if shape.gpus_per_run > 1 else ""
    return f"""#!/bin/bash -l
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
again={shlex.quote(str(sweep.logs))}/$task.again
echo "{STARTED}: $task on $(hostname), restart ${{SLURM_RESTART_COUNT:-0}}"
trap 'ended=yes' TERM
rm -f "$again"
{chr(10).join(profile.setup)}
{srun}{bad_exit} {worker}
status=$?
[ "$ended" ] && exit $status
case $status in
    0 | 3 | 4 | 5) ;;
    *) {srun} --ntasks=1 {worker} --after $status ;;
esac
if [ -e "$again" ]; then
    rm -f "$again"
    scontrol requeue "$task" && sleep 300
fi
exit $status
"""


def refusal(text: str, done: Sequence[str], *, of: int) -> str:
    """What sbatch said, what was submitted before, and what to do, in one line."""
    hints = {
        "feature": "give the nodes by a feature that sinfo -o '%P %f' lists with --set cluster.constraint=NAME, or leave it out",
        "generic resource": "name the GPUs as sinfo -o '%P %G' does with --set cluster.gres=gpu:1",
        "gres": "name the GPUs as sinfo -o '%P %G' does with --set cluster.gres=gpu:1",
        "qos": "your quota or its QOS forbids it; wait, use --set cluster.max_array_size=N or --set cluster.qos=NAME",
        "partition": "choose one of sinfo's with --set cluster.partition=NAME",
        "time limit": "lower it with --set cluster.time=2h; a run continues from its checkpoint",
        "account": "set it with --set cluster.account=NAME",
        "array spec": "lower it with --set cluster.max_array_size=N, below the cluster's MaxArraySize",
        "memory": "lower it with --set cluster.mem=16G",
        "node configuration": "no node has so many CPUs, GPUs or so much memory; lower them with --set cluster.KEY=VALUE",
    }
    default = "nothing is lost; fix it and repeat the command"
    hint = next((hint for word, hint in hints.items() if word in text.lower()), default)
    submitted = f"{len(done)} of {of} arrays are submitted ({', '.join(done)})" if done else "nothing was submitted"
    return f"{text}; {submitted}; {hint}"
