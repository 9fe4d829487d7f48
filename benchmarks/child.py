"""What a command costs in processes of its own."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

POLL_S = 0.02
Usage = dict[str, float]


def measured(
    what: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], float | None] = lambda: None,
) -> Usage:
    """What ``python COMMAND`` with its children takes: ``wall_s``, ``processor_s`` (user and system), ``peak_gib`` of the largest of them,
    which is at least what this process held when it started it, and ``first_update_s`` where ``watch`` returns one.

    Args:
        watch: called until it returns the time (`time.time`) of what is waited for.

    Raises:
        SystemExit: it fails.
    """
    begun, first = time.time(), None
    child = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    while True:
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        first = watch() if first is None else first
        if ended:
            break
        time.sleep(POLL_S)
    whole = time.time() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{what}: exit code {child.returncode}")
    usages = {"wall_s": whole, "processor_s": usage.ru_utime + usage.ru_stime, "peak_gib": usage.ru_maxrss / 2**20}
    return usages if first is None else {**usages, "first_update_s": first - begun}


def used(
    what: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, rounds: int = 1
) -> dict[str, Any]:
    """``what``; user and system seconds of ``python COMMAND``, of every round and their median; the highest peak memory, None where it is
    no higher than that of this process, from which a child starts.

    Raises:
        SystemExit: it fails.
    """
    usages = [measured(what, command, environment=environment) for _ in range(rounds)]
    seconds, peak = [round(usage["processor_s"], 3) for usage in usages], max(usage["peak_gib"] for usage in usages)
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "what": what,
        "processor time (s)": statistics.median(seconds),
        "peak memory (MiB)": round(1024 * peak) if peak > own_peak else None,
        "rounds (s)": seconds,
    }
