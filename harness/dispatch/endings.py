"""How a start of a run ended when it could not say so itself, and the record of a run that is given up."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.dispatch.attempts import Attempt, End
from harness.planning.request import Job
from harness.system.errors import out_of_memory
from harness.system.files import end_of

MAX_CRASHES = 3
"""A run whose process dies so often without a reason from outside is given up."""

_CODES: dict[End, Code] = {"OOM": "OOM", "TIMEOUT": "TIMEOUT", "interrupted": "TIMEOUT", "PREEMPTED": "PREEMPTED"}
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
    """Processes that this machine's kernel, or this job's memory cgroup, has killed for memory so far."""
    count = 0
    for path in (Path("/proc/vmstat"), _own_cgroup() / "memory.events"):
        with suppress(OSError):
            match = re.search(r"^oom_kill (\d+)", path.read_text(encoding="ascii"), re.MULTILINE)
            count += int(match[1]) if match else 0
    return count


def _own_cgroup() -> Path:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            hierarchy, _, path = line.split(":", 2)
            if hierarchy == "0":
                return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/nonexistent")


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
    if last.number >= limit and last.end != "CANCELLED":
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
