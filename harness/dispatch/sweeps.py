"""A sweep on disk: runs that were submitted together, and the frozen code that they run, whatever is edited later.

``ROOT/sweeps/<id>/`` holds ``sweep.json`` (who submitted what with which code, and the cluster's job ids), ``jobs.jsonl`` (one run per
line), ``logs`` and ``code/<hash>``, the frozen code. Which runs are queued is not on disk: squeue lists them under the names of the arrays.
A results folder may come from elsewhere, so every file is checked when it is read, and no code that lies in it is used by a new sweep.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import harness
from harness.archive.older import RowLabel
from harness.archive.schema import Record, Run, content_hash
from harness.archive.store import RecordStore
from harness.check import escaped, from_json, is_plain, read_as
from harness.dispatch.attempts import LEASE_SECONDS, Holder, attempts, state_folder
from harness.planning.request import Job
from harness.system.errors import UsageError
from harness.system.files import own_folder, read_regular, write_atomically
from harness.system.machine import code_version

LARGEST_JOBS = 512 << 20
"""Bytes of the jobs of one sweep: a job of 4 kB, at most 100,000 of them."""


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """The fields that identify a run on disk and on screen."""

    key: str
    method: str
    label: RowLabel
    benchmark: str
    backbone: str
    protocol: str
    seed: int

    @property
    def words(self) -> str:
        """``lora on kvasir, seed 0``."""
        return f"{self.label} on {self.benchmark}, seed {self.seed}"


_NAMES = tuple(field.name for field in fields(NamedRun) if field.name != "key")


def names_of_run(run: Run | NamedRun, *, key: str = "") -> dict[str, Any]:
    """The fields of `NamedRun`. Give ``key`` where it is known: that of a `Run` is computed from all its rules."""
    return {"key": key or run.key} | {name: getattr(run, name) for name in _NAMES}


@dataclass(frozen=True, kw_only=True)
class PlannedRun(NamedRun):
    """A line of ``jobs.jsonl``.

    Args:
        limit: highest number of an attempt of this submission.
        before: number of the last attempt before this submission.
        replaces: fingerprint of the record of a failure that this submission is to replace, empty where there was none.
        job: `Job` as plain data.
    """

    limit: int
    before: int = 0
    replaces: str = ""
    job: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class JobArray:
    """A job array: some of the sweep's runs, of one shape.

    Args:
        first, runs: which lines of ``jobs.jsonl``.
        per_task: number of runs of one task, which go one after the other.
        gpus: GPUs of one task.
        job: the cluster's id, empty until it answered.
    """

    first: int
    runs: int
    per_task: int = 1
    gpus: int = 0
    job: str = ""

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        return -(-self.runs // self.per_task)


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
        later: runs that follow once the sweep's have ended: those after trials.
        settings: the cluster profile, or the local options.
        arrays: on a cluster, the arrays that were or are being submitted.
        ended: `CANCELLED`, or ``done`` where its workers here have ended; empty while it may still change.
    """

    executor: str
    command: str
    created: float
    submitter: Holder
    user: str = ""
    request: str = ""
    later: int = 0
    snapshot: str = ""
    code: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: tuple[JobArray, ...] = ()
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
        """Seconds without a heartbeat after which a worker that cannot be looked up counts as dead."""
        value = self.settings.get("lease_seconds")
        return float(value) if isinstance(value, int | float) else LEASE_SECONDS

    @property
    def patience_s(self) -> float:
        """After a request to stop, how long a run may take to write its checkpoint."""
        warned = self.settings.get("signal_seconds")
        return max(5.0, 0.5 * warned) if isinstance(warned, int) else 60.0

    @property
    def environment(self) -> dict[str, str]:
        """The fields of the code that its records keep."""
        return {**self.code, "snapshot": Path(self.snapshot).name[:12]}

    @property
    def names(self) -> list[str]:
        """The names of its arrays on the cluster, in their order."""
        return [f"{_PREFIX}{self.id}-{number}" for number in range(len(self.arrays))]

    @cached_property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The lines of ``jobs.jsonl``. Raises UsageError: they cannot be read."""
        path = self.folder / "jobs.jsonl"
        try:
            data = read_regular(path, largest=LARGEST_JOBS)
            runs = tuple(from_json(PlannedRun, line) for line in data.splitlines())
            for run in runs:
                if not re.fullmatch(r"[0-9a-f]{16}", run.key):
                    raise ValueError(f"{run.key!r} is not a key of a run")
        except ValueError as error:
            raise _unreadable(path, error) from error
        return runs if is_plain(data) else tuple(replace(escaped(run), job=run.job) for run in runs)

    def slots(self) -> Iterator[tuple[int, int, int]]:
        """Line, array and task of every run that is or may be on the cluster."""
        for number, array in enumerate(self.arrays):
            for line in range(max(0, array.first), min(array.first + array.runs, len(self.runs))):
                yield line, number, (line - array.first) // max(1, array.per_task)

    def job(self, line: int) -> Job:
        """One run with all that a worker needs. Raises UsageError: the line is damaged, or its job belongs to another run or results
        folder."""
        try:
            job = Job.from_json(self.runs[line].job)
            if job.run.key != self.runs[line].key or Path(job.results).resolve() != self.results.resolve():
                raise ValueError(f"its job is run {job.run.key} in {job.results}")
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
_PREFIX = "harness-"
"""How the names of our jobs on a cluster begin."""


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(f"{path} cannot be read ({reason}); move {path.parent} away (it holds no records or checkpoints)")


def create_sweep(
    results: Path, jobs: Sequence[Job], *, executor: str, allowed: int, frozen: bool = False, **fields: Any
) -> Sweep:
    """Write a new sweep, which may attempt each run ``allowed`` times; ``fields`` are those of `Sweep`. ``frozen``: with a copy of the code
    (`freeze`). Raises UsageError: the record of a run cannot be read for now, or the package holds more than code."""
    now = time.time()
    stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(1000 * now) % 1000:03d}"
    folder = results / "sweeps" / f"{stamp}{secrets.token_hex(2)}"  # names sort by time
    own_folder(folder / "logs")
    try:
        if frozen:
            fields["snapshot"], jobs = freeze(folder, jobs)
        lines = [json.dumps(asdict(_planned(results, job, allowed=allowed))) + "\n" for job in jobs]
        write_atomically(folder / "jobs.jsonl", "".join(lines))
        fields |= {"folder": folder, "created": now, "submitter": Holder.here(), "code": code_version()}
        return Sweep(executor=executor, **fields).save()
    except BaseException:  # a full disk or Ctrl-C must not leave half a copy at every try
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _planned(results: Path, job: Job, *, allowed: int) -> PlannedRun:
    past, standing = attempts(state_folder(results, job.run.key)), RecordStore(results).find(job.run.key)
    before = past[-1].number if past else 0
    replaces = record_fingerprint(standing) if standing is not None else ""
    names = names_of_run(job.run)
    return PlannedRun(**names, before=before, limit=before + allowed, replaces=replaces, job=asdict(job))


def read_sweep(folder: Path) -> Sweep:
    """Raises UsageError where ``sweep.json`` is missing or damaged."""
    path = folder / "sweep.json"
    try:
        return replace(read_as(path, Sweep), folder=folder)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_sweeps(results: Path, problems: dict[Path, str], *, sweep: str = "*") -> list[Sweep]:
    """All sweeps, oldest first; what cannot be read goes to ``problems``, with the reason."""
    sweeps = []
    for path in sorted((results / "sweeps").glob(f"{sweep}/sweep.json")):
        try:
            read = read_sweep(path.parent)
            assert read.runs is not None  # read here, so that damaged runs are a problem of this sweep
            sweeps.append(read)
        except UsageError as error:
            problems[path] = str(error.__cause__)
    return sweeps


def sweep_of(results: Path, key: str) -> Sweep | None:
    """The last sweep that has a run; None for a run that was submitted elsewhere."""
    having = (sweep for sweep in reversed(read_sweeps(results, {})) if any(run.key == key for run in sweep.runs))
    return next(having, None)


def settles(record: Record, *, replaces: str) -> bool:
    """Whether a record makes another attempt needless: a success, or a failure other than the one to be replaced."""
    return record.code == "OK" or record_fingerprint(record) != replaces


def record_fingerprint(record: Record) -> str:
    """A hash that differs between the records of two endings of one run; no clocks of two machines are compared."""
    return content_hash([record.code, record.attempts, record.finished])


PACKAGE = Path(str(harness.__file__)).parent
_PACKAGES = {Path("harness", name): (PACKAGE / name).resolve() for name in ("", "methods", "datasets")}
"""Path in a snapshot -> folder that is copied; in a clone two of these are links to folders next to ``harness``."""
LARGEST_CODE = 64 << 20
"""Bound on the bytes of all files; ours have 2 MB."""
WORKER = "worker.py"
"""The file that a job starts. Python looks for modules first in the folder of that file, so this copy is imported and no other."""
PYTHON_OPTIONS = "-uB"
"""Of a worker's Python: output at once, and no byte code in the frozen code, which stays file for file what was taken."""


