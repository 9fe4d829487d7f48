"""The state of every run below a results folder, from records, attempts, sweeps and the cluster's queue. Reads only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.archive.schema import Record, seconds_of
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import LEASE_SECONDS, Attempt, attempts, log_path, state_folder
from harness.dispatch.queue import Task
from harness.dispatch.reading_sweeps import Problems, read_chunks, read_sweeps
from harness.dispatch.settled import settles
from harness.dispatch.sweeps import Chunk, Sweep, named

FINISHED = "OK"
RUNNING = "running"
QUEUED = "queued"
WAITING = "waiting"
INTERRUPTED = "interrupted"
CANCELLED = "cancelled"
LOST = "lost"
"""States besides the reason codes of records. ``waiting``: planned here, not started yet. ``queued``: on the cluster.
``interrupted``: stopped or killed, continues when the same command is given again. ``lost``: its job ended before the
worker began."""
STARTING = "starting"
"""The stage of a run that has not told one yet."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where one run is.

    Args:
        state: a reason code of a record, or one of the words above.
        message: why.
        attempts: starts so far.
        sweep: the last sweep that has it, empty for a record without one.
        task: its job on the cluster.
        started: when its last start began (seconds since the epoch).
        seconds: how long that start ran; of a finished run as `harness.archive.schema.seconds_of`.
        whole: whether the seconds of a finished run are of more than its training.
        done: share of its epochs, 0 to 1.
        begun: the share that was done when its last start began.
        stage: what it does now, in words; empty unless it runs.
        finished: when its record was written, empty where there is none that settles it.
        log: of the last start, None where there is none.
    """

    key: str
    method: str
    variant: str
    benchmark: str
    backbone: str
    protocol: str
    seed: int
    state: str
    message: str = ""
    attempts: int = 0
    sweep: str = ""
    task: str = ""
    started: float = 0.0
    seconds: float = 0.0
    whole: bool = False
    done: float = 0.0
    begun: float = 0.0
    stage: str = ""
    finished: str = ""
    log: Path | None = None

    @property
    def unsettled(self) -> bool:
        """Whether something is still to come without anybody's doing."""
        return self.state in (RUNNING, QUEUED, WAITING)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All runs, in the order of their first submission.

    Args:
        runs: by key.
        sweeps: by id.
        problems: unreadable records, sweeps and attempts.
        note: what could not be seen.
    """

    runs: dict[str, RunState]
    sweeps: dict[str, Sweep]
    problems: dict[Path, str]
    note: str = ""

    @property
    def unsettled(self) -> bool:
        """Whether something is still to come."""
        return any(run.unsettled for run in self.runs.values())


def survey(
    results: Path,
    *,
    tasks: Mapping[str, Task] | None = None,
    cluster: str = "",
    keys: Iterable[str] | None = None,
    note: str = "",
) -> Survey:
    """Look at everything once.

    Args:
        tasks: the cluster's queue (`Slurm.tasks`), None where it cannot be asked or nobody needs it.
        cluster: the name of that cluster, empty where nobody knows; it says nothing about open sweeps on others.
        keys: only these runs.
        note: passed through.
    """
    wanted = None if keys is None else set(keys)
    problems: Problems = {}
    sweeps = {sweep.id: sweep for sweep in read_sweeps(results, problems)}
    latest: dict[str, tuple[Chunk, int]] = {}
    for chunk in read_chunks(results, problems=problems):
        for index, run in enumerate(chunk.runs):
            if wanted is None or run.key in wanted:
                latest[run.key] = (chunk, index)
    store = RecordStore(results)
    ended = store.ended(wanted)
    if wanted is None:
        problems |= {store.path(key): reason for key, reason in ended.items() if isinstance(reason, str)}
    records = {key: record for key, record in ended.items() if isinstance(record, Record)}
    runs = {
        key: state_of(results, chunk, index, records.get(key), sweeps, tasks, cluster, problems)
        for key, (chunk, index) in latest.items()
    }
    for key, record in records.items():
        if key not in runs:
            runs[key] = _of_record(record)
    return Survey(runs=runs, sweeps=sweeps, problems=problems, note=note)


def _of_record(record: Record) -> RunState:
    seconds, whole = seconds_of(record.cost)
    return RunState(
        **named(record.run),
        state=record.code,
        message=record.message,
        attempts=record.attempts,
        seconds=seconds,
        whole=whole,
        done=1.0 if record.code == "OK" else 0.0,
        finished=record.finished,
    )


def state_of(
    results: Path,
    chunk: Chunk,
    index: int,
    record: Record | None,
    sweeps: Mapping[str, Sweep],
    tasks: Mapping[str, Task] | None,
    cluster: str,
    problems: Problems,
) -> RunState:
    """Where one run of a chunk is; arguments as of `survey`."""
    sweep = sweeps.get(chunk.sweep)
    asked = not cluster or sweep is None or sweep.cluster in ("", cluster) or bool(chunk.closed)
    tasks = tasks if asked else None
    run = chunk.runs[index]
    task = chunk.task(index) if sweep is not None and sweep.executor == "slurm" else ""
    folder = state_folder(results, run.key)
    settled = record is not None and settles(record, replaces=run.replaces)
    starts = [] if settled else _starts(folder, problems)
    last = starts[-1] if starts else None
    if settled:
        assert record is not None
        state, message = str(record.code), record.message
    else:
        state, message = _unfinished(chunk, index, task, last, sweep, tasks)
    seconds, whole = 3600 * last.hours if last else 0.0, False
    if settled and record is not None:
        seconds, whole = seconds_of(record.cost)
    number = last.number if last else record.attempts if record else 0
    done, begun, stage = 1.0 if state == FINISHED else 0.0, 0.0, ""
    if state == RUNNING and last is not None:
        done, begun, stage = _progress(folder, since=last.started)
        if _silence(last, LEASE_SECONDS if sweep is None else sweep.lease_s):
            stage = message
    return RunState(
        **named(run),
        state=state,
        message=message,
        attempts=number,
        sweep=chunk.sweep,
        task=task,
        started=last.started if last else 0.0,
        seconds=seconds,
        whole=whole,
        done=done,
        begun=begun,
        stage=stage,
        finished=record.finished if settled and record is not None else "",
        log=log_path(folder, number) if number else None,
    )


def _starts(folder: Path, problems: Problems) -> list[Attempt]:
    try:
        starts = attempts(folder)
    except OSError as error:
        problems[folder] = error.strerror or str(error)
        return []
    problems.update({folder / f"attempt.{start.number}.json": start.unreadable for start in starts if start.unreadable})
    return starts


def _unfinished(
    chunk: Chunk,
    index: int,
    task: str,
    last: Attempt | None,
    sweep: Sweep | None,
    tasks: Mapping[str, Task] | None,
) -> tuple[str, str]:
    on_cluster = chunk.on_cluster(tasks, index) if tasks is not None and task else None
    lease_s = LEASE_SECONDS if sweep is None else sweep.lease_s
    if last is not None and not last.end:
        alive = last.live()
        if alive is None:  # elsewhere: the cluster knows best, else the last sign of life
            recent = time.time() - last.seen < lease_s
            own = on_cluster if last.holder.job == task else None
            alive = own.state == "RUNNING" if own is not None else recent and not _gone(last, tasks)
        if alive:
            return RUNNING, f"on {last.holder.host}{_silence(last, lease_s)}"
    if on_cluster is not None and on_cluster.active:
        return QUEUED, on_cluster.reason if on_cluster.state == "PENDING" else on_cluster.state.lower()
    if chunk.closed == "cancelled" or chunk.ends.get(chunk.runs[index].key) == "CANCELLED":
        return CANCELLED, "on request"
    if last is not None and last.end == "CANCELLED" and last.holder.job == task:
        return CANCELLED, last.detail
    submitting = sweep is not None and bool(sweep.submitter.alive())
    if sweep is not None and sweep.executor != "slurm":
        if submitting and not chunk.closed:
            return WAITING, ""
    elif not chunk.job:
        return (WAITING, "being submitted") if submitting and not chunk.closed else (INTERRUPTED, "never submitted")
    elif tasks is None and not chunk.closed:
        return QUEUED, "the cluster was not asked"
    if last is None:
        if task and chunk.job:
            return LOST, f"job {task} ended before the worker began; see its log"
        return INTERRUPTED, "not started"
    return INTERRUPTED, last.detail or last.end or "its process is gone"


def _silence(last: Attempt, lease_s: float) -> str:
    """Words about a holder that is there and shows no life: it is not taken over, since it may go on any moment."""
    seconds = time.time() - last.seen
    if seconds < 2 * lease_s:
        return ""
    return (
        f", without a heartbeat for {seconds / 60:.0f} min: process {last.holder.pid} is stopped, hangs or cannot write; "
        "let it go on, or kill it and give the command again"
    )


def _gone(last: Attempt, tasks: Mapping[str, Task] | None) -> bool:
    """The cluster was asked and does not know the holder's job any more."""
    return tasks is not None and bool(last.holder.job) and last.holder.job not in tasks


