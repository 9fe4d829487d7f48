"""Read sweeps back from disk. Others may have written the files, so every one is checked before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from harness.check import read_as
from harness.dispatch.sweeps import Chunk, PlannedRun, Sweep, beside_chunk, name_of, sweeps_folder, unreadable
from harness.system.errors import UsageError

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


def read_sweeps(results: Path, problems: Problems | None = None) -> list[Sweep]:
    """All sweeps, oldest first; what cannot be read goes to ``problems`` where there is one.

    Raises:
        UsageError: one cannot be read.
    """
    readable = (
        read_readable(read_sweep, path, path.parent, problems)
        for path in sorted(sweeps_folder(results).glob("*/sweep.json"))
    )
    return [sweep for sweep in readable if sweep is not None]


def read_chunk(path: Path) -> Chunk:
    """Raises UsageError where its intent or what lies beside it is damaged."""
    try:
        intent = read_as(path, _Intent)
        answer = read_as(beside_chunk(path, "job"), _Answer) if beside_chunk(path, "job").exists() else _Answer()
        closing = (
            read_as(beside_chunk(path, "closed"), _Closing) if beside_chunk(path, "closed").exists() else _Closing()
        )
        _check_names(path, intent, answer)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
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
    found = sweeps_folder(results).glob(f"{sweep}/chunk.*.json")
    chunks = [(path.parent, int(name[1]), path) for path in found if (name := _CHUNK.fullmatch(path.name))]
    return [path for *_, path in sorted(chunks)]


def read_chunks(
    results: Path, *, sweep: str = "*", open_only: bool = False, problems: Problems | None = None
) -> Iterator[Chunk]:
    """Chunks of all sweeps, oldest first; what cannot be read goes to ``problems`` where there is one.

    Raises:
        UsageError: one cannot be read.
    """
    for path in chunk_paths(results, sweep=sweep):
        if open_only and beside_chunk(path, "closed").exists():
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


def _check_names(path: Path, intent: _Intent, answer: _Answer) -> None:
    """What becomes a path, or a word of a command to the cluster: under another name it would cancel another job."""
    for run in intent.runs:
        if not re.fullmatch(r"[0-9a-f]{16}", run.key):
            raise ValueError(f"{run.key!r} is no key of a run")
    if intent.name != name_of(path):
        raise ValueError("it names another job than its own")
    if not re.fullmatch(r"\d{0,20}", answer.job):
        raise ValueError("it names no job of a cluster")
