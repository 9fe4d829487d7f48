"""``worker.py SWEEP``, from a sweep's frozen code: the program of a compute node, or of a worker process here.

A worker goes through runs of the sweep, each under its lease, until each has a record. Workers here share all runs; on a cluster a
worker has those of one task of an array. A task that has to stop leaves a file for its job script. The script then asks the cluster to
requeue the job, since a container may lack the cluster's clients.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.dispatch.attempts import Holder, attempts, close
from harness.dispatch.supervise import CRASHES, Assignment, Outcome, StopSignals, exceeded_memory, supervise
from harness.dispatch.sweeps import Sweep, read_sweep
from harness.system.errors import UsageError
from harness.system.machine import cores, set_threads

STATUS = 3
"""Exit status of a worker that could not work: a full disk, a damaged sweep."""
FAILED = 4
"""Exit status of a worker that left a record of a failure."""
AWAY_WAIT_S = 60
ENDING_S = 90.0
"""How long a task waits for runs that others hold; a cancelled one has half a minute to write its checkpoint."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="worker.py")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--array", type=int, metavar="N", help="run as a task of the sweep's N-th array")
    parser.add_argument("--after", type=int, metavar="STATUS", help="finish a task whose step ended with this status")
    arguments = parser.parse_args(argv)
    stop = StopSignals()
    set_threads(cores())
    try:
        sweep = read_sweep(arguments.sweep)
        if arguments.after is None:
            stop.install()
        if arguments.array is None:
            gpus, holder = int(bool(sweep.settings.get("devices"))), Holder.here()
            every = range(len(sweep.runs))
            work([Assignment(sweep=sweep, line=line, holder=holder, gpus=gpus) for line in every], stop=stop)
            return 0
        task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        if not 0 <= arguments.array < len(sweep.arrays):
            raise UsageError(f"sweep {sweep.id} has no array {arguments.array}")
        gpus, holder = sweep.arrays[arguments.array].gpus, Holder.here(job=task)
        here = (arguments.array, int(os.environ["SLURM_ARRAY_TASK_ID"]))
        lines = [line for line, *slot in sweep.slots() if tuple(slot) == here]
        own = [Assignment(sweep=sweep, line=line, holder=holder, gpus=gpus) for line in lines]
        if arguments.after is not None:
            after(sweep, task, own, status=arguments.after)
            return 0
        return on_cluster(sweep, task, own, stop=stop)
    except (UsageError, OSError) as error:  # the next attempt continues
        print(f"error: {error}", file=sys.stderr)
        return STATUS


def work(assigned: Sequence[Assignment], *, stop: StopSignals, patience_s: float = float("inf")) -> set[Outcome]:
    """Work through runs until each has a record or this process has to stop; returns how they ended here.

    A run that another process holds is taken over where that process dies; a task of a cluster waits ``patience_s`` for that.
    """
    # macOS's frameworks do not work in a fork of a process that has used them.
    if len(assigned) > 1 and sys.platform != "darwin":
        import harness.experiment.experiment  # noqa: F401 - imported once, inherited by every fork
    outcomes: set[Outcome] = set()
    waiting, until = list(assigned), time.monotonic() + patience_s
    while waiting and not stop:
        held = []
        for each in waiting:
            outcome = "elsewhere" if stop else _persist(each, stop=stop)
            if outcome in CRASHES:  # its GPU failed, or it had to stop: no other run is started here
                return outcomes | {outcome}
            if outcome == "elsewhere":
                held.append(each)
            else:
                outcomes.add(outcome)
                until = time.monotonic() + patience_s
        if len(held) == len(waiting):
            if time.monotonic() > until:
                break
            time.sleep(1.0)
        waiting = held
    return outcomes


def on_cluster(sweep: Sweep, task: str, assigned: Sequence[Assignment], *, stop: StopSignals) -> int:
    """The runs of one task of an array; its exit status."""
    for each in assigned:
        print(f"{task} on {socket.gethostname()}: {each.planned.key}", flush=True)
        _close_earlier_attempt(each.folder, task)
    outcomes = work(assigned, stop=stop, patience_s=ENDING_S)
    print(f"{task}: {', '.join(sorted(outcomes)) or 'elsewhere'}", flush=True)
    if (stop or outcomes & CRASHES) and any(each.settled() is None for each in assigned):
        request_requeue(sweep, task)
    return FAILED if "failed" in outcomes else 0


def request_requeue(sweep: Sweep, task: str) -> None:
    """Have the job script requeue this task."""
    (sweep.logs / f"{task}.again").touch()


def after(sweep: Sweep, task: str, assigned: Sequence[Assignment], *, status: int) -> None:
    """Finish a task whose step ended with ``status``. Where the whole step was killed at once, write why, and request a requeue
    unless the run is given up."""
    for each in (each for each in assigned if each.settled() is None):
        past = attempts(each.folder)
        if not past or past[-1].holder.job != task:
            continue
        if not past[-1].end:
            too_large = exceeded_memory(sweep.logs / f"{task}.out")
            detail = "killed for exceeding its memory limit" if too_large else f"its step ended with status {status}"
            close(each.folder, past[-1], "OOM" if too_large else "killed", detail)
        if each.give_up() is None:
            request_requeue(sweep, task)


def _persist(assigned: Assignment, *, stop: StopSignals) -> Outcome:
    """Attempt the run, and again where its process died without a reason from outside (bounded, see `Assignment.verdict`). On a
    cluster a run whose GPU failed is not restarted here: the task is requeued, which may give it another node."""
    while True:
        outcome = supervise(assigned, stop=stop)
        if outcome not in CRASHES or stop or (outcome == "gpu-failed" and assigned.holder.job):
            return outcome
        until = time.monotonic() + AWAY_WAIT_S  # a file server may be away for longer than three attempts take
        while outcome == "files-away" and not stop and time.monotonic() < until:
            time.sleep(0.5)


def _close_earlier_attempt(folder: Path, task: str) -> None:
    """Close an earlier attempt of this task that could not write how it ended; a cluster never runs a task twice at once."""
    past = attempts(folder)
    if past and not past[-1].end and past[-1].holder.job == task and not past[-1].live():
        close(folder, past[-1], "lost", f"{task} was requeued")
