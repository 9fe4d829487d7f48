"""Frozen copies of the code: jobs run what was there when they were submitted, however the tree is edited later, by the command
that a copy is started with."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import harness
from harness.dispatch import frozen_start
from harness.dispatch.frozen_start import Altered, digest, verified
from harness.dispatch.sweeps import Chunk
from harness.planning.job import Job
from harness.system.errors import UsageError
from harness.system.files import own_folder

ROOT = Path(str(harness.__file__)).parent
PACKAGES = {Path("harness", name): (ROOT / name).resolve() for name in ("", "methods", "datasets")}
"""Where a snapshot has what; in a clone two of them are links of ours to the folders beside ``harness``."""
LARGEST = 64 << 20
"""Bytes of all files; ours have 2 MB."""


def take(folder: Path, *, extra: Sequence[Path] = ()) -> Path:
    """Copy the package, uncommitted changes included, to ``folder/<user>/<hash of the content>``, where only this user writes. The
    same code gives the same folder, which is made once and hashed again before each use.

    Args:
        extra: further files, such as plug-ins; copied to ``plugins/``, numbered in their order.

    Returns:
        The snapshot; its name is the hash of what was taken.

    Raises:
        UsageError: the folder is there and holds something else than its name says, or the package holds more than code.
    """
    contents = contents_of_command(tuple(extra))
    target = own_folder(folder / str(os.getuid())) / digest(contents)
    if not target.is_dir():
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            _write(temporary, contents)
            os.rename(temporary, target)
        except BaseException as error:  # a full disk or Ctrl-C must not leave half a copy at every try
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError) or not target.is_dir():
                raise
    try:
        verified(str(target), target.name)
    except Altered as error:
        raise UsageError(str(error)) from error
    return target


@functools.cache
def contents_of_command(extra: tuple[Path, ...] = ()) -> Mapping[str, bytes]:
    """What is frozen, by its place in a snapshot; read once a process, so that all that one command submits, hours later too (runs
    after their trials, phases, what a cluster ended), is the code that `code_version` names in its records."""
    files = {place / name: root / name for place, root in PACKAGES.items() for name in _files(root)}
    files |= {plugin_path(index, path): path for index, path in enumerate(extra)}
    if (size := sum(path.stat().st_size for path in files.values())) > LARGEST:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise UsageError(f"the code to freeze has {size >> 20} MiB; move what is no code away, such as {largest}")
    return {str(name): path.read_bytes() for name, path in files.items()}


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of a snapshot; only this user may write to them and their folders, whatever the umask says."""
    for inner in sorted({parent for name in contents for parent in Path(name).parents}):
        (folder / inner).mkdir(mode=0o755)
    for name, content in contents.items():
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(content)


def plugin_path(index: int, path: Path) -> Path:
    """Where the ``index``-th extra file lies in a snapshot."""
    return Path("plugins") / str(index) / path.name


def _files(root: Path) -> Iterator[Path]:
    """Source and data files below ``root``, relative to it: all but byte code and what has a dot before its name."""
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and "__pycache__" not in name.parts and not any(part[0] == "." for part in name.parts):
            yield name


def freeze(folder: Path, jobs: Sequence[Job]) -> tuple[Path, list[Job]]:
    """A snapshot of the code, and the jobs with their plug-ins as paths in it."""
    plugins = list(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
    frozen = take(folder, extra=[Path(plugin) for plugin in plugins])
    moved = {plugin: str(plugin_path(index, Path(plugin))) for index, plugin in enumerate(plugins)}
    return frozen, [replace(job, plugins=tuple(moved[plugin] for plugin in job.plugins)) for job in jobs]


def worker_arguments(chunk: Chunk, frozen: Path) -> list[str]:
    """What Python is given to work on ``chunk`` with the frozen code, whatever the working directory; it carries the code's hash."""
    text = f"exec({Path(frozen_start.__file__).read_text(encoding='utf-8')!r})"  # in one line: conda run takes no other
    return ["-I", "-S", "-B", "-c", text, str(frozen), frozen.name, str(chunk.path)]
