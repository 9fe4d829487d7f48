"""The state of every run below a results folder, from records, attempts, sweeps and the cluster's queue, and how long the runs still
take. Reads only, but for the small file in which a run at work says how far it is (`ProgressFile`)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.archive.schema import Record, seconds_of
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import Attempt, attempts, log_path, state_folder
from harness.dispatch.sweeps import NamedRun, Problems, Sweep, named, read_sweeps, settles
from harness.system.files import write_atomically
from harness.system.text import counted

if TYPE_CHECKING:
    from harness.dispatch.slurm.client import Queue, QueuedTask

FINISHED = "OK"
RUNNING = "running"
QUEUED = "queued"
WAITING = "waiting"
INTERRUPTED = "interrupted"
CANCELLED = "cancelled"
LOST = "lost"
"""States besides the reason codes of records. ``waiting``: planned here, not started yet. ``queued``: on the cluster.
``interrupted``: stopped or killed, continues when the command is repeated. ``lost``: its job ended before the
worker began."""
STARTING = "starting"
"""The stage of a run that has not reported one yet."""


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
    done: float = 0.0
    begun: float = 0.0
    stage: str = ""
    finished: str = ""
    log: Path | None = None

    @property
    def unsettled(self) -> bool:
        """Whether something is still to come without anybody's doing."""
        return self.state in (RUNNING, QUEUED, WAITING)


ShowStates = Callable[[Mapping[str, RunState]], None]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All runs, in the order of their first submission.

    Args:
        runs: by key.
        sweeps: by id.
        problems: unreadable records, sweeps and attempts.
        notes: what could not be seen, and what belongs to no run.
    """

    runs: dict[str, RunState]
    sweeps: dict[str, Sweep]
    problems: dict[Path, str]
    notes: tuple[str, ...] = ()

    @property
    def unsettled(self) -> bool:
        """Whether something is still to come."""
        return any(run.unsettled for run in self.runs.values())


def survey(
    results: Path, *, queue: Queue | None = None, keys: Iterable[str] | None = None, of_sweep: str = "*"
) -> Survey:
    """The state of every run below a results folder, as it is now.

    Args:
        queue: what the cluster knows of the sweeps' arrays, None where it cannot be queried or is not needed.
        keys: only these runs.
        of_sweep: as the sweep of this id has them; a command that looks twice a second need not read every other one.
    """
    selected = None if keys is None else set(keys)
    problems: Problems = {}
    sweeps = {sweep.id: sweep for sweep in read_sweeps(results, problems, sweep=of_sweep)}
    store = RecordStore(results)
    ended = store.ended(selected)
    if selected is None:
        problems |= {store.path(key): reason for key, reason in ended.items() if isinstance(reason, str)}
    records = {key: record for key, record in ended.items() if isinstance(record, Record)}
    latest: dict[str, tuple[Sweep, int]] = {}
    for sweep in sweeps.values():
        latest |= {run.key: (sweep, line) for line, run in enumerate(sweep.runs)}
    tasks = {(sweep.id, line): (array, task) for sweep in sweeps.values() for line, array, task in sweep.slots()}
    runs = {}
    for key, (sweep, line) in latest.items():
        if selected is None or key in selected:
            slot = tasks.get((sweep.id, line))
            runs[key] = _state_of(sweep, line, slot, records.get(key), queue, problems)
    runs |= {key: _of_record(record) for key, record in records.items() if key not in runs}
    return Survey(runs=runs, sweeps=sweeps, problems=problems)


def _of_record(record: Record) -> RunState:
    return RunState(
        **named(record.run, key=record.key),
        state=record.code,
        message=record.message,
        attempts=record.attempts,
        seconds=seconds_of(record.cost)[0],
        done=1.0 if record.code == "OK" else 0.0,
        finished=record.finished,
    )


def _state_of(
    sweep: Sweep,
    line: int,
    slot: tuple[int, int] | None,
    record: Record | None,
    queue: Queue | None,
    problems: Problems,
) -> RunState:
    """Where one run of a sweep is; ``slot`` is its array and task on a cluster."""
    run, folder = sweep.runs[line], state_folder(sweep.results, sweep.runs[line].key)
    queued = queue.get((sweep.names[slot[0]], slot[1])) if queue and slot else None
    job = sweep.arrays[slot[0]].job if slot else ""
    task = queued.job if queued else f"{job}_{slot[1]}" if slot and job else ""
    if record is not None and settles(record, replaces=run.replaces):
        log = log_path(folder, record.attempts) if record.attempts else None
        return replace(_of_record(record), **named(run), sweep=sweep.id, task=task, log=log)
    starts = []
    try:
        starts = attempts(folder)
    except OSError as error:
        problems[folder] = error.strerror or str(error)
    problems.update({folder / f"attempt.{start.number}.json": start.unreadable for start in starts if start.unreadable})
    last = starts[-1] if starts else None
    state, message = _unfinished(sweep, task, last, queued, queried=queue is not None)
    number = last.number if last else record.attempts if record else 0
    done, begun, stage = _progress(folder, since=last.started) if state == RUNNING and last else (0.0, 0.0, "")
    if state == RUNNING and last and _silence(last, sweep):
        stage = message
    return RunState(
        **named(run),
        state=state,
        message=message,
        attempts=number,
        sweep=sweep.id,
        task=task,
        started=last.started if last else 0.0,
        seconds=3600 * last.hours if last else 0.0,
        done=done,
        begun=begun,
        stage=stage,
        log=log_path(folder, number) if number else None,
    )


def _unfinished(
    sweep: Sweep, task: str, last: Attempt | None, queued: QueuedTask | None, *, queried: bool
) -> tuple[str, str]:
    """State and message of a run without a record; ``queried``: the cluster's queue is known."""
    if last is not None and not last.end:
        alive = last.live()
        if alive is None:  # elsewhere: the cluster knows best, else the last sign of life
            is_gone = queried and bool(task) and last.holder.job == task and queued is None
            recent = time.time() - last.seen < sweep.lease_s and not is_gone
            alive = queued.state == "RUNNING" if queued is not None and last.holder.job == task else recent
        if alive:
            return RUNNING, f"on {last.holder.host}{_silence(last, sweep)}"
    if queued is not None and queued.active:
        return QUEUED, queued.reason if queued.state == "PENDING" else queued.state.lower()
    if sweep.ended == CANCELLED:
        return CANCELLED, "on request"
    if sweep.executor != "slurm" or not task:
        if sweep.submitter.alive() is not False and not sweep.ended:
            return WAITING, "" if sweep.executor != "slurm" else "being submitted"
    elif not queried:
        return QUEUED, "the cluster was not queried"
    elif last is None:
        return LOST, f"job {task} ended before the worker began; see its log"
    if last is None:
        return INTERRUPTED, "not started"
    return INTERRUPTED, last.detail or last.end or "its process is gone"


