"""One attempt at a run: a child process does the work; this process holds the lease, passes signals on and sees how the child ends.

The child is forked, so it starts at once where torch is already imported, and leaves nothing in memory for the next run. It dies with
its supervisor. The log of the attempt has a line for every stage, epoch and note that the child reports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.datasets.base import AWAY
from harness.dispatch.attempts import (
    BEATS_PER_LEASE,
    Attempt,
    End,
    Exhausted,
    Held,
    Holder,
    Lease,
    Lost,
    attempts,
    log_path,
    state_folder,
)
from harness.dispatch.run_states import ProgressFile, stage_in_words
from harness.dispatch.sweeps import PlannedRun, Sweep, settles
from harness.planning.request import Job
from harness.system.errors import device_fault, out_of_memory
from harness.system.files import create_anew, end_of
from harness.system.machine import now


class StopSignals(list[int]):
    """Numbers of the signals that asked a worker to stop, in order. The handler does nothing but remember them."""

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda number, frame: self.append(number))


MAX_CRASHES = 3
"""A run is given up after its process died this often without an external reason."""
STARTED = "harness job starts"
"""Line that a job script writes into its log each time it starts."""
_MEMORY_LIMIT = re.compile(
    r"exceeded (step|job) memory limit|exceeded memory limit|oom[_-]kill|out[ _]of[ _]memory", re.IGNORECASE
)
_CODES: dict[End, Code] = {"OOM": "OOM", "interrupted": "TIMEOUT"}
"""Codes of runs that are given up. One that was interrupted at its last allowed attempt was stopped at its time limit each time."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A run of a sweep that this process is to attempt.

    Args:
        line: the run's line in ``jobs.jsonl``.
        holder: this process.
        gpus: number of GPUs that it occupies.
    """

    sweep: Sweep
    line: int
    holder: Holder
    gpus: int = 0

    @cached_property
    def job(self) -> Job:
        return self.sweep.job(self.line)

    @property
    def planned(self) -> PlannedRun:
        return self.sweep.runs[self.line]

    @property
    def folder(self) -> Path:
        return state_folder(self.sweep.results, self.planned.key)

    def settled(self) -> Record | None:
        """The record that makes another attempt needless (`harness.dispatch.sweeps.settles`), None without one. Raises UsageError: its
        file cannot be read for now."""
        record = RecordStore(self.sweep.results).find(self.planned.key)
        return record if record is not None and settles(record, replaces=self.planned.replaces) else None

    def verdict(self, past: Sequence[Attempt]) -> tuple[End, str] | None:
        """Why a run without a record is given up after these attempts: its last end, and a line. None where another attempt is allowed;
        attempts of earlier submissions do not count."""
        before, last = self.planned.before, past[-1] if past else None
        if last is None or not last.end or last.number <= before:
            return None
        if last.end == "OOM":
            return "OOM", last.detail or "killed for exceeding its memory limit"
        crashes = [attempt for attempt in past if attempt.end == "killed" and attempt.number > before]
        if last.end == "killed" and len(crashes) >= MAX_CRASHES:
            return "killed", f"its process died {len(crashes)} times: {last.detail}"
        if last.number >= self.planned.limit:
            return last.end, f"did not finish in {len(past)} attempts; the last attempt ended as {last.end}"
        return None

    def complete(self, record: Record) -> Record:
        """Add what only the worker knows about a run to its record, just before the record is written."""
        past = attempts(self.folder)
        if past:  # the last may still run; its hours count up to now
            past[-1] = replace(past[-1], seen=time.time())
        return replace(
            record,
            attempts=max(1, len(past)),
            cost={**record.cost, "gpu_hours": sum(attempt.hours * attempt.gpus for attempt in past)},
            environment={**record.environment, **self.sweep.environment},
        )

    def give_up(self) -> Record | None:
        """Write the record of a run that cannot be finished after its attempts so far; its checkpoint stays, so that a retry continues.

        Returns:
            The record that stands, which may have come in the meantime; None where the run may be attempted once more.

        Raises:
            UsageError: the record cannot be written, or the file in its place cannot be read for now.
        """
        if (verdict := self.verdict(attempts(self.folder))) is None:
            return None
        if (standing := self.settled()) is not None:  # an attempt that was taken for dead may live
            return standing
        (end, detail), run = verdict, self.job.run
        code = _CODES.get(end, "ERROR")
        record = self.complete(Record(run=run, key=run.key, code=code, message=detail, finished=now()))
        RecordStore(self.sweep.results).write(record)
        return record


Outcome = Literal["finished", "failed", "interrupted", "elsewhere", "crashed", "gpu-failed", "files-away"]
"""``finished`` and ``failed``: there is a record, that of a failure by this attempt alone. ``interrupted``: stopped on request; continues
from its checkpoint. ``elsewhere``: another process works on it. The rest are `CRASHES`: the child died, and the run may be restarted."""
CRASHES: frozenset[Outcome] = frozenset({"crashed", "gpu-failed", "files-away"})

INTERRUPTED_STATUS = 75
AWAY_STATUS = 74
"""Exit status of a child that could not reach its files (`harness.datasets.base.AWAY`)."""
_TICK_S = 0.02


def supervise(assigned: Assignment, *, stop: StopSignals, in_child: bool = True) -> Outcome:
    """Attempt the run once, under its lease; returns when that has ended. Without ``in_child`` in this process, for debugging, where
    whatever it raises comes through."""
    if assigned.settled() is not None:
        return "finished"
    try:
        lease = Lease.acquire(
            assigned.folder,
            holder=assigned.holder,
            gpus=assigned.gpus,
            over=lambda past: assigned.verdict(past) is not None,
            lease_s=assigned.sweep.lease_s,
        )
    except Held:
        return "elsewhere"
    except Exhausted:
        return _outcome(assigned.give_up())
    if assigned.settled() is not None:  # written while a dead holder was watched
        lease.release("finished")
        return "finished"
    if not in_child:
        return _in_this_process(assigned, lease, stop=stop)
    oom_before = oom_kills()
    child = fork_child(assigned, log=log_path(assigned.folder, lease.attempt.number), stop=stop)
    try:
        status, overdue = watch(child, sweep=assigned.sweep, stop=stop, lease=lease)
    except Lost:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "elsewhere"
    if overdue and assigned.settled() is None:
        lease.release("interrupted", "asked to stop, and killed because it did not stop in time")
        return "interrupted"
    return _conclude(assigned, lease, status, oom_killed=oom_kills() > oom_before)


def _in_this_process(assigned: Assignment, lease: Lease, *, stop: StopSignals) -> Outcome:
    """Without heartbeats: a debugger stops them too, and others on this machine see that the process lives."""
    try:
        status = _execute(assigned, stop=stop, progress=ProgressFile(assigned.folder), signals=(signal.SIGINT,))
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk has no room for that either
            lease.release("killed", f"{type(error).__name__}: {error}")
        raise
    return _conclude(assigned, lease, status << 8, oom_killed=False)  # as os.waitpid reports a status


def fork_child(assigned: Assignment, *, log: Path, stop: StopSignals) -> int:
    """Fork the process that executes the run; returns its number.

    ``stop`` collects signals in the child too until the run can stop, as importing torch may take half a minute.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _die_with(supervisor)
        os.setpgid(0, 0)  # signals reach the child through its supervisor only
        _redirect(log)
        write_progress, numbers = ProgressFile(assigned.folder), (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)

        def report(content: dict[str, Any]) -> None:
            if line := log_line(content):
                print(line, flush=True)
            write_progress(content)

        status = _execute(assigned, stop=stop, progress=report, signals=numbers)
    except BaseException as error:
        traceback.print_exc()
        status = AWAY_STATUS if isinstance(error, OSError) and error.errno in AWAY else status
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _execute(
    assigned: Assignment, *, stop: StopSignals, progress: Callable[[dict[str, Any]], None], signals: Sequence[int]
) -> int:
    from harness.experiment.experiment import run_experiment
    from harness.training.outcome import Interrupted, StopRequest

    request = StopRequest()

    def request_stop(number: int, frame: object) -> None:
        stop.append(number)
        request.request()

    for number in signals:
        signal.signal(number, request_stop)
    if stop:  # a signal came before there was a request to set
        request.request()
    try:
        run_experiment(assigned.job, progress=progress, stop=request, complete=assigned.complete)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED_STATUS
    return 0


