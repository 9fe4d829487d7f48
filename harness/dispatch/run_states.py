"""The state of every run below a results folder, from records, attempts, sweeps and the cluster's queue, and how long the runs
still take. Reads only, but for the small file in which a run at work says how far it is (`ProgressFile`)."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, seconds_of
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import LEASE_SECONDS, Attempt, attempts, log_path, state_folder
from harness.dispatch.queue import Task
from harness.dispatch.sweeps import Chunk, NamedRun, Problems, Sweep, named, read_chunks, read_sweeps, settles
from harness.system.files import write_atomically
from harness.system.text import counted

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
class RunState(NamedRun):
    """Where one run is.

    Args:
        state: a reason code of a record, or one of the words above.
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
    of_sweep: str = "*",
) -> Survey:
    """The state of every run below a results folder, as it is now.

    Args:
        tasks: the cluster's queue (`Slurm.tasks`), None where it cannot be asked or nobody needs it.
        cluster: the name of that cluster, empty where nobody knows; it says nothing about open sweeps on others.
        keys: only these runs.
        of_sweep: as the sweep of this id has them; a command that looks twice a second need not read every other one.
    """
    selected = None if keys is None else set(keys)
    problems: Problems = {}
    sweeps = {sweep.id: sweep for sweep in read_sweeps(results, problems, sweep=of_sweep)}
    latest: dict[str, tuple[Chunk, int]] = {}
    for chunk in read_chunks(results, sweep=of_sweep, problems=problems):
        for index, run in enumerate(chunk.runs):
            if selected is None or run.key in selected:
                latest[run.key] = (chunk, index)
    store = RecordStore(results)
    ended = store.ended(selected)
    if selected is None:
        problems |= {store.path(key): reason for key, reason in ended.items() if isinstance(reason, str)}
    records = {key: record for key, record in ended.items() if isinstance(record, Record)}
    runs = {
        key: state_of(results, chunk, index, records.get(key), sweeps, tasks, cluster, problems)
        for key, (chunk, index) in latest.items()
    }
    runs |= {key: _of_record(record) for key, record in records.items() if key not in runs}
    return Survey(runs=runs, sweeps=sweeps, problems=problems)


def _of_record(record: Record) -> RunState:
    seconds, whole = seconds_of(record.cost)
    return RunState(
        **named(record.run, key=record.key),
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
    if record is not None and settles(record, replaces=run.replaces):
        log = log_path(folder, record.attempts) if record.attempts else None
        return replace(_of_record(record), **named(run), sweep=chunk.sweep, task=task, log=log)
    starts = _starts(folder, problems)
    last = starts[-1] if starts else None
    state, message = _unfinished(chunk, index, task, last, sweep, tasks)
    number = last.number if last else record.attempts if record else 0
    done, begun, stage = 0.0, 0.0, ""
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
        seconds=3600 * last.hours if last else 0.0,
        done=done,
        begun=begun,
        stage=stage,
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
    chunk: Chunk, index: int, task: str, last: Attempt | None, sweep: Sweep | None, tasks: Mapping[str, Task] | None
) -> tuple[str, str]:
    on_cluster = chunk.on_cluster(tasks, index) if tasks is not None and task else None
    lease_s = LEASE_SECONDS if sweep is None else sweep.lease_s
    if last is not None and not last.end:
        alive = last.live()
        if alive is None:  # elsewhere: the cluster knows best, else the last sign of life
            recent = time.time() - last.seen < lease_s
            same_job = on_cluster if last.holder.job == task else None
            # Of a job that this queue does not show (another cluster's, or hidden from us) only the heartbeat tells.
            is_gone = tasks is not None and bool(task) and last.holder.job == task and last.holder.job not in tasks
            alive = same_job.state == "RUNNING" if same_job is not None else recent and not is_gone
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
    done = 1.0 if after else share_of_epochs(at.epoch, at.epochs, at.step, at.steps)
    return done, at.begun, words.get(at.stage, at.stage.replace("test ", "testing "))


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


def share_of_epochs(epoch: int, epochs: int, step: int, steps: int) -> float:
    """The share of a run that is done, 0 to 1, after ``step`` of the ``steps`` updates of its ``epoch``-th of ``epochs``."""
    return min(1.0, max(0.0, (epoch - 1 + step / max(1, steps)) / max(1, epochs)))


PROGRESS_SECONDS = 2.0


