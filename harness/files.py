"""Files that are there whole or not at all, and may be shared: the one place that writes so. Those that others may have put
there are read if they are plain and of a bounded size."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path


def read_regular(path: Path, *, largest: int) -> bytes:
    """The content of a plain file, or of the one that a link points to; a FIFO or a device is never waited for.

    Raises:
        ValueError: no plain file, not readable, or more than ``largest`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("no plain file")
            if found.st_size > largest:
                raise ValueError(f"larger than {largest >> 20} MiB")
            data = b""
            while chunk := os.read(descriptor, found.st_size - len(data)):
                data += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return data


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside ``path`` and rename, so that a reader or a crash never sees half a file; fsynced before the rename."""
    data = content.encode() if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def replace_atomically(
    path: Path, write: Callable[[Path], object], *, before: Callable[[], None] = lambda: None
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, call ``before``, and rename it to ``path``.

    The file gets the mode that the umask asks for: whoever shares the folder may continue the run. A full disk is an
    OSError with that number, whatever ``write`` makes of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.close(descriptor)
        write(temporary)
        temporary.chmod(mode)  # safetensors puts a file of its own there, for its owner alone
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        before()
        os.replace(temporary, path)
    except BaseException as error:
        full = _disk_is_full(error, path.parent)
        temporary.unlink(missing_ok=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    _sync_folder(path.parent)


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    """safetensors and torch have errors of their own for it; torch's does not even say so."""
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and "writ" in str(error) and shutil.disk_usage(folder).free < 2**20


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_exclusively(path: Path, text: str) -> bool:
    """Create ``path`` with ``text`` whole, or return False where it exists. Atomic on NFS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        # An NFS server may have made the link and lost the answer; the count of links tells.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        return _create_without_links(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, text: str) -> bool:
    """For file systems without hard links: exclusive, though a reader may see it half for a moment."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return True
