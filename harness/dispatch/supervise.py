"""One start of a run: a child process does the work, this process holds the lease, passes signals on and sees how the child ends.

The child is forked, so it starts at once where torch is already imported, and leaves nothing behind in memory for the next run. It
dies with its supervisor.

The log of the start has a line for every stage, epoch and note that the child tells of. The processes of a run on several
GPUs find each other by a `Meeting`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness.archive.schema import Record
from harness.check import read_as
from harness.dispatch.attempt_end import give_up, gpu_hours, last_words, oom_kills, reason_to_give_up
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
    log_path,
    state_folder,
)
from harness.dispatch.queue import Accounting
from harness.dispatch.run_states import ProgressFile
from harness.dispatch.sweeps import settled
from harness.planning.job import Job
from harness.system.errors import UsageError, out_of_memory
from harness.system.files import create_anew, write_atomically


@dataclass(kw_only=True)
class StopSignals:
    """Signals that ask a worker to stop, remembered from the handler, which does nothing else. ``received``: numbers, in order."""

    received: list[int] = field(default_factory=list)

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        self.received.append(number)

    def __bool__(self) -> bool:
        return bool(self.received)


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """What a worker knows besides the job.

    Args:
        holder: this process.
        limit, before: see `harness.dispatch.sweeps.PlannedRun`.
        gpus: GPUs that the job occupies.
        lease_s: see `Lease.acquire`.
        patience_s: after a stop signal, how long the child may take to write its checkpoint.
        replaces: see `harness.dispatch.sweeps.settled`.
        environment: goes into the record: ``snapshot``, ``commit``, ``dirty``.
        variables: environment variables of the child.
        submitter: whose death ends the worker too; None on a cluster.
        accounting: of the cluster that this process is a job of, None outside one.
    """

    holder: Holder
    limit: int
    before: int = 0
    gpus: int = 0
    lease_s: float = LEASE_SECONDS
    patience_s: float = 60.0
    replaces: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    submitter: Holder | None = None
    accounting: Accounting | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a meeting's file holds: names of environment variables; empty where it was called off."""

    MASTER_ADDR: str = ""
    MASTER_PORT: str = ""


class Meeting:
    """A file that rank 0 writes once it has the lease, and the others wait for.

    Args:
        path: a file of this job and restart.
        size: number of processes.
    """

    def __init__(self, path: Path, *, size: int) -> None:
        self.path = path
        self.size = size

    def open(self) -> dict[str, str]:
        """Choose a port and tell the others; returns rank 0's environment variables."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        address = "127.0.0.1" if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1" else socket.gethostname()
        write_atomically(self.path, json.dumps({"MASTER_ADDR": address, "MASTER_PORT": str(port)}))
        return self.variables(rank=0, local_rank=0)

    def call_off(self) -> None:
        """The run does not start; nobody need wait."""
        write_atomically(self.path, "{}")

    def variables(self, *, rank: int, local_rank: int) -> dict[str, str]:
        """The environment variables of one process, empty where the run was called off. Raises FileNotFoundError: rank 0 has not
        decided yet."""
        place = read_as(self.path, _Place)
        if not place.MASTER_PORT:
            return {}
        return {**asdict(place), "RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(self.size)}


StartOutcome = Literal["finished", "failed", "interrupted", "elsewhere", "crashed"]
"""``finished`` and ``failed``: there is a record. ``interrupted``: asked to stop, continues from its checkpoint. ``elsewhere``: somebody
else works on it. ``crashed``: the child died; it may be started again."""

INTERRUPTED_STATUS = 75
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""Of a run on at most one GPU: whatever the shell that it was started from is a part of (``salloc -n 8``, torchrun), it is alone."""
SETTLED_S, LOOK_S = 30.0, 5.0
"""How long a process of a run that has its record may go on, and how often it is looked for."""
_TICK_S = 0.5
_LOOKS = 25


def supervise(job: Job, *, context: WorkerContext, stop: StopSignals, meeting: Meeting | None = None) -> StartOutcome:
    """Start the run once, under its lease. Returns when the child has ended."""
    try:
        return _supervise(job, context=context, stop=stop, meeting=meeting)
    finally:
        if meeting is not None and not meeting.path.is_file():
            meeting.call_off()


