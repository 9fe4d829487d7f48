"""What a worker is told besides its job (limits, GPUs, patience, environment), and whether it was asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.dispatch.holder import Holder
from harness.dispatch.queue import Accounting


@dataclass(kw_only=True)
class StopSignals:
    """Signals that ask a worker to stop, remembered from the handler, which does nothing else.

    Args:
        received: numbers, in order.
    """

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
        replaces: see `harness.dispatch.settled.settled`.
        environment: goes into the record: ``snapshot``, ``commit``, ``dirty``.
        variables: environment variables of the child.
        submitter: whose death ends the worker too; None on a cluster.
        accounting: of the cluster that this process is a job of, None outside one.
    """

    holder: Holder
    limit: int
    before: int = 0
    gpus: int = 0
    lease_s: float = 90.0
    patience_s: float = 60.0
    replaces: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    submitter: Holder | None = None
    accounting: Accounting | None = None