class ProgressFile:
    """Where a run is, for whoever asks: ``state/<key>/progress.json``, at each change of stage and every two seconds.

    Other stages are told with the last position in training.

    Args:
        written: called after each writing.
    """

    def __init__(self, folder: Path, *, written: Callable[[], None] = lambda: None) -> None:
        self._path = folder / "progress.json"
        self._then = written
        self._written = 0.0
        self._stage: object = None
        self._position: dict[str, Any] = {}

    def __call__(self, content: dict[str, Any]) -> None:
        now = time.monotonic()
        stage = (content.get("stage"), content.get("split"))
        if stage == self._stage and now - self._written < PROGRESS_SECONDS:
            return
        self._written, self._stage = now, stage
        if "epoch" in content:
            position = {name: int(content[name]) for name in ("epoch", "epochs", "step", "steps")}
            before = {**position, "step": max(0, position["step"] - 1)}
            self._position = {"begun": share_of_epochs(**before), **self._position, **position}
        content = {name: None if value != value else value for name, value in content.items()}  # NaN is no JSON
        with contextlib.suppress(OSError):  # a full disk must not end a run for its progress display
            text = json.dumps({**self._position, **content, "at": time.time()}, default=str)
            write_atomically(self._path, text, durable=False)
        self._then()


LEAST_DONE = 0.05
"""Share of a run before its own pace says something."""


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """Seconds until all runs are done, None if nothing tells, and in words what does."""

    seconds: float | None
    origin: str

    def __str__(self) -> str:
        return self.origin if self.seconds is None else f"{clock(self.seconds)} left, {self.origin}"


def time_left(runs: Mapping[str, RunState], *, now: float) -> TimeLeft:
    """How long the open runs take, by finished runs (`_took`; of the same row where there are some), else by the pace of those
    that run; as many at once as now."""
    finished = [run for run in runs.values() if run.state == FINISHED and run.seconds > 0]
    open_runs = [run for run in runs.values() if run.unsettled]
    running = [run for run in open_runs if run.state == RUNNING]
    paces = [made for run in running if (made := own_pace(run, now=now)) is not None]
    if not open_runs:
        return TimeLeft(seconds=0.0, origin="all done")
    if not running:
        return TimeLeft(seconds=None, origin="time left: known once runs are under way")
    if not finished and not paces:
        return TimeLeft(seconds=None, origin="time left: known after the first epochs")
    rows: dict[str, list[RunState]] = {}
    for run in finished:
        rows.setdefault(run.variant, []).append(run)
    cells = {(run.variant, run.benchmark) for run in open_runs} if finished else set()
    took = {(row, benchmark): _took(rows.get(row, finished), benchmark=benchmark) for row, benchmark in cells}
    pace = math.fsum(paces) / len(paces) if paces else 0.0
    total = 0.0
    for run in open_runs:
        whole = took.get((run.variant, run.benchmark), pace)
        total += _rest(run, whole, now=now) if run.state == RUNNING else whole
    origin = f"told from {_in_words(finished)}" if finished else "at the pace of those that run"
    return TimeLeft(seconds=total / len(running), origin=origin)


def _took(finished: Sequence[RunState], *, benchmark: str) -> float:
    """Seconds that finished runs took: whole ones if any, on this benchmark if any."""
    alike = [run for run in finished if run.whole] or finished
    alike = [run for run in alike if run.benchmark == benchmark] or alike
    return math.fsum(run.seconds for run in alike) / len(alike)


def _in_words(finished: Sequence[RunState]) -> str:
    """``4 finished runs and the training of 2 others``; of a row with whole runs these alone tell."""
    whole = [run.variant for run in finished if run.whole]
    told = set(whole)
    trained = sum(run.variant not in told for run in finished)
    if not whole:
        return f"the training of {counted(trained, 'finished run')}"
    others = f" and the training of {counted(trained, 'other')}" if trained else ""
    return f"{counted(len(whole), 'finished run')}{others}"


def run_left(run: RunState, finished: Sequence[RunState], *, now: float) -> float | None:
    """Seconds that a running run still takes: as finished ones of its row took (`_took`), else at its own pace."""
    of_row = [done for done in finished if done.variant == run.variant and done.seconds]
    if of_row and run.started:
        return _rest(run, _took(of_row, benchmark=run.benchmark), now=now)
    pace = own_pace(run, now=now)
    return None if pace is None or run.done >= 1.0 else pace * (1.0 - run.done)


def own_pace(run: RunState, *, now: float) -> float | None:
    """Seconds that all of a run would take at the pace of this start; None before that tells."""
    made = run.done - run.begun
    return (now - run.started) / made if run.started and made > LEAST_DONE else None


def _rest(run: RunState, whole: float, *, now: float) -> float:
    """Seconds left of a run that takes ``whole`` seconds: by the clock where this start began it, by its epochs where it went on."""
    if run.started and not run.begun:
        return max(0.0, whole - (now - run.started))
    return whole * (1.0 - run.done)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