def _supervise(job: Job, *, context: WorkerContext, stop: StopSignals, meeting: Meeting | None) -> StartOutcome:
    results = Path(job.results)
    key = job.run.key
    folder = state_folder(results, key)
    if settled(results, key, replaces=context.replaces) is not None:
        return "finished"
    try:
        lease = Lease.acquire(
            folder,
            holder=context.holder,
            gpus=context.gpus,
            limit=context.limit,
            over=lambda starts: starts[-1].number > context.before and _verdict(starts, context) is not None,
            lease_s=context.lease_s,
        )
    except Held:
        return "elsewhere"
    except Exhausted as exhausted:
        if settled(results, key, replaces=context.replaces) is not None:  # by the holder of the last start
            return "finished"
        starts = exhausted.attempts
        verdict = _verdict(starts, context) or ("killed", f"started {len(starts)} times without finishing")
        return _give_up(job, starts, verdict, context)
    if settled(results, key, replaces=context.replaces) is not None:  # written while we waited for a dead holder
        lease.release("finished")
        return "finished"
    processes = ONE_PROCESS if meeting is None else meeting.open()
    context = replace(context, variables={**context.variables, **processes})
    oom_before = oom_kills()
    log = log_path(folder, lease.attempt.number)
    child = fork_child(job, context=context, log=log, stop=stop)
    try:
        over = partial(is_settled, job, context) if meeting else None
        status, overdue = watch(child, lease=lease, context=context, stop=stop, over=over)
    except Lost:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "elsewhere"
    if overdue and settled(results, key, replaces=context.replaces) is None:
        lease.release("interrupted", "asked to stop, and killed because it did not in time")
        return "interrupted"
    return _conclude(job, lease, status, oom_killed=oom_kills() > oom_before, context=context)