def watch(child: int, *, sweep: Sweep, stop: StopSignals, lease: Lease) -> tuple[int, bool]:
    """Wait for the child with heartbeats, passing stop signals on. The end of the command that submitted runs on this machine is one.

    Returns:
        Its wait status, and whether it was killed here because it did not stop in time.

    Raises:
        Lost: the lease was taken over.
    """
    forwarded, deadline, overdue = 0, float("inf"), False
    next_beat = time.monotonic() + sweep.lease_s / BEATS_PER_LEASE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, overdue
        time.sleep(_TICK_S)
        at = time.monotonic()
        if sweep.executor == "local" and sweep.submitter.alive() is False and not stop:
            stop.append(signal.SIGTERM)
        if len(stop) > forwarded:
            forwarded = len(stop)
            deadline = min(deadline, at + sweep.patience_s)
            os.kill(child, signal.SIGUSR2)
        if at > deadline:
            os.kill(child, signal.SIGKILL)
            deadline, overdue = float("inf"), True
        if at > next_beat:
            next_beat = at + sweep.lease_s / BEATS_PER_LEASE
            with contextlib.suppress(OSError):  # a full disk, a server that is away; a lost lease shows later
                lease.beat()


def _conclude(assigned: Assignment, lease: Lease, status: int, *, oom_killed: bool) -> Outcome:
    """Write how the attempt ended, by the record or by the child's wait status."""
    record = assigned.settled()
    if record is not None:
        lease.release("finished" if record.code == "OK" else "failed", record.code)
        return _outcome(record)
    code = os.waitstatus_to_exitcode(status)
    if code == INTERRUPTED_STATUS:
        lease.release("interrupted", "asked to stop")
        return "interrupted"
    last_line = last_words(log_path(lease.folder, lease.attempt.number))
    if code == -signal.SIGKILL and oom_killed:
        lease.release("OOM", "killed by the out-of-memory killer")
    elif last_line and out_of_memory(last_line):  # for example, a library that found no memory to be loaded
        lease.release("OOM", last_line)
    elif code < 0:
        lease.release("killed", f"signal {signal.Signals(-code).name}")
    else:
        node = f" on {assigned.holder.host}" if device_fault(last_line) else ""
        lease.release("killed", f"exit status {code}{node}" + (f": {last_line}" if last_line else ""))
    crash: Outcome = "files-away" if code == AWAY_STATUS else "gpu-failed" if device_fault(last_line) else "crashed"
    return _outcome(assigned.give_up(), crash=crash)


