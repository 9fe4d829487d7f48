"""Bring what is on disk in line with what the cluster knows: intents without an answer, jobs that ended without a word.

Only the user who submitted a sweep settles it, on the cluster that has its jobs: anybody else may not see them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from harness.dispatch.attempt_end import end_from_state, exceeded_memory, give_up, settle
from harness.dispatch.attempts import End, attempts, state_folder
from harness.dispatch.queue import Task
from harness.dispatch.slurm.client import Slurm
from harness.dispatch.sweeps import Chunk, Moved, Sweep, job_log, read_chunks, read_sweep, settled

ANSWER_S = 3.0
"""A submission whose submitter was killed may still be on its way to the controller for so long."""


def reconcile(results: Path, slurm: Slurm) -> Mapping[str, Task]:
    """Settle every open chunk of this user on this cluster as far as possible. Call while nobody else submits.

    Returns:
        The queue: tasks of all open chunks, those of other users included.
    """
    chunks = [(chunk, read_sweep(chunk.path.parent)) for chunk in read_chunks(results, open_only=True)]
    chunks = [(chunk, sweep) for chunk, sweep in chunks if sweep.executor == "slurm"]
    submitted = _answered([chunk for chunk, sweep in chunks if submitted_by_us(sweep, slurm)], slurm)
    tasks = slurm.tasks(chunk.name for chunk, _ in chunks)
    ended = [chunk for chunk in submitted if not _active(chunk, tasks)]
    if ended:
        states = _states(ended, tasks, slurm)
        for chunk in ended:
            _settle(results, chunk, states, slurm)
    return tasks


def submitted_by_us(sweep: Sweep, slurm: Slurm) -> bool:
    """Whether this user submitted the sweep to this cluster."""
    return sweep.user in ("", slurm.user) and (not sweep.cluster or sweep.cluster == slurm.cluster())


def _answered(chunks: list[Chunk], slurm: Slurm) -> list[Chunk]:
    """The chunks with their jobs: the cluster is asked for intents without an answer, and what it does not know is closed."""
    open_intents = [chunk for chunk in chunks if not chunk.job]
    if not open_intents:
        return chunks
    youngest = max(chunk.created for chunk in open_intents)
    time.sleep(max(0.0, min(ANSWER_S, youngest + ANSWER_S - time.time())))
    known = slurm.ids_by_name(chunk.name for chunk in open_intents)
    asked = [chunk.answered(known[chunk.name]) for chunk in open_intents if chunk.name in known]
    for chunk in open_intents:
        if chunk.name not in known:
            chunk.close("abandoned")
    return [*(chunk for chunk in chunks if chunk.job), *asked]


def _active(chunk: Chunk, tasks: Mapping[str, Task]) -> bool:
    on_cluster = (chunk.on_cluster(tasks, index) for index in range(len(chunk.runs)))
    return any(task is not None and task.active for task in on_cluster)


def _states(chunks: list[Chunk], tasks: Mapping[str, Task], slurm: Slurm) -> dict[str, str]:
    """Task -> its last state: by accounting, which may be off or late, and by the controller as long as it remembers."""
    history = slurm.history(chunk.job for chunk in chunks)
    states = {account.job: account.state for account in history or []}
    on_cluster = (chunk.on_cluster(tasks, index) for chunk in chunks for index in range(len(chunk.runs)))
    return states | {task.job: task.state for task in on_cluster if task is not None}


def _settle(results: Path, chunk: Chunk, states: Mapping[str, str], slurm: Slurm) -> None:
    """Close a chunk none of whose tasks is queued or running any more, once it is written of each run how that ended."""
    open_runs = [
        (index, planned)
        for index, planned in enumerate(chunk.runs)
        if settled(results, planned.key, replaces=planned.replaces) is None
    ]
    if not open_runs:
        chunk.close("done")
        return
    environment = read_sweep(chunk.path.parent).environment
    try:
        jobs = chunk.jobs()
    except Moved:
        chunk.close("moved")
        return
    ends: dict[str, str] = {}
    for index, planned in open_runs:
        task, run = chunk.task(index), jobs[index].run
        state = states.get(task, "")
        starts = attempts(state_folder(results, planned.key))
        last = starts[-1] if starts and starts[-1].holder.job == task else None
        if last is not None and last.live():
            return  # its node daemon is gone, it is not; look again later
        end: End = end_from_state(state)
        log = job_log(chunk.path.parent, task)
        if end == "lost" and exceeded_memory(log):
            end = "OOM"
        if last is not None and last.end and end == "CANCELLED":
            ends[planned.key] = end  # SIGTERM came first, or it waited to be started again
        elif last is not None:
            detail = f"job {task} ended as {state or 'unknown'}"
            settle(results, run, end=end, detail=detail, planned=planned, environment=environment, accounting=slurm)
        elif not any(start.holder.job == task for start in starts):
            ends[planned.key] = end
            held = bool(starts) and starts[-1].live() is not False  # somebody else may be training it
            if state == "OUT_OF_MEMORY" and not held:
                detail = f"job {task} ended as {state} before its worker began; see {log}"
                give_up(results, run, end=end, detail=detail, starts=starts, environment=environment, accounting=slurm)
    chunk.close("done", ends=ends)
