"""A thread that renews a run's lease, for work that cannot stop to do so itself."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from types import TracebackType

from harness.dispatch.attempts import BEATS_PER_LEASE, Lease, Lost


class beating:
    """Context in which the lease beats."""

    def __init__(self, lease: Lease, *, lease_s: float = 90.0) -> None:
        self._lease = lease
        self._interval = lease_s / BEATS_PER_LEASE
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self._lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
