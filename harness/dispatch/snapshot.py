"""Frozen copies of the code: jobs run what was there when they were submitted, however the tree is edited later."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import harness
from harness.planning.request import Job
from harness.system.errors import UsageError

ROOT = Path(str(harness.__file__)).parent
PACKAGES = {Path("harness", name): (ROOT / name).resolve() for name in ("", "methods", "datasets")}
"""Where a snapshot has what; in a clone two of them are links of ours to the folders next to ``harness``."""
LARGEST = 64 << 20
"""Bytes of all files; ours have 2 MB."""
WORKER = "worker.py"
"""What a job starts: Python puts the folder of the file that it is given first, so that this copy is imported and no other."""


def freeze(results: Path, jobs: Sequence[Job]) -> tuple[Path, list[Job]]:
    """Copy the package, uncommitted changes included, and the jobs' plug-ins to ``results/snapshots/<hash of the content>``, which
    is made once for the same code.

    Returns:
        The copy, and the jobs with their plug-ins in it.

    Raises:
        UsageError: the folder is there and holds something else than its name says, or the package holds more than code.
    """
    plugins = tuple(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
    contents = contents_of_command(plugins)
    target = results / "snapshots" / _digest(contents)
    if not target.is_dir():
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            for name, content in contents.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(content)
            os.rename(temporary, target)
        except BaseException as error:  # a full disk or Ctrl-C must not leave half a copy at every try
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, OSError) or not target.is_dir():
                raise
    found = {name: path.read_bytes() for name in contents if (path := target / name).is_file()}
    if found != contents:
        raise UsageError(f"the frozen code in {target} was altered since it was taken; move that folder away")
    moved = {plugin: str(target / _plugin(number, plugin)) for number, plugin in enumerate(plugins)}
    return target, [replace(job, plugins=tuple(moved[plugin] for plugin in job.plugins)) for job in jobs]


@functools.cache
def contents_of_command(plugins: tuple[str, ...] = ()) -> Mapping[str, bytes]:
    """What is frozen, by its path in a snapshot; read once a process, so that all that one command submits, hours later too (runs
    after their trials, what a cluster ended), is the code that `code_version` names in its records."""
    files: dict[str, Path] = {}
    for folder, root in PACKAGES.items():
        for path in root.rglob("*"):
            name = path.relative_to(root)
            if path.is_file() and "__pycache__" not in name.parts and not any(part[0] == "." for part in name.parts):
                files[str(folder / name)] = path
    files |= {_plugin(number, plugin): Path(plugin) for number, plugin in enumerate(plugins)}
    if (size := sum(path.stat().st_size for path in files.values())) > LARGEST:
        largest = max(files.values(), key=lambda path: path.stat().st_size)
        raise UsageError(f"the code to freeze has {size >> 20} MiB; move what is no code away, such as {largest}")
    start = b"from harness.dispatch.worker import main\n\nraise SystemExit(main())\n"
    return {WORKER: start, **{name: path.read_bytes() for name, path in files.items()}}


def _plugin(number: int, path: str) -> str:
    return f"plugins/{number}/{Path(path).name}"


def _digest(contents: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(contents):
        total.update(os.fsencode(f"{name}\0{len(contents[name])}\0"))
        total.update(contents[name])
    return total.hexdigest()
