"""Sweeps on disk: what is submitted together is written down before it is submitted.

``ROOT/sweeps/<id>/sweep.json`` says who submitted what and with which code. A sweep has chunks; for chunk n

- ``chunk.<n>.jobs.jsonl`` and ``chunk.<n>.json`` are the intent, written before sbatch: the jobs, and the unique name that
  they will have on the cluster;
- ``chunk.<n>.job.json`` is the answer: the cluster's job id;
- ``chunk.<n>.closed.json`` says that nothing more is to come of it: ``done``, ``abandoned`` (it was never submitted),
  ``cancelled`` or ``moved`` (with its results folder, after which its jobs ended where they were).

An intent without an answer is a crash in between, and is settled by asking the cluster for the name. Others may have written
the files, so every one is checked when it is read back, before anything is done with it.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from calendar import timegm
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from harness.archive.schema import Record, Run, content_hash
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import LEASE_SECONDS, Holder, attempts, state_folder
from harness.dispatch.queue import Task
from harness.planning.job import Job
from harness.system.errors import UsageError, os_reason
from harness.system.files import create_exclusively, own_folder, read_regular, write_atomically
from harness.system.machine import code_version

LARGEST_JOBS = 512 << 20
"""Bytes of the jobs of one chunk: a job of 4 kB, at most 50,000 of them."""
_STAMP = "%Y%m%d-%H%M%S"
_ID = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{4}")


@dataclass(frozen=True, kw_only=True)
class AttemptLimits:
    """Attempts of a run that belong to one submission: after ``before``, up to ``limit``."""

    before: int
    limit: int


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
    """What is known of a run without reading its job.

    Args:
        limit: highest attempt number that this submission may start.
        before: number of the last attempt before this submission.
        replaces: fingerprint of the failure record that this submission is to replace, empty where there was none.
    """

    limit: int
    before: int = 0
    replaces: str = ""

    @classmethod
    def of(cls, run: Run, *, limits: AttemptLimits, replaces: str = "") -> PlannedRun:
        return cls(**named(run), **asdict(limits), replaces=replaces)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs submitted together.

    Args:
        id: also the name of its folder.
        executor: ``inline``, ``local`` or ``slurm``.
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
    def lease_s(self) -> float:
        """Seconds without a sign of life after which a worker that cannot be looked up counts as dead."""
        value = self.settings.get("lease_seconds")
        return float(value) if isinstance(value, int | float) else LEASE_SECONDS

    @property
    def request(self) -> str:
        """Identity of the grid that its command asked for, finished runs included; empty where that was not noted."""
        return str(self.settings.get("request", ""))

    @property
    def environment(self) -> dict[str, str]:
        """What its records say of the code."""
        return {**self.code, "snapshot": Path(self.snapshot).name[:12]}


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
        ends: key -> how its job ended on the cluster, for runs whose worker never began or does not know.
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
        """This chunk with the id of the job that the queue has under its name, where the cluster's answer is not on disk."""
        if self.job:
            return self
        known = (task.job.partition("_")[0] for task in tasks.values() if task.name == self.name)
        return replace(self, job=next(known, ""))

    def answered(self, job: str) -> Chunk:
        """Write down the job id."""
        write_atomically(beside_chunk(self.path, "job"), json.dumps({"job": job, "at": time.time()}))
        return replace(self, job=job)

    def close(self, reason: str, *, ends: Mapping[str, str] | None = None) -> Chunk:
        content = {"reason": reason, "at": time.time(), "ends": dict(ends or {})}
        create_exclusively(beside_chunk(self.path, "closed"), json.dumps(content))
        return replace(self, closed=reason, ends=dict(ends or {}))

    def jobs(self) -> list[Job]:
        """The chunk's jobs in the order of ``runs``. Raises UsageError: their file is damaged, or does not belong to this chunk;
        `Moved`, to this folder."""
        path = _jobs_path(self.path)
        try:
            lines = read_regular(path, largest=LARGEST_JOBS).decode("utf-8").splitlines()
            jobs = [Job.from_json(json.loads(line)) for line in lines]
            if [job.run.key for job in jobs] != [run.key for run in self.runs]:
                raise ValueError("its runs are not those of the chunk")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise unreadable(path, error) from error
        if any(Path(job.results).resolve() != path.parents[2].resolve() for job in jobs):
            raise Moved(str(unreadable(path, ValueError("its runs belong to another results folder"))))
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
    folder = own_folder(sweeps_folder(results) / sweep.id)
    write_atomically(folder / "sweep.json", json.dumps(asdict(sweep), indent=1))
    return folder


