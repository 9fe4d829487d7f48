"""A folder of arrays that jobs on one node or on a shared file system read and fill together."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.files import write_atomically

_log = logging.getLogger(__name__)

_STALE = 24 * 3600.0  # seconds without use after which an entry may make room for another
_TOUCH = 3600.0  # use is noted at most this often, to spare the file system
_RESCAN = 64  # stored entries after which the folder is measured again: other jobs write too
_HEADER = 128  # bytes that .npy puts before the array
_RESERVE = 2 * 2**30  # bytes of the disk that stay free


class ImageCache:
    """uint8 arrays by key, one ``.npy`` file each, memory-mapped.

    No locks: a file is written under a temporary name, flushed to disk and renamed, so that it is whole or not there;
    jobs that race write the same bytes, and the last rename wins. A file that is not whole all the same (a failing
    disk) is written anew.

    Bounded: when the folder is full, entries that no job used for a day make room, oldest first; entries in use never
    do, or an epoch over more data than fits would replace each entry before it is used again. What finds no room is
    not kept, which costs time and never a result. With several jobs the bound holds to within the entries that each
    stores between two looks at the folder (64).

    Users may share it: files get the mode that the umask asks for. Where the umask lets only their owner write, others
    read the entries, store none in a folder that is not theirs, and their use of an entry is not noted.

    Args:
        root: the folder; made when first written to.
        max_bytes: bound on its size.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._size: int | None = None
        self._stored = 0
        self._full = False

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """The array as a copy-on-write memory map, None if it is not there."""
        path = self._path(key)
        try:
            array = np.load(path, mmap_mode="c")
            if time.time() - path.stat().st_mtime > _TOUCH:
                with contextlib.suppress(PermissionError):  # an entry that another user stored
                    os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            _log.warning("cached image %s is unreadable (%s); it is decoded again", path, error)
            return None
        return array.view(np.ndarray)

    def put(self, key: str, array: NDArray[np.uint8]) -> None:
        """Keep an array, where there is room; never raises for want of it."""
        if self._full:
            return
        try:
            if not self._room(array.nbytes + _HEADER):
                return
            content = io.BytesIO()
            np.save(content, array)
            write_atomically(self._path(key), content.getvalue())
        except OSError as error:
            self._full = True
            _log.warning("images are no longer cached in %s: %s", self.root, error)
            return
        self._stored += 1
        self._size = (self._size or 0) + array.nbytes + _HEADER

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npy"

    def _room(self, needed: int) -> bool:
        """Whether ``needed`` bytes fit, after stale entries went if they must."""
        if self._size is None or self._stored % _RESCAN == 0:
            self._size = sum(size for _, size, _ in self._entries())
        if self._size + needed > self.max_bytes:
            self._drop_stale(self._size + needed - self.max_bytes)
        if self._size + needed > self.max_bytes:
            self._stop(f"the bound of {self.max_bytes / 2**30:.1f} GiB is reached")
            return False
        existing = next(parent for parent in (self.root, *self.root.absolute().parents) if parent.exists())
        if shutil.disk_usage(existing).free < needed + min(_RESERVE, self.max_bytes):
            self._stop("the disk is nearly full")
            return False
        return True

    def _stop(self, reason: str) -> None:
        self._full = True
        _log.warning("images beyond those in %s are decoded each time: %s", self.root, reason)

    def _drop_stale(self, excess: int) -> None:
        """Remove what no job used lately, oldest first, until ``excess`` bytes are gone."""
        before = time.time() - _STALE
        for used, size, path in sorted(self._entries()):
            if excess <= 0 or used > before:
                return
            path.unlink(missing_ok=True)
            excess -= size
            self._size = max(0, (self._size or 0) - size)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file, temporary files of dead jobs included."""
        found = []
        for path in self.root.glob("*/*.npy*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another job removed or renamed it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found