def fork_child(job: Job, *, context: WorkerContext, log: Path, stop: StopSignals) -> int:
    """Fork the process that executes ``job``; returns its number.

    ``stop`` remembers in the child too, until the run can be asked: importing torch may take half a minute.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        die_with(supervisor)
        os.setpgid(0, 0)  # signals reach the child through its supervisor only
        _redirect(log)
        os.environ.update(context.variables)
        status = _execute(job, context=context, stop=stop)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _execute(job: Job, *, context: WorkerContext, stop: StopSignals) -> int:
    from harness.experiment.experiment import run_experiment
    from harness.training.outcome import Interrupted, StopRequest

    request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, lambda *_: request.request())
    if stop:  # it came before there was a request to set
        request.request()
    folder = state_folder(Path(job.results), job.run.key)
    try:
        progress = logged(ProgressFile(folder))
        run_experiment(job, progress=progress, stop=request, complete=completion(folder, context))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED_STATUS
    return 0


def completion(folder: Path, context: WorkerContext) -> Callable[[Record], Record]:
    """What only the worker knows about a run, added to its record just before it is written."""

    def complete(record: Record) -> Record:
        starts = attempts(folder)
        starts = [*starts[:-1], replace(starts[-1], seen=time.time())] if starts else []
        hours, source = gpu_hours(starts, accounting=context.accounting)
        return replace(
            record,
            attempts=max(1, len(starts)),
            cost={**record.cost, "gpu_hours": hours},
            environment={**record.environment, **context.environment, "gpu_hours_source": source},
        )

    return complete


def watch(
    child: int,
    *,
    lease: Lease | None,
    context: WorkerContext,
    stop: StopSignals,
    over: Callable[[], bool] | None = None,
) -> tuple[int, bool]:
    """Wait for the child with heartbeats, passing stop signals on.

    Args:
        over: of one of several processes on a run, whether the run has its record: the child then has `SETTLED_S` to end by itself.
            One that waits for another that failed does not.

    Returns:
        Its wait status, and whether it was killed here because it did not stop in time.

    Raises:
        Lost: the lease was taken over.
    """
    forwarded = 0
    deadline, overdue = float("inf"), False
    next_beat = time.monotonic() + context.lease_s / BEATS_PER_LEASE
    next_look = time.monotonic() if over else float("inf")
    with waiting_for(child) as ended:
        while True:
            if (status := ended()) is not None:
                return status, overdue
            now = time.monotonic()
            if context.submitter is not None and context.submitter.alive() is False and not stop:
                stop.received.append(signal.SIGTERM)
            if len(stop.received) > forwarded:
                forwarded = len(stop.received)
                deadline = min(deadline, now + context.patience_s)
                os.kill(child, signal.SIGUSR2)
            if over is not None and now > next_look:
                next_look = now + LOOK_S
                if over():
                    next_look, deadline = float("inf"), min(deadline, now + SETTLED_S)
            if now > deadline:
                os.kill(child, signal.SIGKILL)
                deadline, overdue = float("inf"), True
            if lease is not None and now > next_beat:
                next_beat = now + context.lease_s / BEATS_PER_LEASE
                with contextlib.suppress(OSError):  # a full disk, a server that is away; a lost lease shows later
                    lease.beat()


@contextlib.contextmanager
def waiting_for(child: int) -> Iterator[Callable[[], int | None]]:
    """A function that waits up to `_TICK_S` for the child to end and gives its wait status, None where it has not ended.

    Pythons that were built against old kernel headers (conda's) lack ``os.pidfd_open``, and kernels before 5.3 refuse it: there it
    looks `_LOOKS` times a tick.
    """
    try:
        handle = os.pidfd_open(child)
    except (AttributeError, OSError):
        yield lambda: _looked(child)
        return
    try:
        yield lambda: os.waitpid(child, 0)[1] if select.select([handle], [], [], _TICK_S)[0] else None
    finally:
        os.close(handle)


def _looked(child: int) -> int | None:
    for _ in range(_LOOKS):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(_TICK_S / _LOOKS)
    return None


def is_settled(job: Job, context: WorkerContext) -> bool:
    """Whether the run has the record that makes another start needless; one that cannot be read for now is none yet."""
    try:
        return settled(Path(job.results), job.run.key, replaces=context.replaces) is not None
    except (UsageError, OSError):
        return False


def _conclude(job: Job, lease: Lease, status: int, *, oom_killed: bool, context: WorkerContext) -> StartOutcome:
    """Say how the attempt ended, from the record or from the child's wait status."""
    results = Path(job.results)
    record = settled(results, job.run.key, replaces=context.replaces)
    if record is not None:
        lease.release("finished" if record.code == "OK" else "failed", record.code)
        return "finished" if record.code == "OK" else "failed"
    code = os.waitstatus_to_exitcode(status)
    if code == INTERRUPTED_STATUS:
        lease.release("interrupted", "asked to stop")
        return "interrupted"
    last_line = last_words(log_path(lease.folder, lease.attempt.number))
    if code == -signal.SIGKILL and oom_killed:
        lease.release("OOM", "killed by the out-of-memory killer")
    elif last_line and out_of_memory(last_line):  # a library that found no room to be loaded, for one
        bare = last_line == "MemoryError"
        lease.release("OOM", "memory, or a limit on it (ulimit -v), was not enough to start" if bare else last_line)
    elif code < 0:
        lease.release("killed", f"signal {signal.Signals(-code).name}")
    else:
        lease.release("killed", f"exit status {code}" + (f": {last_line}" if last_line else ""))
    starts = attempts(lease.folder)
    verdict = _verdict(starts, context)
    return "crashed" if verdict is None else _give_up(job, starts, verdict, context)


def _verdict(starts: list[Attempt], context: WorkerContext) -> tuple[End, str] | None:
    return reason_to_give_up(starts, limit=context.limit, before=context.before)


def _give_up(job: Job, starts: list[Attempt], verdict: tuple[End, str], context: WorkerContext) -> StartOutcome:
    record = give_up(
        Path(job.results),
        job.run,
        end=verdict[0],
        detail=verdict[1],
        starts=starts,
        environment=dict(context.environment),
        accounting=context.accounting,
    )
    return "finished" if record.code == "OK" else "failed"


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; where it has no such promise (macOS), a thread looks every second."""
    pr_set_pdeathsig = 1
    try:
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (OSError, AttributeError):
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _redirect(log: Path) -> None:
    """Output of this process, and of what it starts, goes to ``log``."""
    descriptor = create_anew(log)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def logged(tell: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """``tell``, with a line on standard output for what a log keeps; a process that runs under a log prints into it."""

    def tell_and_log(content: dict[str, Any]) -> None:
        if line := log_line(content):
            print(line, flush=True)
        tell(content)

    return tell_and_log


def log_line(content: dict[str, Any]) -> str:
    """The line for what a run tells of itself (`harness.experiment.scoring.Tell`); empty for single updates."""
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
