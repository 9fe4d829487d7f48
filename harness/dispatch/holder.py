"""A process that works on runs, told apart from every other on any machine."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, told apart from every other on any machine.

    Args:
        host, boot, namespace: machine, its boot and its process-number namespace; only where all are ours can a process be looked up.
        pid, ticks: process number and its start time (a number may be reused, both may not).
        job: the cluster's job, such as ``123_4``, empty outside a cluster.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    ticks: int
    job: str = ""

    @classmethod
    def here(cls, *, job: str = "") -> Holder:
        pid = os.getpid()
        try:
            ticks = _ticks(pid)
        except OSError:
            ticks = 0
        return cls(host=socket.gethostname(), boot=_boot(), namespace=_namespace(), pid=pid, ticks=ticks, job=job)

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
    """Start time of a process in clock ticks since boot; 0 for a zombie.

    Raises:
        OSError: it does not run, or we may not see it.
    """
    rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return 0 if rest[0] in "ZX" else int(rest[19])


def _there(pid: int) -> bool:
    """Whether a process has this number, which needs no look at it: /proc may be mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