def new_id(results: Path) -> str:
    """The id of a new sweep, greater than those there are, whatever the clocks of the machines that gave them."""
    stamps = (_ID.fullmatch(path.name) for path in sweeps_folder(results).glob("*-*-*"))
    latest = max((stamp[1] for stamp in stamps if stamp), default="")
    now = time.time()
    if latest:
        with suppress(ValueError):  # digits that are no time
            now = max(now, timegm(time.strptime(latest, _STAMP)) + 1)
    return f"{time.strftime(_STAMP, time.gmtime(now))}-{secrets.token_hex(2)}"


def create_chunk(
    folder: Path, *, number: int, jobs: Sequence[Job], shape: Mapping[str, Any], limits: Mapping[str, AttemptLimits]
) -> Chunk:
    """Write the intent: jobs first, then the file that makes them count."""
    path = folder / f"chunk.{number:03d}.json"
    write_atomically(_jobs_path(path), "".join(json.dumps(job.as_json()) + "\n" for job in jobs))
    runs = tuple(
        PlannedRun.of(job.run, limits=limits[job.run.key], replaces=fingerprint_at(Path(job.results), job.run.key))
        for job in jobs
    )
    intent = _Intent(name=name_of(path), created=time.time(), shape=dict(shape), runs=runs)
    write_atomically(path, json.dumps(asdict(intent)))
    return Chunk(path=path, sweep=folder.name, **vars(intent))


def name_of(path: Path) -> str:
    """What the jobs of a chunk are called on the cluster, by its intent file's place: what is written in it may be edited."""
    return f"harness-{path.parent.name}-{path.stem.partition('.')[2]}"


class Moved(UsageError):
    """A results folder was moved after a chunk was written in it."""


def unreadable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(
        f"{path} cannot be read ({reason}); move the folder {path.parent} away (no record and no checkpoint is in it)"
    )


def beside_chunk(path: Path, kind: str) -> Path:
    """The file beside a chunk's intent."""
    return path.with_name(f"{path.stem}.{kind}.json")


def _jobs_path(path: Path) -> Path:
    return path.with_name(path.stem + ".jobs.jsonl")


T = TypeVar("T")
_CHUNK = re.compile(r"chunk\.(\d{3,9})\.json")


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
        raise unreadable(path, error) from error


def read_sweeps(results: Path, problems: Problems | None = None, *, sweep: str = "*") -> list[Sweep]:
    """All sweeps, oldest first; what cannot be read goes to ``problems`` where there is one. Raises UsageError: one cannot be read."""
    readable = (
        read_readable(read_sweep, path, path.parent, problems)
        for path in sorted(sweeps_folder(results).glob(f"{sweep}/sweep.json"))
    )
    return [sweep for sweep in readable if sweep is not None]


def read_chunk(path: Path) -> Chunk:
    """Raises UsageError where its intent or what lies beside it is damaged."""
    try:
        intent = read_as(path, _Intent)
        answer = read_as(file, _Answer) if (file := beside_chunk(path, "job")).exists() else _Answer()
        closing = read_as(file, _Closing) if (file := beside_chunk(path, "closed")).exists() else _Closing()
        _check_names(path, intent, answer.job)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return Chunk(
        path=path, sweep=path.parent.name, **vars(intent), job=answer.job, closed=closing.reason, ends=closing.ends
    )


