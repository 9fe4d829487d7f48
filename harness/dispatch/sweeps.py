"""What was submitted, on disk before it is submitted.

``ROOT/sweeps/<id>/sweep.json`` says who submitted what and with which code. A sweep has chunks; for chunk n

- ``chunk.<n>.jobs.jsonl`` and ``chunk.<n>.json`` are the intent, written before sbatch: the jobs, and the unique name that
  they will have on the cluster;
- ``chunk.<n>.job.json`` is the answer: the cluster's job id;
- ``chunk.<n>.closed.json`` says that nothing more is to come of it: ``done``, ``abandoned`` (it was never submitted) or
  ``cancelled``.

An intent without an answer is a crash in between, and is settled by asking the cluster for the name.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.dispatch.attempts import Holder
from harness.dispatch.queue import Task
from harness.dispatch.state_files import read_as
from harness.errors import UsageError
from harness.files import create_exclusively, read_regular, write_atomically
from harness.planning.job import Job
from harness.records.index import Ending
from harness.records.schema import Record, Run, content_hash
from harness.records.store import RecordStore

T = TypeVar("T")

LARGEST_JOBS = 256 << 20
"""Bytes of the jobs of one chunk: a job of 4 kB, 1000 to 10,000 of them."""


@dataclass(frozen=True, kw_only=True)
class AttemptLimits:
    """Attempts of a run that belong to one submission: after ``before``, up to ``limit``."""

    before: int
    limit: int


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What is known of a run without reading its job.

    Args:
        limit: highest attempt number that this submission may start.
        before: number of the last attempt before this submission.
        replaces: fingerprint of the failure record that this submission is to replace, empty where there was none.
    """

    key: str
    method: str
    variant: str
    benchmark: str
    backbone: str
    protocol: str
    seed: int
    limit: int
    before: int = 0
    replaces: str = ""

    @classmethod
    def of(cls, run: Run, *, limits: AttemptLimits, replaces: str = "") -> PlannedRun:
        return cls(**named(run), limit=limits.limit, before=limits.before, replaces=replaces)


