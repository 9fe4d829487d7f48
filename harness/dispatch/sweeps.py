"""A sweep on disk: runs that were submitted together.

``ROOT/sweeps/<id>/`` holds ``sweep.json`` (who submitted what with which code, and the cluster's job ids), ``jobs.jsonl`` (a run a
line) and ``logs``; the frozen code is in ``ROOT/snapshots/<hash>``. What is queued stands nowhere on disk: it is what squeue lists
under the names of the arrays. A results folder may come from elsewhere, so every file is checked when it is read.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run, content_hash
from harness.archive.store import RecordStore
from harness.check import escaped, from_json, is_plain, read_as
from harness.dispatch.attempts import LEASE_SECONDS, Holder, attempts, state_folder
from harness.planning.request import Job
from harness.system.errors import UsageError
from harness.system.files import read_regular, write_atomically
from harness.system.machine import code_version

LARGEST_JOBS = 512 << 20
"""Bytes of the jobs of one sweep: a job of 4 kB, at most 100,000 of them."""


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """What a run is called everywhere on disk and on a screen."""

    key: str
    method: str
    variant: str
    benchmark: str
    backbone: str
    protocol: str
    seed: int

    @property
    def words(self) -> str:
        """``lora on kvasir, seed 0``."""
        return f"{self.variant} on {self.benchmark}, seed {self.seed}"


_NAMES = tuple(field.name for field in fields(NamedRun) if field.name != "key")


def named(run: Run | NamedRun, *, key: str = "") -> dict[str, Any]:
    """The fields of `NamedRun`; ``key`` where it is known, since that of a `Run` is a hash of all its rules."""
    return {"key": key or run.key} | {name: getattr(run, name) for name in _NAMES}


@dataclass(frozen=True, kw_only=True)
class PlannedRun(NamedRun):
    """A line of ``jobs.jsonl``.

    Args:
        limit: highest attempt number that this submission may start.
        before: number of the last attempt before this submission.
        replaces: fingerprint of the failure record that this submission is to replace, empty where there was none.
        job: `Job` as plain data.
    """

    limit: int
    before: int = 0
    replaces: str = ""
    job: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Array:
    """A job array: some of the sweep's runs, of one shape.

    Args:
        first, runs: which lines of ``jobs.jsonl``.
        per_task: runs of one task, one after the other.
        gpus: of one task.
        job: the cluster's id, empty until it answered.
    """

    first: int
    runs: int
    per_task: int = 1
    gpus: int = 0
    job: str = ""

    @property
    def tasks(self) -> int:
        return -(-self.runs // self.per_task)

    def lines(self, task: int) -> range:
        """The runs of one task."""
        end = self.first + self.runs
        return range(self.first + task * self.per_task, min(end, self.first + (task + 1) * self.per_task))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs submitted together.

    Args:
        folder: its name is the sweep's id.
        executor: ``inline``, ``local`` or ``slurm``.
        created: seconds since the epoch.
        submitter: the process that submits.
        user: who submitted it to a cluster.
        request: identity of the grid of its command, finished runs included.
        snapshot: folder of the frozen code; its name is the code's hash.
        code: ``commit`` and ``dirty`` of the tree at submission.
        settings: the cluster profile, or the local options.
        arrays: on a cluster, what was or is being submitted.
        ended: why nothing more is to come of it: `CANCELLED`, or ``done`` where its workers here have ended.
    """

    executor: str
    command: str
    created: float
    submitter: Holder
    user: str = ""
    request: str = ""
    snapshot: str = ""
    code: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: tuple[Array, ...] = ()
    ended: str = ""
    folder: Path = Path()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def results(self) -> Path:
        return self.folder.parents[1]

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def lease_s(self) -> float:
        """Seconds without a sign of life after which a worker that cannot be looked up counts as dead."""
        value = self.settings.get("lease_seconds")
        return float(value) if isinstance(value, int | float) else LEASE_SECONDS

    @property
    def environment(self) -> dict[str, str]:
        """What its records say of the code."""
        return {**self.code, "snapshot": Path(self.snapshot).name[:12]}

    @property
    def names(self) -> list[str]:
        """What its arrays are called on the cluster, in their order."""
        return [f"{PREFIX}{self.id}-{number}" for number in range(len(self.arrays))]

    @cached_property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The lines of ``jobs.jsonl``. Raises UsageError: they cannot be read."""
        path = self.folder / "jobs.jsonl"
        try:
            data = read_regular(path, largest=LARGEST_JOBS)
            runs = tuple(from_json(PlannedRun, line) for line in data.splitlines())
            for run in runs:
                if not re.fullmatch(r"[0-9a-f]{16}", run.key):
                    raise ValueError(f"{run.key!r} is no key of a run")
        except ValueError as error:
            raise _unreadable(path, error) from error
        return runs if is_plain(data) else tuple(replace(escaped(run), job=run.job) for run in runs)

    def slots(self) -> Iterator[tuple[int, int, int]]:
        """Line, array and task of every run that is or may be on the cluster."""
        for number, array in enumerate(self.arrays):
            for line in range(array.first, min(array.first + array.runs, len(self.runs))):
                yield line, number, (line - array.first) // array.per_task

    def job(self, line: int) -> Job:
        """One run with all that a worker needs. Raises UsageError: the line is damaged, or of another results folder."""
        try:
            job = Job.from_json(self.runs[line].job)
            if job.run.key != self.runs[line].key:
                raise ValueError("its key is another run's")
            if Path(job.results).resolve() != self.results.resolve():
                raise ValueError(f"its runs belong to {job.results}")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _unreadable(self.folder / "jobs.jsonl", error) from error
        return job

    def save(self) -> Sweep:
        content = asdict(self)
        del content["folder"]
        write_atomically(self.folder / "sweep.json", json.dumps(content, indent=1))
        return self


CANCELLED = "cancelled"
AGAIN = "; when that is fixed, repeat the command"
PREFIX = "harness-"
"""How the names of our jobs on a cluster begin."""


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(
        f"{path} cannot be read ({reason}); move the folder {path.parent} away (no record and no checkpoint is in it)"
    )


def create_sweep(
    results: Path,
    jobs: Sequence[Job],
    *,
    executor: str,
    allowed: int,
    **fields: Any,
) -> Sweep:
    """Write a sweep down.

    Args:
        allowed: how often it may start a run.
        fields: of `Sweep`.

    Raises:
        UsageError: a record may be there and cannot be read for now.
    """
    now = time.time()
    stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(1000 * now) % 1000:03d}"
    folder = results / "sweeps" / f"{stamp}{secrets.token_hex(2)}"  # later ones have later names
    (folder / "logs").mkdir(parents=True)
    lines = []
    for job in jobs:
        starts, standing = attempts(state_folder(results, job.run.key)), RecordStore(results).find(job.run.key)
        before = starts[-1].number if starts else 0
        planned = PlannedRun(
            **named(job.run),
            before=before,
            limit=before + allowed,
            replaces=fingerprint(standing) if standing is not None else "",
            job=job.as_json(),
        )
        lines.append(json.dumps(asdict(planned)) + "\n")
    write_atomically(folder / "jobs.jsonl", "".join(lines))
    return Sweep(
        folder=folder, executor=executor, created=now, submitter=Holder.here(), code=code_version(), **fields
    ).save()


Problems = dict[Path, str]
"""Files that cannot be read, with the reason."""


def read_sweep(folder: Path) -> Sweep:
    """Raises UsageError where ``sweep.json`` is missing or damaged."""
    path = folder / "sweep.json"
    try:
        return replace(read_as(path, Sweep), folder=folder)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_sweeps(results: Path, problems: Problems, *, sweep: str = "*") -> list[Sweep]:
    """All sweeps, oldest first; what cannot be read goes to ``problems``."""
    sweeps = []
    for path in sorted((results / "sweeps").glob(f"{sweep}/sweep.json")):
        try:
            read = read_sweep(path.parent)
            sweeps += [read] if read.runs is not None else []
        except UsageError as error:
            problems[path] = str(error.__cause__)
    return sweeps


def settled(results: Path, key: str, *, replaces: str) -> Record | None:
    """The record that makes another start needless: a success, or a failure other than the one to be replaced. Raises UsageError:
    there is a file that cannot be read for now, and it may be that record."""
    record = RecordStore(results).find(key)
    return record if record is not None and settles(record, replaces=replaces) else None


def settles(record: Record, *, replaces: str) -> bool:
    return record.code == "OK" or fingerprint(record) != replaces


def fingerprint(record: Record) -> str:
    """Distinguishes the records of two endings of one run, without comparing clocks of two machines."""
    return content_hash([record.code, record.attempts, record.finished])
