"""SHA-256 of files, remembered in the user's cache, so that a file is read once while it stays unchanged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.system.files import write_atomically
from harness.system.machine import affinity, user_cache
from harness.system.streams import say

_SETTLED_S = 2.0
"""A file that changed a moment ago may change once more within one tick of the clock and keep its times."""
_SAID_FROM = 1 << 26
_MOST_REMEMBERED = 1 << 28

KnownHashes = dict[str, list[int | str]]
"""Path -> inode, size, times of change, SHA-256."""


def file_hashes(paths: Iterable[Path], *, what: str) -> dict[Path, str]:
    """SHA-256 of every file, 64 hex digits.

    Hashes are remembered by path, inode, size and times of change (ctime too, since mtime can be set). The memory may be deleted at
    any time. A line on stderr says when much must be read.

    Args:
        what: the files, as that line names them.

    Raises:
        OSError: a file cannot be read, or changes while it is read.
    """
    files = sorted(set(paths))
    if not files:
        return {}
    now = {file: _identity(file) for file in files}
    memory = _memory(os.path.commonpath([file.absolute() for file in files]))
    known = _remembered(memory)
    new = [file for file in files if known.get(str(file.absolute()), [])[:-1] != now[file]]
    if (size := sum(int(now[file][1]) for file in new)) >= _SAID_FROM:
        say(f"reading all {size / 1e9:.2f} GB of {what} for a fingerprint (once; it is remembered)")
    with ThreadPoolExecutor(affinity()) as pool:
        hashes = dict(zip(new, pool.map(_hash, new), strict=True))
    if changed := [file for file in new if _identity(file) != now[file]]:
        raise OSError(errno.EAGAIN, "it changed while it was read; wait until it is fully written", str(changed[0]))
    known |= {str(file.absolute()): [*now[file], hashes[file]] for file in new}
    if new and memory is not None:
        settled = (time.time() - _SETTLED_S) * 1e9
        with contextlib.suppress(OSError, ValueError):
            kept = {path: entry for path, entry in known.items() if int(entry[3]) < settled}
            write_atomically(memory, json.dumps(kept) + "\n")
    return {file: str(known[str(file.absolute())][-1]) for file in files}


def _identity(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _memory(root: str) -> Path | None:
    """Where the hashes of files below ``root`` are remembered."""
    folder = user_cache()
    name = hashlib.sha256(root.encode(errors="surrogateescape")).hexdigest()[:32]
    return None if folder is None else folder / "contents" / f"{name}.json"


def _remembered(memory: Path | None) -> KnownHashes:
    try:
        if memory is None or memory.stat().st_size > _MOST_REMEMBERED:
            return {}
        content = json.loads(memory.read_text(encoding="utf-8"))
        return {str(path): list(entry) for path, entry in content.items() if len(entry[-1]) == 64}
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return {}
