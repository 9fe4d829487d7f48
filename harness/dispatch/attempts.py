"""Who works on a run and how each start of it ended, in files that only ever appear: safe on NFS without a lock.

``ROOT/state/<key>/attempt.<n>.json`` is the lease of the n-th start. It is created whole and exclusively (a hard link), and from then on
only its owner replaces it, as heartbeat. ``attempt.<n>.end.json`` says how it ended; it is created once, by the owner or by whoever found
the owner dead. Taking over means creating ``attempt.<n+1>.json``: of any number of contenders one succeeds. The owner sees at its next
heartbeat that it was overtaken, and stops; `beating` shows that it lives for work that cannot stop to do so itself.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from harness.check import read_as
from harness.system.errors import UsageError
from harness.system.files import create_exclusively, write_atomically


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, told apart from every other on any machine.

    Args:
        host, boot, namespace: machine, its boot and its process-number namespace; only where all are ours can a process be looked up.
        pid, ticks: process number and its start time (a number may be reused, both may not).
        job, cluster: the cluster's job, such as ``123_4``, and the cluster's name, since two may number a job alike; empty elsewhere.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    ticks: int
    job: str = ""
    cluster: str = ""

    @classmethod
    def here(cls, *, job: str = "", cluster: str = "") -> Holder:
        pid = os.getpid()
        try:
            ticks = _ticks(pid)
        except OSError:
            ticks = 0
        host = socket.gethostname()
        return cls(host=host, boot=_boot(), namespace=_namespace(), pid=pid, ticks=ticks, job=job, cluster=cluster)

    def alive(self) -> bool | None:
        """Whether the process lives; None where it cannot be looked up from here."""
        if (self.host, self.boot, self.namespace) != (socket.gethostname(), _boot(), _namespace()):
            return None
        try:
            return _ticks(self.pid) == self.ticks
        except OSError:
            return None if _there(self.pid) else False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot, in seconds where the system has no /proc (macOS); 0 for a zombie.

    Raises:
        OSError: it does not run, or we may not see it.
    """
    if not Path("/proc/self").exists():
        return _ticks_by_ps(pid)
    rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return 0 if rest[0] in "ZX" else int(rest[19])


