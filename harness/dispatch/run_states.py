"""The state of every run in a results folder, from records, attempts, sweeps and the cluster's queue; and the small file in which a
run reports its progress (`ProgressFile`)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.archive.schema import Record, seconds_of
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import Attempt, attempts, log_path, silent_s, state_folder
from harness.dispatch.sweeps import CANCELLED, NamedRun, Sweep, names_of_run, read_sweeps, settles
from harness.system.files import write_atomically
from harness.system.text import counted

FINISHED = "OK"
RUNNING = "running"
QUEUED = "queued"
WAITING = "waiting"
SUSPENDED = "suspended"
INTERRUPTED = "interrupted"
"""States besides the reason codes of records. ``waiting``: planned here, not started yet. ``queued``: on the cluster. ``suspended``: the
cluster stopped its process and will let it go on.
``interrupted``: not begun, stopped, killed or cancelled; continues when the command is repeated."""

QUIET_S = 3600.0
"""Seconds without a sign of life after which a sweep on another machine counts as dead."""

ENDED = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
))  # fmt: skip
"""States in which a job has ended for good. An unknown word is not one: a job wrongly taken for ended would be submitted twice."""


@dataclass(frozen=True, kw_only=True)
class QueuedTask:
    """One task of a job array that the controller knows.

    Args:
        job: array job id and task, such as ``123_4``.
        state: SLURM's word, such as ``PENDING``.
        reason: why it waits.
    """

    job: str
    state: str
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.state not in ENDED


Queue = Mapping[tuple[str, int], QueuedTask]
"""Name of an array and number of its task -> its task in the queue. By name, since a controller that was killed may give the
id of a forgotten job to another."""


@dataclass(frozen=True, kw_only=True)
class RunState(NamedRun):
    """The state of one run.

    Args:
        state: a reason code of a record, or one of the words above.
        attempts: number of attempts so far.
        sweep: the last sweep that has it, empty for a record without one.
        task: its job on the cluster.
        seconds: how long its last attempt ran; for a finished run as `harness.archive.schema.seconds_of`.
        done: share of its epochs, 0 to 1.
        pace: seconds that all of its epochs take at its speed so far, 0 before its first validation.
        stage: what it does now, in words; empty unless it runs.
        finished: when its record was written, empty where there is none that settles it.
        log: log of the last attempt, None where there is none.
    """

    state: str
    message: str = ""
    attempts: int = 0
    sweep: str = ""
    task: str = ""
    seconds: float = 0.0
    done: float = 0.0
    pace: float = 0.0
    stage: str = ""
    finished: str = ""
    log: Path | None = None

    @property
    def unsettled(self) -> bool:
        """Whether it is running, or will run without a further command."""
        return self.state in (RUNNING, QUEUED, SUSPENDED, WAITING)


ShowStates = Callable[[Mapping[str, RunState]], None]


class Survey(NamedTuple):
    """All runs by key, in the order of their first submission, and sweeps by id.

    Args:
        problems: records, sweeps and folders of attempts that cannot be read, with the reason.
        note: why the cluster was not queried.
    """

    runs: dict[str, RunState]
    sweeps: dict[str, Sweep]
    problems: dict[Path, str]
    note: str = ""


def survey(
    results: Path, *, queue: Queue | None = None, keys: Iterable[str] | None = None, of_sweep: str = "*"
) -> Survey:
    """The current state of every run in a results folder.

    Args:
        queue: the tasks of the sweeps' arrays in the cluster's queue; None where it cannot be queried or is not needed.
        keys: only these runs.
        of_sweep: read only the sweep of this id, for a command that looks twice a second.
    """
    selected = None if keys is None else set(keys)
    problems: dict[Path, str] = {}
    sweeps = {sweep.id: sweep for sweep in read_sweeps(results, problems, sweep=of_sweep)}
    store = RecordStore(results)
    ended = store.ended(selected)
    if selected is None:
        problems |= {store.path(key): reason for key, reason in ended.items() if isinstance(reason, str)}
    records = {key: record for key, record in ended.items() if isinstance(record, Record)}
    latest: dict[str, tuple[Sweep, int]] = {}
    for sweep in sweeps.values():
        latest |= {run.key: (sweep, line) for line, run in enumerate(sweep.runs)}
    quiet = {sweep.id for sweep in sweeps.values() if _is_quiet(sweep, problems)}
    tasks = {(sweep.id, line): (array, task) for sweep in sweeps.values() for line, array, task in sweep.slots()}
    runs = {}
    for key, (sweep, line) in latest.items():
        if selected is None or key in selected:
            slot = tasks.get((sweep.id, line))
            runs[key] = _state_of(sweep, line, slot, records.get(key), queue, problems, quiet=sweep.id in quiet)
    runs |= {key: _of_record(record) for key, record in records.items() if key not in runs}
    return Survey(runs=runs, sweeps=sweeps, problems=problems)


def _of_record(record: Record) -> RunState:
    return RunState(
        **names_of_run(record.run, key=record.key),
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
    problems: dict[Path, str],
    *,
    quiet: bool,
) -> RunState:
    """The state of one run of a sweep; ``slot`` is its array and task on a cluster."""
    run, folder = sweep.runs[line], state_folder(sweep.results, sweep.runs[line].key)
    queued = queue.get((sweep.names[slot[0]], slot[1])) if queue and slot else None
    job = sweep.arrays[slot[0]].job if slot else ""
    task = queued.job if queued else f"{job}_{slot[1]}" if slot and job else ""
    if record is not None and settles(record, replaces=run.replaces):
        log = log_path(folder, record.attempts) if record.attempts else None
        return replace(_of_record(record), **names_of_run(run), sweep=sweep.id, task=task, log=log)
    last = next(reversed(_attempts(folder, problems)), None)
    silent = silent_s(folder, last) if last else 0.0
    state, message = _unfinished(sweep, task, last, queued, queried=queue is not None, quiet=quiet, silent=silent)
    number = last.number if last else record.attempts if record else 0
    progress = _Progress.of(folder, since=last.started) if state == RUNNING and last else _Progress(stage="")
    return RunState(
        **names_of_run(run),
        state=state,
        message=message,
        attempts=number,
        sweep=sweep.id,
        task=task,
        seconds=3600 * last.hours if last else 0.0,
        done=progress.done,
        pace=progress.pace,
        stage=progress.stage,
        log=log_path(folder, number) if number else None,
    )


def _is_quiet(sweep: Sweep, problems: dict[Path, str]) -> bool:
    """Whether the command that made a sweep cannot be looked up, since it ran on another machine or before a reboot, and the sweep has
    shown no life for an hour. No submission takes that long, and a run that works shows life every minute."""
    if sweep.ended or sweep.submitter.alive() is not None or time.time() - sweep.created < QUIET_S:
        return False
    folders = [state_folder(sweep.results, run.key) for run in sweep.runs if sweep.executor != "slurm"]
    return all(silent_s(folder, attempt) > QUIET_S for folder in folders for attempt in _attempts(folder, problems))


def _attempts(folder: Path, problems: dict[Path, str]) -> list[Attempt]:
    """The attempts of a run; a folder that cannot be read goes to ``problems``."""
    try:
        return attempts(folder)
    except OSError as error:
        problems[folder] = error.strerror or str(error)
        return []


def _unfinished(
    sweep: Sweep,
    task: str,
    last: Attempt | None,
    queued: QueuedTask | None,
    *,
    queried: bool,
    quiet: bool,
    silent: float,
) -> tuple[str, str]:
    """State and message of a run without a record; ``queried``: the cluster's queue is known; ``quiet``: `_is_quiet`; ``silent``:
    `silent_s` of its last attempt."""
    if queued is not None and queued.state in ("SUSPENDED", "STOPPED"):
        return SUSPENDED, f"job {queued.job}: the cluster will let it go on"
    if last is not None and not last.end:
        alive = last.live()
        if alive is None:  # elsewhere: the cluster decides, else the last sign of life
            is_gone = queried and bool(task) and last.holder.job == task and queued is None
            recent = silent < sweep.lease_s and not is_gone
            alive = queued.state == "RUNNING" if queued is not None and last.holder.job == task else recent
        if alive:
            return RUNNING, f"on {last.holder.host}"
    if queued is not None and queued.active:
        return QUEUED, queued.reason if queued.state == "PENDING" else queued.state.lower()
    if sweep.ended == CANCELLED:
        return INTERRUPTED, "cancelled on request"
    if queued is not None and queued.state == "COMPLETING":  # if it was requeued, it becomes pending once it has ended
        return QUEUED, "its job is ending"
    if sweep.executor != "slurm" or not task:
        if sweep.submitter.alive() is not False and not sweep.ended and not quiet:
            return WAITING, "" if sweep.executor != "slurm" else "being submitted"
    elif not queried:
        return QUEUED, "the cluster was not queried"
    elif last is None:
        return INTERRUPTED, f"job {task} ended before the worker began; see its log"
    if last is None:
        return INTERRUPTED, "not started"
    return INTERRUPTED, last.detail or last.end or "its process is gone"


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """What ``progress.json`` holds."""

    stage: str
    done: float = 0.0
    at: float = 0.0
    pace: float = 0.0

    @classmethod
    def of(cls, folder: Path, *, since: float) -> _Progress:
        """What the run's process wrote; a file of an earlier attempt does not count."""
        with contextlib.suppress(OSError, ValueError):
            written = read_as(folder / "progress.json", cls)
            if written.at >= since:
                return replace(written, done=min(1.0, max(0.0, written.done)), pace=max(0.0, written.pace))
        return cls(stage="starting")


