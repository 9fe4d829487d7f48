"""What a cluster says of its jobs, as plain data: the tasks in its queue, and its accounts of those that ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

ENDED = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
))  # fmt: skip
"""States after which nothing comes of a job. A word that we do not know is not one: taking a job for ended doubles it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One array task (or plain job) that the controller knows.

    Args:
        job: array job id and task, such as ``123_4``; ``123`` for a plain job.
        state: SLURM's word, such as ``PENDING``.
        reason: why it waits.
        name: of the job. A controller that was killed may give the id of a job that it forgot to another.
    """

    job: str
    state: str
    reason: str = ""
    name: str = ""

    @property
    def active(self) -> bool:
        return self.state not in ENDED


@dataclass(frozen=True, kw_only=True)
class Account:
    """One start of a task as accounting remembers it.

    Args:
        state: first word of SLURM's state, such as ``TIMEOUT``.
        seconds: elapsed.
        gpus: allocated.
    """

    job: str
    state: str
    seconds: float
    gpus: int


class Accounting(Protocol):
    """Whoever remembers what ran."""

    def cluster(self) -> str:
        """Whose jobs it knows; empty where that has no name."""
        ...

    def history(self, jobs: Iterable[str]) -> list[Account] | None:
        """Every start of these jobs, requeued ones included, oldest first; None where accounting is off."""
