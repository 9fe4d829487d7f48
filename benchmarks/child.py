"""What a command costs in processes of its own."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def used(
    what: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, rounds: int = 1
) -> dict[str, Any]:
    """``what``; user and system seconds of ``python COMMAND``, of every round and their median; the highest peak memory, None where it is
    no higher than that of this process, from which a child starts.

    Raises:
        SystemExit: it fails.
    """
    seconds, peaks = [], []
    for _ in range(rounds):
        child = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{what}: exit code {child.returncode}")
        seconds.append(round(usage.ru_utime + usage.ru_stime, 3))
        peaks.append(usage.ru_maxrss)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "what": what,
        "processor time (s)": statistics.median(seconds),
        "peak memory (MiB)": round(max(peaks) / 1024) if max(peaks) > own else None,
        "rounds (s)": seconds,
    }
