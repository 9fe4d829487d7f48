"""Who works on a run and how each start of it ended, in files that only ever appear: safe on NFS without a lock; and when a run is
given up.

``ROOT/state/<key>/attempt.<n>.json`` is the lease of the n-th start. It is created whole and exclusively (a hard link), and from then on
only its owner replaces it, as heartbeat. ``attempt.<n>.end.json`` says how it ended; it is created once, by the owner or by whoever found
the owner dead. Taking over means creating ``attempt.<n+1>.json``: of any number of contenders one succeeds. The owner sees at its next
heartbeat that it was overtaken, and stops.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.planning.request import Job
from harness.system.errors import UsageError, out_of_memory
from harness.system.files import create_exclusively, end_of, write_atomically


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, distinct from every other on any machine.

    Args:
        host, boot, namespace: machine, its boot and its process-number namespace; only where all are ours can a process be looked up.
        pid, ticks: process number and its start time (a number may be reused, both may not; no time where there is no /proc).
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
"""How an attempt ended: ``finished`` and ``failed`` left a record; ``interrupted`` stopped by request, with a checkpoint; ``killed`` died
under the eyes of its supervisor, ``OOM`` for memory; ``lost`` is no longer there and nobody knows why."""

LEASE_SECONDS = 90.0
"""A holder on another machine that has not changed its lease for this long is dead."""
BEATS_PER_LEASE = 6


class Held(Exception):
    """Somebody alive has the lease."""


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
        token: distinguishes two attempts of one process.
        started, seen: seconds since the epoch by the holder's clock: start, and last heartbeat.
        gpus: how many GPUs it occupies.
        lease_s: the silence after which its holder may be taken for dead; zero where an older version did not say.
        end, detail, ended: how, why and when it ended; empty while it runs.
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

    @property
    def hours(self) -> float:
        """By the holder's clock."""
        return max(0.0, (self.ended or self.seen) - self.started) / 3600

    def live(self) -> bool | None:
        """False when it ended or its process is gone, True when its process is seen, None when only the heartbeat shows it."""
        return False if self.end else self.holder.alive()


def state_folder(results: Path, key: str) -> Path:
    """Everything about a run that is not a result: attempts, log, progress, checkpoint."""
    return results / "state" / key


def log_path(folder: Path, number: int) -> Path:
    return folder / f"attempt.{number}.log"


def attempts(folder: Path) -> list[Attempt]:
    """All starts of a run, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"attempt\.([1-9]\d{0,5})\.json", name)))
    starts = (_read_attempt(folder, number) for number in numbers)
    return [start for start in starts if start is not None]


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
            now, token = time.time(), secrets.token_hex(6)
            attempt = Attempt(
                number=number, holder=holder, token=token, started=now, seen=now, gpus=gpus, lease_s=lease_s
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


def _text(attempt: Attempt) -> str:
    content = asdict(attempt)
    for name in ("end", "detail", "ended"):
        del content[name]
    return json.dumps(content)


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """What ``attempt.<n>.end.json`` holds."""

    end: End
    detail: str = ""
    ended: float = 0.0


def _read_attempt(folder: Path, number: int) -> Attempt | None:
    """Start ``number`` of a run; None where it is not there. One that cannot be read may be half written, or of a later version: its holder
    is watched like one on another machine."""
    path = _path(folder, number)
    try:
        attempt = replace(read_as(path, Attempt), number=number)
    except FileNotFoundError:
        return None
    except ValueError:
        nobody = Holder(host="an unknown machine", boot="", namespace="", pid=0, ticks=0)
        seen = path.lstat().st_mtime if os.path.lexists(path) else 0.0
        attempt = Attempt(number=number, holder=nobody, token="", started=seen, seen=seen)
    path = folder / f"attempt.{number}.end.json"
    try:
        ending = read_as(path, _Ending)
    except FileNotFoundError:
        return attempt
    except ValueError as error:
        return replace(attempt, end="lost", detail=f"{path.name} cannot be read ({error})", ended=attempt.seen)
    return replace(attempt, end=ending.end, detail=ending.detail, ended=ending.ended)


MAX_CRASHES = 3
"""A run whose process dies so often without a reason from outside is given up."""

_CODES: dict[End, Code] = {"OOM": "OOM", "interrupted": "TIMEOUT"}
"""A run that was interrupted so often that it was given up was stopped at its time limit each time."""
STARTED = "harness job starts"
"""What a job script says at each of its starts, into one log."""
_MEMORY_LIMIT = re.compile(
    r"exceeded (step|job) memory limit|exceeded memory limit|oom[_-]kill|out[ _]of[ _]memory", re.IGNORECASE
)


def exceeded_memory(log: Path) -> bool:
    """Whether SLURM wrote into a job's log that its last start was killed for its memory."""
    try:
        return bool(_MEMORY_LIMIT.search(end_of(log, size=20_000).rpartition(STARTED)[2]))
    except (OSError, ValueError):
        return False


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for memory so far."""
    with suppress(OSError):
        if match := re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(encoding="ascii"), re.MULTILINE):
            return int(match[1])
    return 0


def last_words(log: Path) -> str:
    """What a process died of by its log: the line that says so where it was memory (others come after it, such as numpy's
    advice on an import that failed), else the last one."""
    try:
        text = end_of(log, size=20_000)
    except (OSError, ValueError):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if out_of_memory(line)), lines[-1] if lines else "")[:300]


def reason_to_give_up(starts: Sequence[Attempt], *, limit: int, before: int = 0) -> tuple[End, str] | None:
    """Whether a run without a record has to be given up after these starts, and why; None if it may be restarted.

    Args:
        limit: highest attempt number allowed.
        before: attempts up to this number belong to earlier submissions; their crashes do not count.
    """
    if not starts:
        return None
    last = starts[-1]
    if last.end == "OOM":
        return "OOM", last.detail or "killed for exceeding its memory limit"
    if not last.end:
        return None
    crashes = [start for start in starts if start.end == "killed" and start.number > before]
    if last.end == "killed" and len(crashes) >= MAX_CRASHES:
        return "killed", f"its process died {len(crashes)} times: {last.detail}"
    if last.number >= limit:
        return last.end, f"started {len(starts)} times without finishing; the last start ended as {last.end}"
    return None


def give_up(job: Job, *, end: End, detail: str, starts: Sequence[Attempt], environment: dict[str, str]) -> Record:
    """Write the record of a run that cannot be finished; its checkpoint stays, so that a retry continues.

    Returns:
        The record that stands: a success that came in the meantime is not replaced.

    Raises:
        UsageError: the record cannot be written, or what is in its place cannot be read for now.
    """
    store = RecordStore(Path(job.results))
    finished = store.find(job.run.key)
    if finished is not None and finished.code == "OK":  # a start taken for dead may live
        return finished
    record = Record(
        run=job.run,
        key=job.run.key,
        code=_CODES.get(end, "ERROR"),
        message=detail,
        cost={"gpu_hours": gpu_hours(starts)},
        environment=environment,
        attempts=max(1, len(starts)),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    store.write(record)
    return record


def gpu_hours(starts: Sequence[Attempt]) -> float:
    """Of all starts of a run, by the clocks of their machines. The last start may still run."""
    return sum(start.hours * start.gpus for start in starts)
