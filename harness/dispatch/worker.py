"""``python -m harness.dispatch.worker CHUNK``: what runs on a compute node, or in a worker process here.

On a cluster a task runs one job of the chunk, chosen by its array index. Without one, the process works through the
whole chunk; several such processes share it, because each takes only runs that nobody else holds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import harness
from harness.datasets.base import AWAY
from harness.dispatch.attempt_end import end_from_state, exceeded_memory, reason_to_give_up, settle
from harness.dispatch.attempts import Holder, attempts, close, state_folder
from harness.dispatch.frozen_start import COPY, STATUS
from harness.dispatch.slurm.client import Slurm
from harness.dispatch.supervise import (
    Meeting,
    StartOutcome,
    StopSignals,
    WorkerContext,
    fork_child,
    is_settled,
    supervise,
    watch,
)
from harness.dispatch.sweeps import Chunk, Sweep, job_log, read_chunk, read_sweep, settled
from harness.planning.job import Job
from harness.system.errors import UsageError
from harness.system.machine import cores, set_threads

REQUEUE_WAIT_S = 120
AWAY_WAIT_S = 60
MEETING_WAIT_S = 600


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.dispatch.worker")
    parser.add_argument("chunk", type=Path)
    parser.add_argument(
        "--frozen", metavar="HASH", default="", help="this runs from a private copy of the code with this hash"
    )
    parser.add_argument("--after", type=int, metavar="STATUS", help="the task ended so: settle what it could not say")
    arguments = parser.parse_args(argv)
    stop = StopSignals()
    set_threads(cores())
    try:
        chunk, sweep = read_chunk(arguments.chunk), read_sweep(arguments.chunk.parent)
        sweep = replace(sweep, snapshot=arguments.frozen)
        if arguments.after is not None:
            return after(chunk, sweep, status=arguments.after)
        _require_frozen_plugins(chunk, sweep)
        stop.install()
        if sweep.executor == "slurm":
            return one_of_array(chunk, sweep, stop=stop)
        return drain(chunk, sweep, stop=stop)
    except (UsageError, OSError) as error:  # a full disk, a cluster that does not answer: the next start continues
        print(f"error: {error}", file=sys.stderr)
        return STATUS
    finally:
        code = Path(str(harness.__file__)).parents[1]
        if arguments.frozen and code.name.startswith(COPY):
            shutil.rmtree(code, ignore_errors=True)


def _require_frozen_plugins(chunk: Chunk, sweep: Sweep) -> None:
    """Plug-ins are code, and that of a sweep lies in its snapshot, whatever the file of jobs says. Its copy is where we are."""
    for path in {plugin for job in chunk.jobs() for plugin in job.plugins}:
        if not sweep.snapshot or not re.fullmatch(r"plugins/\d+/[^/]+", path):
            raise UsageError(
                f"{chunk.path} names the plug-in {path}, which is not in its snapshot; submit the runs again"
            )


def one_of_array(chunk: Chunk, sweep: Sweep, *, stop: StopSignals) -> int:
    """Run one job; where it is interrupted before its time limit, ask for it to be queued again."""
    task, index = _task()
    job = chunk.read_job(index)
    rank, size = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    context = _context_of(chunk, sweep, index=index, task=task)
    folder = state_folder(Path(job.results), job.run.key)
    meeting = None
    if size > 1:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        # where only this user writes: the processes believe one another, and unpickle what the first sends
        meeting = Meeting(chunk.path.parent / "logs" / f"meeting.{task}.{restart}.json", size=size)
        if rank:
            return follow(job, meeting, rank=rank, context=context, stop=stop)
    run = job.run
    print(f"{task} on {socket.gethostname()}: {run.key} ({run.variant}, {run.benchmark}, seed {run.seed})", flush=True)
    _explain_earlier_start(folder, task)
    outcome = _persist(job, context=context, stop=stop, meeting=meeting)
    print(f"{task}: {outcome}", flush=True)
    if outcome == "interrupted" and (signal.SIGUSR2 in stop.received or _makes_room(task)):
        _requeue(task)
    return 0 if outcome in ("finished", "elsewhere") else 1


def drain(chunk: Chunk, sweep: Sweep, *, stop: StopSignals) -> int:
    """Work through the chunk until every run has a record or this process is asked to stop."""
    jobs = chunk.jobs()
    # macOS's frameworks do not work in a fork of a process that has used them.
    if len(jobs) > 1 and sys.platform != "darwin":
        import harness.experiment.experiment  # noqa: F401 - imported once, inherited by every fork
    waiting = list(range(len(jobs)))
    while waiting and not stop:
        held = []
        for index in waiting:
            context = _context_of(chunk, sweep, index=index, task="")
            if stop or _persist(jobs[index], context=context, stop=stop) == "elsewhere":
                held.append(index)
        if held == waiting:
            time.sleep(1.0)  # all of them run in other processes; take over where one dies
        waiting = held
    return 0


def follow(job: Job, meeting: Meeting, *, rank: int, context: WorkerContext, stop: StopSignals) -> int:
    """Take part in a run that rank 0 leads. Rank 0 alone has the lease and writes."""
    deadline = time.monotonic() + MEETING_WAIT_S
    while not meeting.path.is_file():
        if stop or time.monotonic() > deadline:
            return 1
        time.sleep(0.2)
    variables = meeting.variables(rank=rank, local_rank=int(os.environ.get("SLURM_LOCALID", rank)))
    if not variables:
        return 0
    os.environ.update(variables)
    log = meeting.path.with_suffix(f".rank{rank}.log")
    child = fork_child(job, context=context, log=log, stop=stop)
    over = partial(is_settled, job, context)
    status = os.waitstatus_to_exitcode(watch(child, lease=None, context=context, stop=stop, over=over)[0])
    if over():
        return 0
    if stop:
        time.sleep(REQUEUE_WAIT_S)  # rank 0 asks for the requeue, which ends this process
    return abs(status)


def after(chunk: Chunk, sweep: Sweep, *, status: int) -> int:
    """The job script's last word, after the step ended with ``status``: where all of it was killed at once, say why."""
    if status == 0:
        return 0
    task, index = _task()
    job = chunk.read_job(index)
    results, planned = Path(job.results), chunk.runs[index]
    starts = attempts(state_folder(results, job.run.key))
    if settled(results, job.run.key, replaces=planned.replaces):
        return status
    last = starts[-1] if starts and starts[-1].holder.job == task else None
    if last is None or last.end:
        # The worker did not get so far as to start the run. Where the warning before the time limit came that early (a slow file
        # system, a very short limit), it was fatal instead of heard; the bound on starts does not count this one, so count restarts.
        early = status == 128 + signal.SIGUSR2
        # Or processes of a run on several GPUs ended together, so that its worker could not start it again by itself.
        given_up = reason_to_give_up(starts, limit=planned.limit, before=planned.before) is not None
        died = last is not None and last.end == "killed" and not given_up
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if (early or died) and restarts < planned.limit - planned.before:
            _requeue(task)
        return status
    log = job_log(chunk.path.parent, task)
    too_large = exceeded_memory(log)
    settle(
        results,
        job.run,
        end="OOM" if too_large else "killed",
        detail="killed for exceeding its memory limit" if too_large else f"its step ended with status {status}",
        planned=planned,
        environment=sweep.environment,
        accounting=Slurm(),
    )
    if not settled(results, job.run.key, replaces=planned.replaces):
        _requeue(task)
    return status


