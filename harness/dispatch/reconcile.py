"""Bring what is on disk in line with what the cluster knows: intents without an answer, jobs that ended without a word."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from harness.dispatch.attempts import End, attempts, state_folder
from harness.dispatch.ending import end_from_state, exceeded_memory, give_up, settle
from harness.dispatch.slurm import Slurm, Task
from harness.dispatch.sweeps import Chunk, read_chunks, read_sweep, settled

ANSWER_S = 3.0
"""A submission whose submitter was killed may still be on its way to the controller for so long."""


def reconcile(results: Path, slurm: Slurm, *, tasks: Mapping[str, Task]) -> None:
    """Settle every open chunk as far as possible. Call while nobody else submits.

    Args:
        tasks: the cluster's queue, asked before the call.
    """
    chunks = [chunk for chunk in read_chunks(results, open_only=True) if _is_cluster(chunk)]
    answered = _answer(chunks, slurm)
    ended = [chunk for chunk in chunks if chunk.job and not _active(chunk, tasks)]
    if ended:
        states = _states(ended, slurm)
        for chunk in ended:
            _settle(results, chunk, states)
    for chunk in answered:  # found only now: its tasks were not asked for
        if not chunk.job:
            chunk.close("abandoned")


def _is_cluster(chunk: Chunk) -> bool:
    return read_sweep(chunk.path.parent).executor == "slurm"


def _answer(chunks: list[Chunk], slurm: Slurm) -> list[Chunk]:
    """Ask the cluster for the jobs of intents without an answer; replaces them in ``chunks`` and returns those it looked at."""
    open_intents = [chunk for chunk in chunks if not chunk.job]
    if not open_intents:
        return []
    youngest = max(chunk.created for chunk in open_intents)
    time.sleep(max(0.0, min(ANSWER_S, youngest + ANSWER_S - time.time())))
    known = slurm.ids_by_name(chunk.name for chunk in open_intents)
    looked_at = [chunk.answered(known[chunk.name]) if chunk.name in known else chunk for chunk in open_intents]
    chunks[:] = [chunk for chunk in chunks if chunk.job]
    return looked_at


def _active(chunk: Chunk, tasks: Mapping[str, Task]) -> bool:
    on_cluster = (chunk.on_cluster(tasks, index) for index in range(len(chunk.runs)))
    return any(task is not None and task.active for task in on_cluster)


def _states(chunks: list[Chunk], slurm: Slurm) -> dict[str, str]:
    """Task -> its last state by accounting, empty where accounting is off."""
    history = slurm.history(chunk.job for chunk in chunks)
    return {account.job: account.state for account in history or []}


def _settle(results: Path, chunk: Chunk, states: Mapping[str, str]) -> None:
    """None of the chunk's tasks is queued or running any more: say of each run how that ended, then close the chunk."""
    open_runs = [
        (index, planned)
        for index, planned in enumerate(chunk.runs)
        if settled(results, planned.key, replaces=planned.replaces) is None
    ]
    if not open_runs:
        chunk.close("done")
        return
    sweep = read_sweep(chunk.path.parent)
    environment = {**sweep.code, "snapshot": Path(sweep.snapshot).name}
    jobs = chunk.jobs()
    ends: dict[str, str] = {}
    for index, planned in open_runs:
        task, run = chunk.task(index), jobs[index].run
        state = states.get(task, "")
        starts = attempts(state_folder(results, planned.key))
        if starts and starts[-1].holder.job == task and starts[-1].live():
            return  # its node daemon is gone, it is not; look again later
        end: End = end_from_state(state)
        log = chunk.path.parent / "logs" / f"{task}_0_log.out"
        if end == "lost" and exceeded_memory(log):
            end = "OOM"
        if starts and starts[-1].holder.job == task:
            detail = f"job {task} ended as {state or 'unknown'}"
            settle(results, run, end=end, detail=detail, planned=planned, environment=environment)
        elif not any(start.holder.job == task for start in starts):
            ends[planned.key] = end
            if state in ("FAILED", "OUT_OF_MEMORY"):
                detail = f"job {task} ended as {state} before its worker began; see {log}"
                give_up(results, run, end=end, detail=detail, starts=starts, environment=environment)
    chunk.close("done", ends=ends)
