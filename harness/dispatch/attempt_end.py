"""How a start of a run ended when it could not say so itself, and the record of a run that is given up."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.archive.schema import Code, Record, Run
from harness.archive.store import RecordStore
from harness.dispatch.attempts import Attempt, End, attempts, close, state_folder
from harness.dispatch.queue import Accounting
from harness.dispatch.sweeps import PlannedRun
from harness.system.errors import UsageError, out_of_memory
from harness.system.files import end_of

MAX_CRASHES = 3
"""A run whose process dies so often without a reason from outside is given up."""

_STATES: dict[str, End] = {
    "OUT_OF_MEMORY": "OOM",
    "TIMEOUT": "TIMEOUT",
    "DEADLINE": "TIMEOUT",
    "PREEMPTED": "PREEMPTED",
    "REQUEUED": "PREEMPTED",
    "NODE_FAIL": "NODE_FAIL",
    "BOOT_FAIL": "NODE_FAIL",
    "CANCELLED": "CANCELLED",
}
_CODES: dict[End, Code] = {"OOM": "OOM", "TIMEOUT": "TIMEOUT", "interrupted": "TIMEOUT", "PREEMPTED": "PREEMPTED"}
"""A run that was interrupted so often that it was given up was stopped at its time limit each time."""
_MEMORY_LIMIT = re.compile(
    r"exceeded (step|job) memory limit|exceeded memory limit|oom[_-]kill|out[ _]of[ _]memory", re.IGNORECASE
)


def end_from_state(state: str) -> End:
    """SLURM's word for how a job ended as ours; ``lost`` where it says nothing that explains it."""
    return _STATES.get(state.split()[0].rstrip("+") if state else "", "lost")


def exceeded_memory(log: Path) -> bool:
    """Whether SLURM wrote into a job's log that it was killed for its memory."""
    try:
        return bool(_MEMORY_LIMIT.search(end_of(log, size=20_000)))
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


def gpu_hours(starts: Sequence[Attempt], *, accounting: Accounting | None = None) -> tuple[float, str]:
    """GPU-hours of all starts of a run, and where they come from: ``sacct``, ``clock`` where accounting knows none of their
    jobs, or ``sacct+clock``.

    Starts outside a cluster, or on another one than accounting is of, are measured by our own clock. The last start may still run.
    """
    ours = _cluster_of(accounting) if any(start.holder.cluster for start in starts) else ""
    asked = [start for start in starts if start.holder.job and len({start.holder.cluster.lower(), ours} - {""}) < 2]
    jobs = {start.holder.job: start.gpus for start in asked}
    history = accounting.history(jobs) if jobs and accounting is not None else None
    accounts = [account for account in history or [] if account.job in jobs]
    known = {account.job for account in accounts}
    others = [start for start in starts if start not in asked or start.holder.job not in known]
    # accounting may keep time without GPUs: SLURM's default
    hours = sum(account.seconds / 3600 * (account.gpus or jobs[account.job]) for account in accounts)
    source = "+".join([*(["sacct"] if accounts else []), *(["clock"] if others or not accounts else [])])
    return hours + sum(start.hours * start.gpus for start in others), source


def _cluster_of(accounting: Accounting | None) -> str:
    """The name of the cluster whose jobs it knows, in lower case; empty where it does not answer, as no record waits for a name."""
    try:
        return accounting.cluster().lower() if accounting is not None else ""
    except UsageError:
        return ""


def give_up(
    results: Path,
    run: Run,
    *,
    end: End,
    detail: str,
    starts: Sequence[Attempt],
    environment: dict[str, str],
    accounting: Accounting | None = None,
) -> Record:
    """Write the record of a run that cannot be finished; its checkpoint stays, so that a retry continues.

    Args:
        accounting: of the cluster that its starts ran on, which is asked for their GPU-hours.

    Returns:
        The record that stands: a success that came in the meantime is not replaced.

    Raises:
        UsageError: the record cannot be written, or what is in its place cannot be read for now.
    """
    hours, source = gpu_hours(starts, accounting=accounting)
    record = Record(
        run=run,
        key=run.key,
        code=_CODES.get(end, "ERROR"),
        message=f"NODE_FAIL: {detail}" if end == "NODE_FAIL" else detail,
        cost={"gpu_hours": hours},
        environment={**environment, "gpu_hours_source": source},
        attempts=max(1, len(starts)),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    store = RecordStore(results)
    finished = store.find(run.key)
    if finished is not None and finished.code == "OK":  # accounting answers slowly, and a start taken for dead may live
        return finished
    store.write(record)
    return record


def reason_to_give_up(starts: Sequence[Attempt], *, limit: int, before: int = 0) -> tuple[End, str] | None:
    """Whether a run without a record has to be given up after these starts, and why; None if it may be started again.

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


def settle(
    results: Path,
    run: Run,
    *,
    end: End,
    detail: str,
    planned: PlannedRun,
    environment: dict[str, str],
    accounting: Accounting | None = None,
) -> Record | None:
    """Close a run's dead last start as ``end``, and write its record if it has to be given up.

    Returns:
        The record, None where the run may be started again.
    """
    folder = state_folder(results, run.key)
    starts = attempts(folder)
    if starts and not starts[-1].end:
        close(folder, starts[-1], end, detail)
        starts = attempts(folder)
    verdict = reason_to_give_up(starts, limit=planned.limit, before=planned.before)
    if verdict is None:
        return None
    return give_up(
        results, run, end=verdict[0], detail=verdict[1], starts=starts, environment=environment, accounting=accounting
    )


def last_words(log: Path) -> str:
    """What a process died of by its log: the line that says so where it was memory (others come after it, such as numpy's
    advice on an import that failed), else the last one."""
    try:
        text = end_of(log, size=20_000)
    except (OSError, ValueError):
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if out_of_memory(line)), lines[-1] if lines else "")[:300]


def _own_cgroup() -> Path:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            hierarchy, _, path = line.split(":", 2)
            if hierarchy == "0":
                return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/nonexistent")