PROGRESS_SECONDS = 2.0


class ProgressFile:
    """``state/<key>/progress.json``: the stage of a run in words and its share of epochs done. Written at each change of stage, and every
    two seconds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"
        self._written = 0.0
        self._stage: object = None
        self._done, self._epoch = 0.0, ""
        self._first: tuple[float, float] | None = None
        self._pace = 0.0

    def __call__(self, content: dict[str, Any]) -> None:
        now, name = time.monotonic(), str(content.get("stage"))
        stage = (name, content.get("split"))
        if stage == self._stage and now - self._written < PROGRESS_SECONDS:
            return
        self._written, self._stage = now, stage
        if "epoch" in content:
            epoch, epochs, step, steps = (int(content[name]) for name in ("epoch", "epochs", "step", "steps"))
            self._done = (epoch - 1 + step / max(1, steps)) / max(1, epochs)
            self._epoch = f"epoch {epoch}/{epochs}"
            self._first = self._first or (now, self._done)  # a continued run has done a share before
        if name == "validation" and self._first and self._done > self._first[1]:
            self._pace = (now - self._first[0]) / (self._done - self._first[1])
        loss = f", loss {content['loss']:.3f}" if content.get("loss") is not None else ""
        words = {"training": f"training {self._epoch}{loss}", "validation": f"validating {self._epoch}"}
        done = 1.0 if name in ("test", "merging") else self._done  # both come after the last epoch
        text = {
            "stage": words.get(name, stage_in_words(content)),
            "done": done,
            "at": time.time(),
            "pace": self._pace,
        }
        with contextlib.suppress(OSError):  # a full disk must not end a run for its progress display
            write_atomically(self._path, json.dumps(text), durable=False)


def stage_in_words(content: Mapping[str, Any]) -> str:
    """``testing best``, ``merging (exact)``; other stages as they are called (`harness.experiment.scoring.Report`)."""
    stage = str(content.get("stage"))
    return {"test": f"testing {content.get('model')}", "merging": f"merging ({content.get('mode')})"}.get(stage, stage)


def time_left(runs: Collection[RunState]) -> str:
    """Time left for the unfinished runs, in words; empty before one has validated or finished. Assumes that as many run at once as now, and
    that each takes as long as finished runs on its benchmark, or else as all finished runs; before one has finished, as long as those at
    work will take at their pace, without their tests."""
    open_runs = [run for run in runs if run.unsettled]
    at_once = sum(run.state == RUNNING for run in open_runs)
    finished = [run for run in runs if run.state == FINISHED and run.seconds > 0]
    at_work = [replace(run, seconds=run.pace) for run in open_runs if run.state == RUNNING and run.pace > 0]
    known = finished or at_work
    if not at_once or not known:
        return ""

    def whole(benchmark: str) -> float:
        alike = [run.seconds for run in known if run.benchmark == benchmark] or [run.seconds for run in known]
        return sum(alike) / len(alike)

    left = sum(whole(run.benchmark) * (1.0 - run.done) for run in open_runs) / at_once
    basis = counted(len(finished), "finished run") if finished else f"{counted(len(at_work), 'run')} at work"
    return f"{clock(left)} left, estimated from {basis}"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
