"""The first steps of every submission: freeze the code, write down what is to be submitted, make the command of a worker."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.dispatch import frozen_start, snapshot
from harness.dispatch.attempts import attempts, state_folder
from harness.dispatch.holder import Holder
from harness.dispatch.sweeps import AttemptLimits, Chunk, Sweep, create_sweep, new_id
from harness.planning.job import Job
from harness.system.errors import UsageError, os_reason
from harness.system.machine import code_version


def worker_arguments(chunk: Chunk, frozen: Path) -> list[str]:
    """What Python is given to work on ``chunk`` with the frozen code, whatever the working directory; it carries the code's hash."""
    text = f"exec({Path(frozen_start.__file__).read_text(encoding='utf-8')!r})"  # in one line: conda run takes no other
    return ["-I", "-S", "-B", "-c", text, str(frozen), frozen.name, str(chunk.path)]


def freeze(folder: Path, jobs: Sequence[Job]) -> tuple[Path, list[Job]]:
    """A snapshot of the code, and the jobs with their plug-ins as paths in it."""
    plugins = list(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
    frozen = snapshot.take(folder, extra=[Path(plugin) for plugin in plugins])
    moved = {plugin: str(snapshot.plugin_path(index, Path(plugin))) for index, plugin in enumerate(plugins)}
    return frozen, [replace(job, plugins=tuple(moved[plugin] for plugin in job.plugins)) for job in jobs]


def begin_sweep(
    results: Path,
    *,
    executor: str,
    command: str,
    frozen: Path | None = None,
    settings: Mapping[str, Any] | None = None,
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


@contextmanager
def writing(results: Path, *, sent: Sequence[str] = ()) -> Iterator[None]:
    """Turn a full disk or a folder without permission into one line.

    Args:
        sent: what was given to a cluster; the block adds to it as it goes on.
    """
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


def attempt_limits(results: Path, keys: Collection[str], *, allowed: int) -> dict[str, AttemptLimits]:
    """The attempts of a new submission: ``allowed`` more than there were."""
    limits = {}
    for key in keys:
        starts = attempts(state_folder(results, key))
        before = starts[-1].number if starts else 0
        limits[key] = AttemptLimits(before=before, limit=before + allowed)
    return limits
