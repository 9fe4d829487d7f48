"""The attempts of a run as files: which process works on it, and how each attempt ended. Safe on NFS without a lock.

``ROOT/state/<key>/attempt.<n>.json`` is the lease of the n-th attempt. It is created whole and exclusively (a hard link). From then on
only its owner replaces it, as a heartbeat. ``attempt.<n>.end.json`` says how it ended. It is created once, by the owner or by
whoever finds the owner dead. Taking over means creating ``attempt.<n+1>.json``: only one of the contenders succeeds. The owner
sees at its next heartbeat that it was overtaken, and stops.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from harness.check import read_as
from harness.system.errors import UsageError
from harness.system.files import create_exclusively, write_atomically


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, distinct from every other on any machine.

    Args:
        host, boot, namespace: machine, its boot and its namespace of process numbers. A process can be looked up only where all three
            are ours.
        pid, ticks: process number and start time, which together are never reused; ticks is 0 without /proc.
        job: the cluster's job, such as ``123_4``; empty elsewhere.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    ticks: int
    job: str = ""

    @classmethod
    def here(cls, *, job: str = "") -> Holder:
        return cls(**_machine(), pid=os.getpid(), ticks=_ticks(os.getpid()) or 0, job=job)

    def alive(self) -> bool | None:
        """Whether the process lives; None where it cannot be looked up from here."""
        if {"host": self.host, "boot": self.boot, "namespace": self.namespace} != _machine():
            return None
        ticks = _ticks(self.pid)
        if ticks is not None:
            return ticks == self.ticks
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # another user's
            pass
        return None  # /proc may be mounted with hidepid, and macOS has none


def _machine() -> dict[str, str]:
    boot = namespace = ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # macOS
        pass
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, 0 for a zombie; None where we cannot see it."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if rest[0] in "ZX" else int(rest[19])


End = Literal["finished", "failed", "interrupted", "OOM", "killed", "lost"]
"""How an attempt ended. ``finished`` and ``failed`` left a record. ``interrupted`` stopped on request, with a checkpoint. ``killed``
died and its supervisor saw it, ``OOM`` for lack of memory. ``lost`` vanished for an unknown reason."""

LEASE_SECONDS = 90.0
"""A holder on another machine that has not changed its lease for this long is dead."""
BEATS_PER_LEASE = 6


class Held(Exception):
    """Raised if a live process holds the lease."""


class Exhausted(Exception):
    """Raised if no further attempt at the run is made."""


class Lost(Exception):
    """Raised if another process took over the lease: stop without writing anything."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt at a run.

    Args:
        number: 1 for the first.
        started, seen: start and last heartbeat, in seconds since the epoch by the holder's clock.
        gpus: how many GPUs it occupies.
        lease_s: seconds of silence after which its holder may be taken for dead; 0 in older files.
        end, detail, ended: how, why and when it ended; empty while it runs.
    """

    number: int
    holder: Holder
    started: float
    seen: float
    gpus: int = 0
    lease_s: float = 0.0
    end: End | Literal[""] = ""
    detail: str = ""
    ended: float = 0.0

    @property
    def hours(self) -> float:
        """Seconds that it took, by the holder's clock."""
        return max(0.0, (self.ended or self.seen) - self.started) / 3600

    def live(self) -> bool | None:
        """False where it ended or its process is gone, True where its process is seen, None where only the heartbeat can tell."""
        return False if self.end else self.holder.alive()


def state_folder(results: Path, key: str) -> Path:
    """Everything about a run that is not a result: attempts, log, progress, checkpoint."""
    return results / "state" / key


def log_path(folder: Path, number: int) -> Path:
    return folder / f"attempt.{number}.log"


def attempts(folder: Path) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"attempt\.([1-9]\d{0,5})\.json", name)))
    read = (_read_attempt(folder, number) for number in numbers)
    return [attempt for attempt in read if attempt is not None]


def silent_s(folder: Path, attempt: Attempt) -> float:
    """Seconds since the holder last changed its lease, by the file's own time: another host's clock may be hours off."""
    with contextlib.suppress(OSError):
        return time.time() - _path(folder, attempt.number).stat().st_mtime
    return math.inf