def named(run: Run | PlannedRun | Ending) -> dict[str, Any]:
    """What a run is called everywhere on disk and on a screen."""
    names = ("key", "method", "variant", "benchmark", "backbone", "protocol", "seed")
    return {name: getattr(run, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs submitted together.

    Args:
        id: also the name of its folder.
        executor: ``inline``, ``local`` or ``slurm``.
        command: the command line.
        created: seconds since the epoch.
        submitter: the process that submits.
        snapshot: folder of the frozen code; its name is the code's hash.
        code: ``commit`` and ``dirty`` of the tree at submission.
        settings: the cluster profile and, on a cluster, ``user``, ``cluster`` and ``request``; or the local options.
    """

    id: str
    executor: str
    command: str
    created: float
    submitter: Holder
    snapshot: str = ""
    code: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def user(self) -> str:
        """Who submitted it to a cluster, empty where that was not noted."""
        return str(self.settings.get("user", ""))

    @property
    def cluster(self) -> str:
        """The name of the cluster that has its jobs, empty where that was not noted."""
        return str(self.settings.get("cluster", ""))

    @property
    def request(self) -> str:
        """Identity of the grid that its command asked for, finished runs included; empty where that was not noted."""
        return str(self.settings.get("request", ""))

    @property
    def environment(self) -> dict[str, str]:
        """What its records say of the code."""
        return {**self.code, "snapshot": Path(self.snapshot).name}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Jobs of one shape, submitted at once.

    Args:
        path: its intent file.
        sweep: id of its sweep.
        name: on the cluster; unique.
        created: seconds since the epoch.
        shape: what each job asks for.
        runs: in the order of the array.
        job: the cluster's id, empty until it is known.
        closed: why nothing more is to come, empty while something may.
        ends: key -> how its job ended on the cluster, for runs whose worker never began.
    """

    path: Path
    sweep: str
    name: str
    created: float
    shape: dict[str, Any]
    runs: tuple[PlannedRun, ...]
    job: str = ""
    closed: str = ""
    ends: dict[str, str] = field(default_factory=dict)

    def task(self, index: int) -> str:
        """The cluster's name of one job, empty where the chunk has none."""
        return f"{self.job}_{index}" if self.job else ""

    def on_cluster(self, tasks: Mapping[str, Task], index: int) -> Task | None:
        """One job as the queue shows it, None where it does not; a job of the same id with another name is not ours."""
        task = tasks.get(self.task(index))
        return task if task is not None and task.name in ("", self.name) else None

    def found_in(self, tasks: Mapping[str, Task]) -> Chunk:
        """With the job that the queue has under its name, where the cluster's answer is not on disk."""
        if self.job:
            return self
        known = (task.job.partition("_")[0] for task in tasks.values() if task.name == self.name)
        return replace(self, job=next(known, ""))

    def answered(self, job: str) -> Chunk:
        """Write down the job id."""
        write_atomically(_beside(self.path, "job"), json.dumps({"job": job, "at": time.time()}))
        return replace(self, job=job)

    def close(self, reason: str, *, ends: Mapping[str, str] | None = None) -> Chunk:
        content = {"reason": reason, "at": time.time(), "ends": dict(ends or {})}
        create_exclusively(_beside(self.path, "closed"), json.dumps(content))
        return replace(self, closed=reason, ends=dict(ends or {}))

    def jobs(self) -> list[Job]:
        """In the order of ``runs``.

        Raises:
            UsageError: their file is damaged, or does not belong to this chunk.
        """
        path = _jobs_path(self.path)
        try:
            lines = read_regular(path, largest=LARGEST_JOBS).decode("utf-8").splitlines()
            jobs = [Job.from_json(json.loads(line)) for line in lines]
            if [job.run.key for job in jobs] != [run.key for run in self.runs]:
                raise ValueError("its runs are not those of the chunk")
            if any(Path(job.results).resolve() != path.parents[2].resolve() for job in jobs):
                raise ValueError("its runs belong to another results folder")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _unreadable(path, error) from error
        return jobs

    def read_job(self, index: int) -> Job:
        """One of `jobs`, with the same errors."""
        jobs = self.jobs()
        if index >= len(jobs):
            raise UsageError(f"{self.path} has {len(jobs)} jobs and none with the number {index}")
        return jobs[index]


def job_log(sweep: Path, task: str) -> Path:
    """What SLURM and a job's worker said, below the sweep's folder."""
    return sweep / "logs" / f"{task}_0_log.out"


def sweeps_folder(results: Path) -> Path:
    return results / "sweeps"


def create_sweep(results: Path, sweep: Sweep) -> Path:
    folder = sweeps_folder(results) / sweep.id
    write_atomically(folder / "sweep.json", json.dumps(asdict(sweep), indent=1))
    return folder


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def create_chunk(
    folder: Path, *, number: int, jobs: Sequence[Job], shape: Mapping[str, Any], limits: Mapping[str, AttemptLimits]
) -> Chunk:
    """Write the intent: jobs first, then the file that makes them count."""
    path = folder / f"chunk.{number:03d}.json"
    write_atomically(_jobs_path(path), "".join(json.dumps(job.as_json()) + "\n" for job in jobs))
    runs = tuple(
        PlannedRun.of(job.run, limits=limits[job.run.key], replaces=_fingerprint_at(job.results, job.run.key))
        for job in jobs
    )
    chunk = Chunk(
        path=path,
        sweep=folder.name,
        name=f"harness-{folder.name}-{number:03d}",
        created=time.time(),
        shape=dict(shape),
        runs=runs,
    )
    content = {
        "name": chunk.name,
        "created": chunk.created,
        "shape": chunk.shape,
        "runs": [asdict(run) for run in runs],
    }
    write_atomically(path, json.dumps(content))
    return chunk


@dataclass(frozen=True, kw_only=True)
class _Intent:
    """What ``chunk.<n>.json`` holds."""

    name: str
    created: float
    shape: dict[str, str | int | float | bool | None]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What ``chunk.<n>.job.json`` holds."""

    job: str = ""


@dataclass(frozen=True, kw_only=True)
class _Closing:
    """What ``chunk.<n>.closed.json`` holds."""

    reason: str = ""
    ends: dict[str, str] = field(default_factory=dict)


Problems = dict[Path, str]
"""Files that cannot be read, with the reason."""


def read_sweep(folder: Path) -> Sweep:
    """Raises UsageError where ``sweep.json`` is missing or damaged."""
    path = folder / "sweep.json"
    try:
        return replace(read_as(path, Sweep), id=folder.name)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_sweeps(results: Path, problems: Problems | None = None) -> list[Sweep]:
    """All sweeps, oldest first; what cannot be read goes to ``problems`` where there is one.

    Raises:
        UsageError: one cannot be read.
    """
    found = (
        read_readable(read_sweep, path, path.parent, problems)
        for path in sorted(sweeps_folder(results).glob("*/sweep.json"))
    )
    return [sweep for sweep in found if sweep is not None]


def read_chunk(path: Path) -> Chunk:
    """Raises UsageError where its intent or what lies beside it is damaged."""
    try:
        intent = read_as(path, _Intent)
        answer = read_as(_beside(path, "job"), _Answer) if _beside(path, "job").exists() else _Answer()
        closing = read_as(_beside(path, "closed"), _Closing) if _beside(path, "closed").exists() else _Closing()
        _check_names(intent, answer)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return Chunk(
        path=path,
        sweep=path.parent.name,
        name=intent.name,
        created=intent.created,
        shape=dict(intent.shape),
        runs=intent.runs,
        job=answer.job,
        closed=closing.reason,
        ends=closing.ends,
    )


def chunk_paths(results: Path, *, sweep: str = "*") -> list[Path]:
    """Of all sweeps, oldest first."""
    return sorted(sweeps_folder(results).glob(f"{sweep}/chunk.[0-9][0-9][0-9].json"))


def read_chunks(
    results: Path, *, sweep: str = "*", open_only: bool = False, problems: Problems | None = None
) -> Iterator[Chunk]:
    """Chunks of all sweeps, oldest first; what cannot be read goes to ``problems`` where there is one.

    Raises:
        UsageError: one cannot be read.
    """
    for path in chunk_paths(results, sweep=sweep):
        if open_only and _beside(path, "closed").exists():
            continue
        chunk = read_readable(read_chunk, path, path, problems)
        if chunk is not None:
            yield chunk


def read_readable(read: Callable[[Path], T], path: Path, place: Path, problems: Problems | None) -> T | None:
    """``read(place)``, or None where that fails, with the reason at ``path`` in ``problems`` where there is one.

    Raises:
        UsageError: it fails and there is none.
    """
    try:
        return read(place)
    except UsageError as error:
        if problems is None:
            raise
        problems[path] = str(error.__cause__)
        return None


def _check_names(intent: _Intent, answer: _Answer) -> None:
    """What becomes a path, or a word of a command to the cluster."""
    for run in intent.runs:
        if not re.fullmatch(r"[0-9a-f]{16}", run.key):
            raise ValueError(f"{run.key!r} is no key of a run")
    if not re.fullmatch(r"\w[\w.-]{0,200}", intent.name) or not re.fullmatch(r"\d{0,20}", answer.job):
        raise ValueError("it names no job of a cluster")


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(
        f"{path} cannot be read ({reason}); move the folder {path.parent} away (no record and no checkpoint is in it)"
    )


def settled(results: Path, key: str, *, replaces: str) -> Record | None:
    """The record that makes another start needless: a success, or a failure other than the one to be replaced."""
    record = RecordStore(results).find(key)
    return record if record is not None and settles(record, replaces=replaces) else None


def settles(record: Record | Ending, *, replaces: str) -> bool:
    return record.code == "OK" or fingerprint(record) != replaces


def fingerprint(record: Record | Ending) -> str:
    """Tells the records of two endings of one run apart, without comparing clocks of two machines."""
    return content_hash([record.code, record.attempts, record.finished])


def _fingerprint_at(results: str, key: str) -> str:
    record = RecordStore(Path(results)).find(key)
    return fingerprint(record) if record is not None else ""


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}.{kind}.json")


def _jobs_path(path: Path) -> Path:
    return path.with_name(path.stem + ".jobs.jsonl")
