"""Questions to a SLURM cluster: what is queued, submit, cancel. A controller that is away for a while is waited for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.system.errors import UsageError

TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)|zero bytes were transmitted"
    r"|resource temporarily unavailable|slurm temporarily unable to accept job|backup controller|communication connection failure"
    r"|controller.*(standby|not responding)|unexpected message received|message receive failure|missing socket|bufs_sendto|broken pipe",
    re.IGNORECASE,
)
_NAMES = 1000
"""Job names in one question; the kernel bounds the length of an argument."""
ENDED = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
))  # fmt: skip
"""States after which nothing comes of a job. A word that we do not know is not one: taking a job for ended doubles it."""


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
"""Name of an array and number of its task -> what the controller knows of it. By name, as a controller that was killed may give
the id of a job that it forgot to another."""


class Unreachable(UsageError):
    """The controller did not answer for as long as we were willing to wait."""


class Slurm:
    """A cluster's command-line clients.

    Args:
        patience_s: how long to wait for a controller that does not answer.
    """

    def __init__(self, *, patience_s: float = 300.0) -> None:
        self.patience_s = patience_s

    @staticmethod
    def require() -> None:
        """Raises UsageError where SLURM is not installed."""
        if shutil.which("sbatch") is None:
            raise UsageError(
                "no SLURM here: sbatch is not on this machine's PATH; run this on a login node of the cluster, or leave out"
                " --cluster to run here"
            )

    def queue(self, names: Iterable[str]) -> Queue:
        """The tasks of the arrays with these names, whoever submitted them, as long as the controller remembers them."""
        ordered, queue = sorted(set(names)), dict[tuple[str, int], QueuedTask]()
        for start in range(0, len(ordered), _NAMES):
            named = f"--name={','.join(ordered[start : start + _NAMES])}"
            command = ["squeue", "--noheader", "--array", "--format=%F|%K|%T|%j|%r", "--states=all", named]
            for line in self.ask(command).splitlines():
                fields = line.split("|", 4)
                if len(fields) == 5 and fields[1].isdigit():  # else a heading, a warning or no array
                    array, index, state, name, reason = fields
                    queue[name, int(index)] = QueuedTask(job=f"{array}_{index}", state=state, reason=reason)
        return queue

    def cancel(self, jobs: Sequence[str]) -> None:
        if jobs:
            self.ask(["scancel", *jobs])

    def ask(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
        """A client's answer, waiting for a controller that is away.

        Raises:
            Unreachable: no answer for ``patience_s``.
            UsageError: refused.
        """
        # Without variables that change what the clients print, or which cluster they ask.
        changing = ("SQUEUE_", "SCANCEL_", "SLURM_CLUSTERS")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
        deadline, pause, announced = time.monotonic() + self.patience_s, 0.5, False
        while True:
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=120, check=False, env=dict(environment or plain)
                )
                message = done.stderr or done.stdout
                if not done.returncode:
                    return done.stdout
            except FileNotFoundError as error:
                raise UsageError(
                    f"{command[0]} is not on this machine's PATH; run this on a login node of the cluster"
                ) from error
            except subprocess.TimeoutExpired:
                message = "socket timed out"
            lines = [re.sub(rf"^{command[0]}:\s*(error:\s*)?", "", line.strip()) for line in message.splitlines()]
            message = f"{command[0]}: {'; '.join(dict.fromkeys(filter(None, lines))) or 'failed without a message'}"
            if not TRANSIENT.search(message):
                raise UsageError(message)
            waiting = f"the SLURM controller does not answer ({message})"
            if time.monotonic() > deadline:
                raise Unreachable(f"{waiting}, not for {self.patience_s:.0f} s; try again later")
            if not announced:
                print(f"{waiting}; waiting up to {self.patience_s:.0f} s for it", file=sys.stderr)
                announced = True
            time.sleep(pause)
            pause = min(pause * 1.5, 10.0)


def user_name() -> str:
    """Who this process runs as, as SLURM names users."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may have no entry for its user
        return str(os.geteuid())