def _silence(last: Attempt, sweep: Sweep) -> str:
    """Words about a holder that is there and shows no life: it is not taken over, since it may go on any moment."""
    seconds = time.time() - last.seen
    if seconds < 2 * sweep.lease_s:
        return ""
    return (
        f", without a heartbeat for {seconds / 60:.0f} min: process {last.holder.pid} is stopped, hangs or cannot write; "
        "let it go on, or kill it and repeat the command"
    )


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
    done = 1.0 if after else _share(at.epoch, at.epochs, at.step, at.steps)
    return done, at.begun, words.get(at.stage, at.stage.replace("test ", "testing "))


def _share(epoch: int, epochs: int, step: int, steps: int) -> float:
    """The share of a run that is done, 0 to 1, after ``step`` of the ``steps`` updates of its ``epoch``-th of ``epochs``."""
    return min(1.0, max(0.0, (epoch - 1 + step / max(1, steps)) / max(1, epochs)))


PROGRESS_SECONDS = 2.0


class ProgressFile:
    """Where a run is, for whoever asks: ``state/<key>/progress.json``, at each change of stage and every two seconds, with the last
    position in training."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"
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
            self._position = {"begun": _share(**before), **self._position, **position}
        content = {name: None if value != value else value for name, value in content.items()}  # NaN is no JSON
        with contextlib.suppress(OSError):  # a full disk must not end a run for its progress display
            text = json.dumps({**self._position, **content, "at": time.time()}, default=str)
            write_atomically(self._path, text, durable=False)


LEAST_DONE = 0.05
"""Share of a run before its own pace says something."""


def time_left(runs: Collection[RunState], *, now: float) -> str:
    """How long the open runs take, as many at once as now, and what that is estimated from, in words."""
    open_runs = [run for run in runs if run.unsettled]
    running = [run for run in open_runs if run.state == RUNNING]
    finished = [run for run in runs if run.state == FINISHED and run.seconds > 0]
    if not open_runs:
        return "all done"
    if not running:
        return "time left: known once runs are under way"
    left = [run_left(run, finished, now=now) for run in running]
    paces = [seconds / (1.0 - run.done) for run, seconds in zip(running, left, strict=True) if seconds and run.done < 1]
    if not finished and not paces:
        return "time left: known after the first epochs"
    whole = sum(paces) / len(paces) if paces else 0.0
    rest = [whole if seconds is None else seconds for seconds in left]
    rest += [_took(run, finished) or whole for run in open_runs if run.state != RUNNING]
    seconds = sum(rest) / len(running)
    origin = f"estimated from {counted(len(finished), 'finished run')}" if finished else "at the pace of those that run"
    return f"{clock(seconds)} left, {origin}"


def run_left(run: RunState, finished: Collection[RunState], *, now: float) -> float | None:
    """Seconds that a running run still takes: as finished ones like it took, else at its own pace; None before that is known."""
    if whole := _took(run, finished):
        return max(0.0, whole - (now - run.started)) if run.started and not run.begun else whole * (1.0 - run.done)
    made = run.done - run.begun
    return (now - run.started) / made * (1.0 - run.done) if run.started and made > LEAST_DONE else None


def _took(run: RunState, finished: Collection[RunState]) -> float | None:
    """Seconds that finished runs like this one took: of its row and benchmark if any, else of its row, else all."""
    alike = [other for other in finished if other.variant == run.variant] or [*finished]
    alike = [other for other in alike if other.benchmark == run.benchmark] or alike
    return sum(other.seconds for other in alike) / len(alike) if alike else None


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