def chunk_paths(results: Path, *, sweep: str = "*") -> list[Path]:
    """Intent files of the chunks of all sweeps, oldest first."""
    paths = sweeps_folder(results).glob(f"{sweep}/chunk.*.json")
    chunks = [(path.parent, int(name[1]), path) for path in paths if (name := _CHUNK.fullmatch(path.name))]
    return [path for *_, path in sorted(chunks)]


def read_chunks(
    results: Path, *, sweep: str = "*", open_only: bool = False, problems: Problems | None = None
) -> Iterator[Chunk]:
    """Chunks of all sweeps, oldest first; what cannot be read goes to ``problems`` where there is one. Raises UsageError: one
    cannot be read."""
    for path in chunk_paths(results, sweep=sweep):
        if open_only and beside_chunk(path, "closed").exists():
            continue
        chunk = read_readable(read_chunk, path, path, problems)
        if chunk is not None:
            yield chunk


def read_readable(read: Callable[[Path], T], path: Path, place: Path, problems: Problems | None) -> T | None:
    """``read(place)``, or None where that fails, with the reason at ``path`` in ``problems`` where there is one. Raises UsageError:
    it fails and there is none."""
    try:
        return read(place)
    except UsageError as error:
        if problems is None:
            raise
        problems[path] = str(error.__cause__)
        return None


def _check_names(path: Path, intent: _Intent, job: str) -> None:
    """What becomes a path, or a word of a command to the cluster: under another name it would cancel another job."""
    for run in intent.runs:
        if not re.fullmatch(r"[0-9a-f]{16}", run.key):
            raise ValueError(f"{run.key!r} is no key of a run")
    if intent.name != name_of(path):
        raise ValueError("it names another job than its own")
    if not re.fullmatch(r"\d{0,20}", job):
        raise ValueError("it names no job of a cluster")


def begin_sweep(
    results: Path, *, executor: str, command: str, frozen: Path | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[Sweep, Path]:
    """Write down who submits what with which code."""
    sweep = Sweep(
        id=new_id(results),
        executor=executor,
        command=command,
        created=time.time(),
        submitter=Holder.here(),
        snapshot=str(frozen or ""),
        code=code_version() if frozen else {},
        settings=dict(settings or {}),
    )
    return sweep, create_sweep(results, sweep)


def attempt_limits(results: Path, keys: Collection[str], *, allowed: int) -> dict[str, AttemptLimits]:
    """The attempts of a new submission: ``allowed`` more than there were."""
    limits = {}
    for key in keys:
        starts = attempts(state_folder(results, key))
        before = starts[-1].number if starts else 0
        limits[key] = AttemptLimits(before=before, limit=before + allowed)
    return limits


@contextmanager
def writing(results: Path, *, sent: Sequence[str] = ()) -> Iterator[None]:
    """Turn a full disk or a folder without permission into one line. ``sent``: what was given to a cluster; the block adds to it as
    it goes on."""
    try:
        yield
    except OSError as error:
        where = error.filename or results
        done = (
            "jobs may be submitted already; when that is mended, give the same command again, which finds them"
            if sent
            else "nothing was submitted by this step"
        )
        raise UsageError(f"cannot write {where}: {os_reason(error)}; {done}") from error


def settled(results: Path, key: str, *, replaces: str) -> Record | None:
    """The record that makes another start needless: a success, or a failure other than the one to be replaced. Raises UsageError:
    there is a file that cannot be read for now, and it may be that record."""
    record = RecordStore(results).find(key)
    return record if record is not None and settles(record, replaces=replaces) else None


def settles(record: Record, *, replaces: str) -> bool:
    return record.code == "OK" or ending_fingerprint(record) != replaces


def ending_fingerprint(record: Record) -> str:
    """Tells the records of two endings of one run apart, without comparing clocks of two machines."""
    return content_hash([record.code, record.attempts, record.finished])


def fingerprint_at(results: Path, key: str) -> str:
    """`ending_fingerprint` of the record there is, empty without one. Raises UsageError: as `settled`."""
    record = RecordStore(results).find(key)
    return ending_fingerprint(record) if record is not None else ""
