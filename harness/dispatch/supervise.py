"""One start of a run: a child process does the work, this process holds the lease, passes signals on and sees how the child ends.

The child is forked, so it starts at once where torch is already imported, and leaves nothing behind in memory for the next run. It
dies with its supervisor. The log of the start has a line for every stage, epoch and note that the child reports.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.archive.schema import Record
from harness.dispatch.attempts import (
    BEATS_PER_LEASE,
    LEASE_SECONDS,
    Attempt,
    End,
    Exhausted,
    Held,
    Holder,
    Lease,
    Lost,
    attempts,
    give_up,
    gpu_hours,
    last_words,
    log_path,
    oom_kills,
    reason_to_give_up,
    state_folder,
)
from harness.dispatch.run_states import ProgressFile
from harness.dispatch.sweeps import Sweep, settled
from harness.planning.request import Job
from harness.system.errors import out_of_memory
from harness.system.files import create_anew


@dataclass(kw_only=True)
class StopSignals:
    """Signals that ask a worker to stop, remembered from the handler, which does nothing else. ``received``: numbers, in order."""

    received: list[int] = field(default_factory=list)

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda number, frame: self.received.append(number))

    def __bool__(self) -> bool:
        return bool(self.received)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run that this process is to start.

    Args:
        holder: this process.
        limit, before, replaces: see `harness.dispatch.sweeps.PlannedRun`.
        gpus: GPUs that it occupies.
        lease_s: see `Lease.acquire`.
        patience_s: after a stop signal, how long the child may take to write its checkpoint.
        environment: goes into the record: ``snapshot``, ``commit``, ``dirty``.
        size: processes of the run, each on a GPU; this one is the first.
        submitter: whose death ends the worker too; None on a cluster.
    """

    job: Job
    holder: Holder
    limit: int
    before: int = 0
    replaces: str = ""
    gpus: int = 0
    lease_s: float = LEASE_SECONDS
    patience_s: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)
    size: int = 1
    submitter: Holder | None = None

    @classmethod
    def of(cls, sweep: Sweep, line: int, *, task: str = "", gpus: int = 0, size: int = 1) -> Start:
        """Of one run of a sweep; ``task`` is the cluster's name of this job."""
        run, warned = sweep.runs[line], sweep.settings.get("signal_seconds")
        return cls(
            job=sweep.job(line),
            holder=Holder.here(job=task),
            limit=run.limit,
            before=run.before,
            replaces=run.replaces,
            gpus=gpus,
            lease_s=sweep.lease_s,
            patience_s=max(5.0, 0.5 * warned) if isinstance(warned, int) else 60.0,
            environment=sweep.environment,
            size=size,
            submitter=sweep.submitter if sweep.executor == "local" else None,
        )

    @property
    def folder(self) -> Path:
        return state_folder(Path(self.job.results), self.job.run.key)

    def settled(self) -> Record | None:
        """The record that makes this start needless; raises as `harness.dispatch.sweeps.settled`."""
        return settled(Path(self.job.results), self.job.run.key, replaces=self.replaces)

    def verdict(self, starts: list[Attempt]) -> tuple[End, str] | None:
        return reason_to_give_up(starts, limit=self.limit, before=self.before)

    def complete(self, record: Record) -> Record:
        """What only the worker knows about a run, added to its record just before it is written."""
        starts = attempts(self.folder)
        starts = [*starts[:-1], replace(starts[-1], seen=time.time())] if starts else []
        return replace(
            record,
            attempts=max(1, len(starts)),
            cost={**record.cost, "gpu_hours": gpu_hours(starts)},
            environment={**record.environment, **self.environment},
        )

    def processes(self, attempt: Attempt, *, rank: int = 0, local_rank: int = 0) -> dict[str, str]:
        """torch.distributed's variables for one process of the run. Alone, whatever the shell that it was started from is a part of
        (``salloc -n 8``, torchrun); else they meet on this node at a port that the lease's token gives."""
        alone = {"RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(self.size)}
        port = str(20_000 + int(attempt.token, 16) % 20_000)
        return alone if self.size == 1 else {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


Report = Callable[[dict[str, Any]], None]
"""What a run says of itself as it goes on."""

StartOutcome = Literal["finished", "failed", "interrupted", "elsewhere", "crashed"]
"""``finished`` and ``failed``: there is a record. ``interrupted``: stopped on request, continues from its checkpoint.
``elsewhere``: somebody else works on it. ``crashed``: the child died; it may be restarted."""

INTERRUPTED_STATUS = 75
_TICK_S = 0.02


def supervise(start: Start, *, stop: StopSignals, here: Literal["here", ""] = "") -> StartOutcome:
    """Start the run once, under its lease. Returns when the child has ended.

    Args:
        here: in this process, for debugging: whatever it raises comes through.
    """
    if start.settled() is not None:
        return "finished"
    try:
        lease = Lease.acquire(
            start.folder,
            holder=start.holder,
            gpus=start.gpus,
            limit=start.limit,
            over=lambda starts: starts[-1].number > start.before and start.verdict(starts) is not None,
            lease_s=start.lease_s,
        )
    except Held:
        return "elsewhere"
    except Exhausted as exhausted:
        if start.settled() is not None:  # by the holder of the last start
            return "finished"
        starts = exhausted.attempts
        verdict = start.verdict(starts) or ("killed", f"started {len(starts)} times without finishing")
        return _give_up(start, starts, verdict)
    if start.settled() is not None:  # written while we waited for a dead holder
        lease.release("finished")
        return "finished"
    if here:
        return _in_this_process(start, lease, stop=stop)
    oom_before = oom_kills()
    log = log_path(start.folder, lease.attempt.number)
    child = fork_child(start, log=log, stop=stop, variables=start.processes(lease.attempt))
    try:
        status, overdue = watch(child, start=start, stop=stop, lease=lease)
    except Lost:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "elsewhere"
    if overdue and start.settled() is None:
        lease.release("interrupted", "requested to stop, and killed because it did not in time")
        return "interrupted"
    return _conclude(start, lease, status, oom_killed=oom_kills() > oom_before)


def _in_this_process(start: Start, lease: Lease, *, stop: StopSignals) -> StartOutcome:
    progress = ProgressFile(start.folder)

    def report(content: dict[str, Any]) -> None:
        if time.time() - lease.attempt.seen > start.lease_s / BEATS_PER_LEASE:
            with contextlib.suppress(OSError):
                lease.beat()
        progress(content)

    try:
        status = _execute(start, stop=stop, progress=report, signals=(signal.SIGINT,))
    except BaseException as error:
        with contextlib.suppress(OSError):  # on a full disk there is no room for that either
            lease.release("killed", f"{type(error).__name__}: {error}")
        raise
    return _conclude(start, lease, status << 8, oom_killed=False)


def fork_child(start: Start, *, log: Path, stop: StopSignals, variables: Mapping[str, str]) -> int:
    """Fork the process that executes the run; returns its number.

    ``stop`` remembers in the child too, until the run can stop: importing torch may take half a minute.
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
        os.environ.update(variables)
        numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
        status = _execute(start, stop=stop, progress=_logged(ProgressFile(start.folder)), signals=numbers)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _execute(start: Start, *, stop: StopSignals, progress: Report, signals: Sequence[int]) -> int:
    from harness.experiment.experiment import run_experiment
    from harness.training.outcome import Interrupted, StopRequest

    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        stop.received.append(number)
        request.request()

    for number in signals:
        signal.signal(number, ask)
    if stop:  # it came before there was a request to set
        request.request()
    try:
        run_experiment(start.job, progress=progress, stop=request, complete=start.complete)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED_STATUS
    return 0


def watch(child: int, *, start: Start, stop: StopSignals, lease: Lease | None) -> tuple[int, bool]:
    """Wait for the child with heartbeats, passing stop signals on.

    Returns:
        Its wait status, and whether it was killed here because it did not stop in time.

    Raises:
        Lost: the lease was taken over.
    """
    forwarded, deadline, overdue = 0, float("inf"), False
    next_beat = time.monotonic() + start.lease_s / BEATS_PER_LEASE
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, overdue
        time.sleep(_TICK_S)
        now = time.monotonic()
        if start.submitter is not None and start.submitter.alive() is False and not stop:
            stop.received.append(signal.SIGTERM)
        if len(stop.received) > forwarded:
            forwarded = len(stop.received)
            deadline = min(deadline, now + start.patience_s)
            os.kill(child, signal.SIGUSR2)
        if now > deadline:
            os.kill(child, signal.SIGKILL)
            deadline, overdue = float("inf"), True
        if lease is not None and now > next_beat:
            next_beat = now + start.lease_s / BEATS_PER_LEASE
            with contextlib.suppress(OSError):  # a full disk, a server that is away; a lost lease shows later
                lease.beat()


def _conclude(start: Start, lease: Lease, status: int, *, oom_killed: bool) -> StartOutcome:
    """Say how the attempt ended, from the record or from the child's wait status."""
    record = start.settled()
    if record is not None:
        lease.release("finished" if record.code == "OK" else "failed", record.code)
        return "finished" if record.code == "OK" else "failed"
    code = os.waitstatus_to_exitcode(status)
    if code == INTERRUPTED_STATUS:
        lease.release("interrupted", "requested to stop")
        return "interrupted"
    last_line = last_words(log_path(lease.folder, lease.attempt.number))
    if code == -signal.SIGKILL and oom_killed:
        lease.release("OOM", "killed by the out-of-memory killer")
    elif last_line and out_of_memory(last_line):  # a library that found no room to be loaded, for one
        lease.release("OOM", last_line)
    elif code < 0:
        lease.release("killed", f"signal {signal.Signals(-code).name}")
    else:
        lease.release("killed", f"exit status {code}" + (f": {last_line}" if last_line else ""))
    starts = attempts(lease.folder)
    verdict = start.verdict(starts)
    return "crashed" if verdict is None else _give_up(start, starts, verdict)


def _give_up(start: Start, starts: list[Attempt], verdict: tuple[End, str]) -> StartOutcome:
    end, detail = verdict
    record = give_up(start.job, end=end, detail=detail, starts=starts, environment=dict(start.environment))
    return "finished" if record.code == "OK" else "failed"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, where it has such a promise (not macOS)."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _redirect(log: Path) -> None:
    """Output of this process, and of what it starts, goes to ``log``."""
    descriptor = create_anew(log)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _logged(report: Report) -> Report:
    """``report``, with a line on standard output for what a log keeps."""

    def tell_and_log(content: dict[str, Any]) -> None:
        if line := log_line(content):
            print(line, flush=True)
        report(content)

    return tell_and_log


def log_line(content: dict[str, Any]) -> str:
    """The line for what a run reports (`harness.experiment.scoring.Report`); empty for single updates."""
    if content.get("stage") != "training":
        words = [str(content[name]) for name in ("stage", "split") if content.get(name)]
        images = f", {content['images']} images" if content.get("images") else ""
        return " on ".join(words) + images
    if content.get("kind") == "note":
        return str(content["text"])
    if content.get("kind") != "epoch":
        return ""
    scores = [f"validation {name} {value:.4f}" for name, value in content.get("metrics", {}).items()]
    parts = [f"loss {content['loss']:.4f}", *scores, f"rate {content['rate']:.3g}", f"{content['seconds']:.1f} s"]
    return f"epoch {content['epoch']}/{content['epochs']}: {', '.join(parts)}"