def _progress(folder: Path, *, since: float) -> tuple[float, float, str]:
    """The share of epochs done, that with which this start began, and the stage in words, from the file that the run's
    process writes; an earlier start's file says nothing."""
    try:
        at = read_as(folder / "progress.json", _Position)
    except (OSError, ValueError):
        return 0.0, 0.0, STARTING
    if at.at < since:
        return 0.0, 0.0, STARTING
    where = f"epoch {at.epoch}/{at.epochs}"
    loss = "" if at.loss is None else f", loss {at.loss:.3f}"
    words = {"training": f"training {where}{loss}", "validation": f"validating {where}"}
    after = at.stage.startswith(("test", "merging"))  # both come after the last epoch
    return 1.0 if after else at.share, at.begun, words.get(at.stage, at.stage.replace("test ", "testing "))


@dataclass(frozen=True, kw_only=True)
class _Position:
    """What ``progress.json`` holds."""

    stage: str
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    begun: float = 0.0
    at: float = 0.0

    @property
    def share(self) -> float:
        return share_of_epochs(self.epoch, self.epochs, self.step, self.steps)


def share_of_epochs(epoch: int, epochs: int, step: int, steps: int) -> float:
    """Of a run, 0 to 1, after ``step`` of the ``steps`` updates of its ``epoch``-th of ``epochs``."""
    return min(1.0, max(0.0, (epoch - 1 + step / max(1, steps)) / max(1, epochs)))