def _outcome(record: Record | None, *, crash: Outcome = "crashed") -> Outcome:
    return crash if record is None else "finished" if record.code == "OK" else "failed"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, where the kernel can (not on macOS)."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _redirect(log: Path) -> None:
    """Send the output of this process, and of what it starts, to ``log``."""
    descriptor = create_anew(log)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def log_line(content: dict[str, Any]) -> str:
    """The log line for what a run reports (`harness.experiment.scoring.Report`); empty for single updates."""
    if content.get("kind") == "note":
        return str(content["text"])
    if content.get("stage") != "training":
        return stage_in_words(content) + (
            f" on {content['split']}, {content['images']} images" if "split" in content else ""
        )
    if content.get("kind") != "epoch":
        return ""
    scores = [f"validation {name} {value:.4f}" for name, value in content.get("metrics", {}).items()]
    parts = [f"loss {content['loss']:.4f}", *scores, f"rate {content['rate']:.3g}", f"{content['seconds']:.1f} s"]
    return f"epoch {content['epoch']}/{content['epochs']}: {', '.join(parts)}"


def exceeded_memory(log: Path) -> bool:
    """Whether SLURM wrote into a job's log that its last attempt was killed for its memory."""
    try:
        return bool(_MEMORY_LIMIT.search(end_of(log, size=20_000).rpartition(STARTED)[2]))
    except (OSError, ValueError):
        return False


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for memory so far."""
    with contextlib.suppress(OSError):
        if match := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(encoding="ascii"), re.MULTILINE):
            return int(match[1])
    return 0


def last_words(log: Path) -> str:
    """Why a process died, by its log: the line about memory or a GPU's fault where there is one, since a library's advice may
    follow it; else the last line."""
    try:
        text = end_of(log, size=20_000)
    except (OSError, ValueError):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = (line for line in reversed(lines) if out_of_memory(line) or device_fault(line))
    return next(telling, lines[-1] if lines else "")[:300]