def _ticks_by_ps(pid: int) -> int:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    shown = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    if not started:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return 0 if state[0] in "ZX" else int(time.mktime(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")))


def _there(pid: int) -> bool:
    """Whether a process has this number, which needs no look at it: /proc may be mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


End = Literal[
    "finished", "failed", "interrupted", "OOM", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "CANCELLED", "killed", "lost"
]
"""How an attempt ended: ``finished`` and ``failed`` left a record; ``interrupted`` stopped by request, with a checkpoint; ``killed`` died
under the eyes of its supervisor; ``lost`` is no longer there and nobody knows why; the others were ended by the cluster."""

LEASE_SECONDS = 90.0
"""A holder on another machine that has not changed its lease for this long is dead."""
BEATS_PER_LEASE = 6


class Held(Exception):
    """Somebody alive has the lease."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(f"attempt {attempt.number} runs on {attempt.holder.host} (process {attempt.holder.pid})")
        self.attempt = attempt


class Exhausted(Exception):
    """The run was started as often as allowed, or failed for good."""

    def __init__(self, attempts: list[Attempt]) -> None:
        super().__init__(f"started {len(attempts)} times")
        self.attempts = attempts


class Lost(Exception):
    """Somebody else took the lease over; stop without writing anything."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run.

    Args:
        number: 1 for the first.
        token: tells two attempts of one process apart.
        started, seen: seconds since the epoch by the holder's clock: start, and last heartbeat.
        gpus: how many GPUs it occupies.
        lease_s: the silence after which its holder may be taken for dead; zero where an older version did not say.
        end, detail, ended: how, why and when it ended; empty while it runs.
        unreadable: what is wrong with its file; nothing else but ``seen``, the file's time, is known then.
    """

    number: int
    holder: Holder
    token: str
    started: float
    seen: float
    gpus: int = 0
    lease_s: float = 0.0
    end: End | Literal[""] = ""
    detail: str = ""
    ended: float = 0.0
    unreadable: str = ""

    @property
    def hours(self) -> float:
        return max(0.0, (self.ended or self.seen) - self.started) / 3600

    def live(self) -> bool | None:
        """False when it ended or its process is gone, True when its process is seen, None when only the heartbeat can tell."""
        return False if self.end else self.holder.alive()


def state_folder(results: Path, key: str) -> Path:
    """Everything about a run that is not a result: attempts, log, progress, checkpoint."""
    return results / "state" / key


def log_path(folder: Path, number: int) -> Path:
    return folder / f"attempt.{number}.log"


def attempts(folder: Path) -> list[Attempt]:
    """All starts of a run, oldest first."""
    starts = []
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    ended = {name for name in names if name.endswith(".end.json")}
    for name in names:
        if match := re.fullmatch(r"attempt\.([1-9]\d{0,5})\.json", name):
            attempt = _read_attempt(folder, int(match[1]), with_end=f"attempt.{match[1]}.end.json" in ended)
            if attempt is not None:
                starts.append(attempt)
    return sorted(starts, key=lambda attempt: attempt.number)


def close(folder: Path, attempt: Attempt, end: End, detail: str = "") -> None:
    """Say how a dead attempt ended; the first to say so is believed."""
    content = {"end": end, "detail": detail, "ended": attempt.seen}
    create_exclusively(folder / f"attempt.{attempt.number}.end.json", json.dumps(content))


class Lease:
    """The right to work on a run, from `acquire` until `release` or until somebody takes it over."""

    def __init__(self, folder: Path, attempt: Attempt) -> None:
        self.folder = folder
        self.attempt = attempt

    @classmethod
    def acquire(
        cls,
        folder: Path,
        *,
        holder: Holder,
        gpus: int = 0,
        limit: int | None = None,
        over: Callable[[list[Attempt]], bool] = lambda starts: False,
        lease_s: float = LEASE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Lease:
        """Take the lease, from a dead holder if need be.

        A holder on another machine is watched for up to ``lease_s`` seconds, or its own where that is more, by our own clock, so
        clocks need not agree.

        Args:
            folder: `state_folder` of the run.
            gpus: GPUs that the attempt will occupy.
            limit: highest number that the attempt may have.
            over: whether the run is to be given up after these starts, all of which have ended. Between the end of its last start
                and its record it is seen by others.

        Raises:
            Held: somebody alive has it.
            Exhausted: the attempt would exceed ``limit``, or the run is to be given up.
            UsageError: something that is no attempt has the name of the next.
        """
        while True:
            earlier = attempts(folder)
            if earlier:
                _wait_for_end(folder, earlier[-1], lease_s=lease_s, sleep=sleep)
            number = earlier[-1].number + 1 if earlier else 1
            ended = attempts(folder)
            if limit is not None and number > limit:
                raise Exhausted(ended)
            if ended and ended[-1].end and over(ended):
                raise Exhausted(ended)
            now = time.time()
            attempt = Attempt(
                number=number,
                holder=holder,
                token=secrets.token_hex(6),
                started=now,
                seen=now,
                gpus=gpus,
                lease_s=lease_s,
            )
            if create_exclusively(_path(folder, number), _text(attempt)):
                return cls(folder, attempt)
            if not any(start.number >= number for start in attempts(folder)):
                raise UsageError(f"{_path(folder, number)} is in the way and no start of this run; move it away")
            # Somebody was faster; look again.

    def beat(self) -> None:
        """Show that we live.

        Raises:
            Lost: overtaken.
        """
        if _path(self.folder, self.attempt.number + 1).exists():
            raise Lost(f"attempt {self.attempt.number} was overtaken")
        self.attempt = replace(self.attempt, seen=time.time())
        write_atomically(_path(self.folder, self.attempt.number), _text(self.attempt), durable=False)

    def release(self, end: End, detail: str = "") -> None:
        self.attempt = replace(self.attempt, seen=time.time())
        close(self.folder, self.attempt, end, detail)


def _wait_for_end(folder: Path, attempt: Attempt, *, lease_s: float, sleep: Callable[[float], None]) -> None:
    alive = attempt.live()
    if alive:
        raise Held(attempt)
    if alive is None:
        lease_s = max(lease_s, attempt.lease_s)
        deadline = time.monotonic() + lease_s
        while time.monotonic() < deadline:
            sleep(min(2.0, lease_s / 20))
            now = _read_attempt(folder, attempt.number, with_end=True)
            if now is None or now.end:
                return
            if now.seen != attempt.seen:
                raise Held(now)
    if not attempt.end:
        close(folder, attempt, "lost", f"no sign of life from process {attempt.holder.pid} on {attempt.holder.host}")


def _path(folder: Path, number: int) -> Path:
    return folder / f"attempt.{number}.json"


def _text(attempt: Attempt) -> str:
    content = asdict(attempt)
    for name in ("end", "detail", "ended", "unreadable"):
        del content[name]
    return json.dumps(content)


def _read_attempt(folder: Path, number: int, *, with_end: bool) -> Attempt | None:
    """Start ``number`` of a run; None where it is not there. One that cannot be read may be half written, or of a later version: its holder
    is watched like one on another machine."""
    path = _path(folder, number)
    try:
        attempt = replace(read_as(path, Attempt), number=number, unreadable="")
    except FileNotFoundError:
        return None
    except ValueError as error:
        attempt = _unreadable(path, number, str(error))
    if not with_end:
        return attempt
    path = folder / f"attempt.{number}.end.json"
    try:
        ending = read_as(path, _Ending)
    except FileNotFoundError:
        return attempt
    except ValueError as error:
        return replace(attempt, end="lost", detail=f"{path.name} cannot be read ({error})", ended=attempt.seen)
    return replace(attempt, end=ending.end, detail=ending.detail, ended=ending.ended)


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """What ``attempt.<n>.end.json`` holds."""

    end: End
    detail: str = ""
    ended: float = 0.0


def _unreadable(path: Path, number: int, reason: str) -> Attempt:
    try:
        seen = path.lstat().st_mtime
    except OSError:
        seen = 0.0
    nobody = Holder(host="an unknown machine", boot="", namespace="", pid=0, ticks=0)
    return Attempt(number=number, holder=nobody, token="", started=seen, seen=seen, unreadable=reason)


class beating:
    """Context in which the lease beats."""

    def __init__(self, lease: Lease, *, lease_s: float = LEASE_SECONDS) -> None:
        self._lease = lease
        self._interval = lease_s / BEATS_PER_LEASE
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self._lease

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            try:
                self._lease.beat()
            except Lost:
                traceback.print_exc()
                os._exit(1)  # somebody else works on it now; nothing may be written any more
            except OSError as error:
                print(f"heartbeat: {error}", file=sys.stderr)