def _makes_room(task: str) -> bool:
    """Whether the cluster asked it to end for another job's sake, with time to do so: ending by ourselves would then make it FAILED."""
    try:
        return Slurm(patience_s=10).preempts(task)
    except UsageError:  # no answer, or the job is gone already
        return False


def _requeue(task: str) -> None:
    """Ask for this job to be queued again; the controller then ends it. Ending by ourselves first would make it COMPLETED or FAILED."""
    Slurm(patience_s=60).requeue(task)
    time.sleep(REQUEUE_WAIT_S)


def _persist(job: Job, *, context: WorkerContext, stop: StopSignals, meeting: Meeting | None = None) -> StartOutcome:
    """Start the run again where its process died without a reason from outside (bounded, see `reason_to_give_up`)."""
    while True:
        outcome = supervise(job, context=context, stop=stop, meeting=meeting)
        if outcome != "crashed" or stop or meeting is not None:
            return outcome
        _wait_for_files(state_folder(Path(job.results), job.run.key), stop=stop)


def _wait_for_files(folder: Path, *, stop: StopSignals) -> None:
    """Where the last start died of a file server that was away: it is so for longer than three starts take."""
    starts = attempts(folder)
    if not starts or not any(os.strerror(number) in starts[-1].detail for number in AWAY):
        return
    until = time.monotonic() + AWAY_WAIT_S
    while not stop and time.monotonic() < until:
        time.sleep(0.5)


def _explain_earlier_start(folder: Path, task: str) -> None:
    """This task was started before and could not say how that ended: the cluster knows."""
    starts = attempts(folder)
    if not starts or starts[-1].end or starts[-1].holder.job != task or starts[-1].live():
        return
    states = [account.state for account in Slurm(patience_s=10).history([task]) or [] if account.job == task]
    earlier = [state for state in states if state not in ("RUNNING", "PENDING")]
    end = end_from_state(earlier[-1] if earlier else "REQUEUED")
    close(folder, starts[-1], end, f"{task} was {earlier[-1] if earlier else 'queued again'}")


def _task() -> tuple[str, int]:
    index = os.environ["SLURM_ARRAY_TASK_ID"]
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{index}", int(index)


def _context_of(chunk: Chunk, sweep: Sweep, *, index: int, task: str) -> WorkerContext:
    settings = sweep.settings
    warned = float(settings.get("signal_seconds", 120))
    return WorkerContext(
        holder=Holder.here(job=task, cluster=os.environ.get("SLURM_CLUSTER_NAME", "") if task else ""),
        limit=chunk.runs[index].limit,
        before=chunk.runs[index].before,
        gpus=int(chunk.shape.get("gpus", 0)),
        lease_s=sweep.lease_s,
        patience_s=max(5.0, 0.5 * warned),
        replaces=chunk.runs[index].replaces,
        environment=sweep.environment,
        submitter=sweep.submitter if sweep.executor == "local" else None,
        accounting=Slurm() if task else None,
    )


if __name__ == "__main__":
    raise SystemExit(main())