def close(folder: Path, attempt: Attempt, end: End, detail: str = "") -> None:
    """Write how an attempt ended; the first such file counts."""
    content = {"end": end, "detail": detail, "ended": attempt.seen}
    create_exclusively(folder / f"attempt.{attempt.number}.end.json", json.dumps(content))


class Lease:
    """The right to work on a run, from `acquire` until `release` or until another process takes it over."""

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
        over: Callable[[list[Attempt]], bool] = lambda past: False,
        lease_s: float = LEASE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Lease:
        """Take the lease, from a dead holder where there is one.

        A holder on another machine is watched for ``lease_s`` seconds, or for its own lease where that is longer. Our clock measures it, so
        clocks need not agree.

        Args:
            folder: `state_folder` of the run.
            gpus: GPUs that the attempt will occupy.
            over: whether the run is to be given up after these attempts, all of which have ended. Others see a run between the end of
                its last attempt and its record.

        Raises:
            Held: a live process has it.
            Exhausted: the run is to be given up.
            UsageError: a file that is not an attempt has the name of the next attempt.
        """
        while True:
            earlier = attempts(folder)
            if earlier:
                _wait_for_end(folder, earlier[-1], lease_s=lease_s, sleep=sleep)
            number = earlier[-1].number + 1 if earlier else 1
            ended = attempts(folder)
            if ended and ended[-1].end and over(ended):
                raise Exhausted
            now = time.time()
            attempt = Attempt(number=number, holder=holder, started=now, seen=now, gpus=gpus, lease_s=lease_s)
            if create_exclusively(_path(folder, number), json.dumps(asdict(attempt))):
                return cls(folder, attempt)
            if not any(other.number >= number for other in attempts(folder)):
                raise UsageError(
                    f"{_path(folder, number)} is in the way and is not an attempt of this run; move it away"
                )
            # Another process was faster; look once more.

    def beat(self) -> None:
        """Write a heartbeat. Raises Lost: another process took over."""
        if _path(self.folder, self.attempt.number + 1).exists():
            raise Lost(f"attempt {self.attempt.number} was overtaken")
        self.attempt = replace(self.attempt, seen=time.time())
        content = json.dumps(asdict(self.attempt))
        write_atomically(_path(self.folder, self.attempt.number), content, durable=False)

    def release(self, end: End, detail: str = "") -> None:
        self.attempt = replace(self.attempt, seen=time.time())
        close(self.folder, self.attempt, end, detail)


def _wait_for_end(folder: Path, attempt: Attempt, *, lease_s: float, sleep: Callable[[float], None]) -> None:
    alive = attempt.live()
    if alive:
        raise Held
    if alive is None:
        lease_s = max(lease_s, attempt.lease_s)
        deadline = time.monotonic() + lease_s
        while time.monotonic() < deadline:
            sleep(min(2.0, lease_s / 20))
            now = _read_attempt(folder, attempt.number)
            if now is None or now.end:
                return
            if now.seen != attempt.seen:
                raise Held
    if not attempt.end:
        close(folder, attempt, "lost", f"no sign of life from process {attempt.holder.pid} on {attempt.holder.host}")


def _path(folder: Path, number: int) -> Path:
    return folder / f"attempt.{number}.json"


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """What ``attempt.<n>.end.json`` holds."""

    end: End
    detail: str = ""
    ended: float = 0.0


def _read_attempt(folder: Path, number: int) -> Attempt | None:
    """Attempt ``number`` of a run; None where it is missing. An unreadable file may be half written or from a later version, so its
    holder is watched like one on another machine."""
    path = _path(folder, number)
    try:
        attempt = replace(read_as(path, Attempt), number=number)
    except FileNotFoundError:
        return None
    except ValueError:
        nobody = Holder(host="an unknown machine", boot="", namespace="", pid=0, ticks=0)
        seen = path.lstat().st_mtime if os.path.lexists(path) else 0.0
        attempt = Attempt(number=number, holder=nobody, started=seen, seen=seen)
    path = folder / f"attempt.{number}.end.json"
    try:
        ending = read_as(path, _Ending)
    except FileNotFoundError:
        return attempt
    except ValueError as error:
        return replace(attempt, end="lost", detail=f"{path.name} cannot be read ({error})", ended=attempt.seen)
    return replace(attempt, end=ending.end, detail=ending.detail, ended=ending.ended)