def freeze(folder: Path, jobs: Sequence[Job]) -> tuple[str, list[Job]]:
    """Copy the package, uncommitted changes included, and the jobs' plug-ins to ``folder/code/<hash of the content>``.

    Returns:
        The path of the copy, and the jobs with their plug-ins in it.

    Raises:
        UsageError: the package holds more than code.
    """
    plugins = tuple(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
    contents = contents_of_command(plugins)
    target = folder / "code" / code_digest(contents)
    for name, content in contents.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    moved = {plugin: str(target / _plugin(number, plugin)) for number, plugin in enumerate(plugins)}
    return str(target), [replace(job, plugins=tuple(moved[plugin] for plugin in job.plugins)) for job in jobs]


@functools.cache
def contents_of_command(plugins: tuple[str, ...] = ()) -> Mapping[str, bytes]:
    """Path in a snapshot -> content of what is frozen. It is read once per process: all that one command submits, even hours later, is
    the code that `code_version` names in its records."""
    files: dict[str, Path] = {}
    for folder, root in _PACKAGES.items():
        for path in root.rglob("*"):
            name = path.relative_to(root)
            if path.is_file() and "__pycache__" not in name.parts and not any(part[0] == "." for part in name.parts):
                files[str(folder / name)] = path
    files |= {_plugin(number, plugin): Path(plugin) for number, plugin in enumerate(plugins)}
    if (size := sum(path.stat().st_size for path in files.values())) > LARGEST_CODE:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise UsageError(f"the code to freeze has {size >> 20} MiB; move other files than code away, such as {largest}")
    start = b"from harness.dispatch.worker import main\n\nraise SystemExit(main())\n"
    return {WORKER: start, **{name: path.read_bytes() for name, path in files.items()}}


def _plugin(number: int, path: str) -> str:
    return f"plugins/{number}/{Path(path).name}"


def code_digest(contents: Mapping[str, bytes]) -> str:
    """The name of a snapshot: a hash of its files' names and bytes."""
    total = hashlib.sha256()
    for name in sorted(contents):
        total.update(os.fsencode(f"{name}\0{len(contents[name])}\0"))
        total.update(contents[name])
    return total.hexdigest()
