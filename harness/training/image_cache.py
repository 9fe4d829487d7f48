"""A folder of arrays that jobs on one node or on a shared file system read and fill together."""

from __future__ import annotations

import contextlib
import hmac
import io
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.system.files import read_regular, write_atomically
from harness.system.user_cache import SUM_BYTES, own_key, own_sum, user_cache

_log = logging.getLogger(__name__)

_STALE = 24 * 3600.0  # seconds without use after which an entry may make room for another
_TOUCH = 3600.0  # use is noted at most this often, to spare the file system
_RESCAN = 64  # stored entries after which the folder is measured again: other jobs write too
_OVERHEAD = 128 + SUM_BYTES  # bytes that .npy puts before the array, and what follows it
_RESERVE = 2 * 2**30  # bytes of the disk that stay free


class ImageCache:
    """uint8 arrays by key, one ``.npy`` file each with a sum at its end.

    Nothing in the folder is trusted, which others may write to or have sent: the sum is keyed with a secret of the user's
    (`harness.system.user_cache`), and an array whose sum does not fit (another's, a failing disk) counts as not there. It is
    read whole, since what is mapped may change after it was summed. A user who has nowhere to keep a secret stores nothing.

    No locks: a file is written under a temporary name, flushed to disk and renamed, so that it is whole or not there;
    jobs that race write the same bytes, and the last rename wins.

    Bounded: when the folder is full, entries that no job used for a day make room, oldest first; entries in use never
    do, or an epoch over more data than fits would replace each entry before it is used again. What finds no room is
    not kept, which costs time and never a result. With several jobs the bound holds to within the entries that each
    stores between two looks at the folder (64).

    Users may share the folder and its bound, not the entries.

    Args:
        root: the folder; made when first written to.
        max_bytes: bound on its size.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._size: int | None = None
        self._stored = 0
        self._secret = own_key()
        self._full = False

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """The array, None if it is not there."""
        path = self._path(key)
        if self._secret is None or not path.exists():
            return None
        try:
            data = read_regular(path, largest=self.max_bytes)
            content = memoryview(data)[:-SUM_BYTES]
            if not hmac.compare_digest(data[len(content) :], own_sum(self._secret, key, content)):
                raise ValueError("it is not what this user stored")
            array: NDArray[np.uint8] = np.load(io.BytesIO(content), allow_pickle=False)
            if time.time() - path.stat().st_mtime > _TOUCH:
                with contextlib.suppress(OSError):
                    os.utime(path)
        except (OSError, ValueError, EOFError) as error:
            _log.warning("cached image %s is not used (%s); it is decoded again", path, error)
            return None
        return array

    def put(self, key: str, array: NDArray[np.uint8]) -> None:
        """Keep an array, where there is room; never raises for want of it."""
        if self._full:
            return
        if self._secret is None:
            self._stop(f"{user_cache() or 'a home'} cannot keep what only this user reads")
            return
        try:
            if not self._room(array.nbytes + _OVERHEAD):
                return
            content = io.BytesIO()
            np.save(content, array)
            data = content.getvalue()
            write_atomically(self._path(key), data + own_sum(self._secret, key, data))
        except OSError as error:
            self._full = True
            _log.warning("images are no longer cached in %s: %s", self.root, error)
            return
        self._stored += 1
        self._size = (self._size or 0) + array.nbytes + _OVERHEAD

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
