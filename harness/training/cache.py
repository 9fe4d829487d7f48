"""Arrays by key in a folder that jobs share and fill together: decoded images, and embeddings of frozen encoders."""

from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.settings import CACHE_GIB
from harness.system.files import write_atomically

_log = logging.getLogger(__name__)

_RESCAN = 512  # stored arrays after which the folder is measured again: other jobs write too
_RESERVE = 2 << 30  # bytes of the disk that stay free


class ArrayCache:
    """One ``.npy`` file a key.

    No locks: a file is written under a temporary name and renamed, so that it is whole or not there; jobs that race write the same
    bytes. A file that cannot be read counts as not there. When the bound is reached, or the disk is nearly full, it stops filling and
    says so once; what finds no room costs time and never a result. Nothing is dropped: to begin anew delete the folder.

    Args:
        folder: made when first written to.
        gib: bound on its size; with several jobs it holds to within what each stores between two looks at the folder.
    """

    def __init__(self, folder: Path, *, gib: float = CACHE_GIB) -> None:
        self.folder, self._bound = folder, int(gib * 2**30)
        self._size = self._stored = 0
        self._full = False

    def get(self, key: str) -> NDArray | None:
        """The array, None if it is not there."""
        path = self._path(key)
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, MemoryError) as error:
            _log.warning("%s is not used (%s) and made again", path, error)
            return None

    def put(self, key: str, array: NDArray) -> None:
        """Keep an array, where there is room; never raises for want of it."""
        if self._full:
            return
        try:
            if self._stored % _RESCAN == 0:
                self._size = sum(path.stat().st_size for path in self.folder.glob("*/*.npy"))
            content = io.BytesIO()
            np.save(content, array)
            data = content.getbuffer()
            if self._size + len(data) > self._bound:
                self._stop(f"the bound of {self._bound / 2**30:.3g} GiB (cache_gib) is reached")
                return
            existing = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
            if shutil.disk_usage(existing).free < len(data) + min(_RESERVE, self._bound):
                self._stop("the disk is nearly full")
                return
            write_atomically(self._path(key), bytes(data), durable=False)
        except OSError as error:
            self._stop(str(error))
            return
        self._stored += 1
        self._size += len(data)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _stop(self, reason: str) -> None:
        self._full = True
        _log.warning("what is not yet in %s is made each time: %s", self.folder, reason)
