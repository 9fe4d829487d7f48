"""Hashes of the files of a data set, remembered so that they are read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.datasets.base import DatasetError
from harness.system.files import write_atomically
from harness.system.machine import affinity
from harness.system.streams import say
from harness.system.user_cache import user_cache

_SETTLED_S = 2.0
"""A file that changed a moment ago may change again within one tick of the clock and keep its times."""
_SAID_FROM = 1 << 28
_MOST_REMEMBERED = 1 << 28

Known = dict[str, list[int | str]]
"""Path -> inode, size, times of change, SHA-256."""


def content_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of every file; of a folder (a mask file per object) of its files and their names.

    Hashes are remembered in the user's cache folder by path, inode, size and times of change (ctime too, since anybody can set mtime
    back). The memory may be deleted at any time.

    Raises:
        DatasetError: a file is gone or cannot be read, or changes while it is read.
    """
    inside = {path: sorted(path.iterdir()) if path.is_dir() else [path] for path in paths}
    files = sorted({file for of_path in inside.values() for file in of_path})
    if not files:
        return {}
    now = {file: _identity(file) for file in files}
    memory = _memory(os.path.commonpath([file.absolute() for file in files]))
    known = _remembered(memory)
    new = [file for file in files if known.get(str(file.absolute()), [])[:-1] != now[file]]
    if (size := sum(int(now[file][1]) for file in new)) >= _SAID_FROM:
        say(
            f"reading all {size / 1e9:.1f} GB of {len(new)} images and masks for their fingerprint (once; it is remembered)"
        )
    with ThreadPoolExecutor(affinity()) as pool:
        hashes = dict(zip(new, pool.map(_hash, new), strict=True))
    if changed := [file for file in new if _identity(file) != now[file]]:
        raise DatasetError(f"{changed[0]} changed while it was read; wait until it is written, then start again")
    known |= {str(file.absolute()): [*now[file], hashes[file]] for file in new}
    if new:
        _remember(memory, known)
    digests = {file: str(known[str(file.absolute())][-1]) for file in files}
    return {
        path: digests[path] if of_path == [path] else _of_folder({file.name: digests[file] for file in of_path})
        for path, of_path in inside.items()
    }


def _identity(path: Path) -> list[int | str]:
    try:
        status = path.stat()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); unpack the data again") from error
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); unpack the data again") from error


def _of_folder(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _memory(root: str) -> Path | None:
    folder = user_cache()
    name = hashlib.sha256(root.encode(errors="surrogateescape")).hexdigest()[:32]
    return None if folder is None else folder / "contents" / f"{name}.json"


def _remembered(memory: Path | None) -> Known:
    try:
        if memory is None or memory.stat().st_size > _MOST_REMEMBERED:
            return {}
        content = json.loads(memory.read_text(encoding="utf-8"))
        return {str(path): list(entry) for path, entry in content.items() if len(entry[-1]) == 64}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return {}


def _remember(memory: Path | None, known: Known) -> None:
    settled = (time.time() - _SETTLED_S) * 1e9
    with contextlib.suppress(OSError, ValueError):
        if memory is not None:
            kept = {path: entry for path, entry in known.items() if int(entry[3]) < settled}
            write_atomically(memory, json.dumps(kept) + "\n")
