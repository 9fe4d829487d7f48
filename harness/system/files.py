"""Files that exist whole or not at all. A results folder may come from elsewhere, so only plain files of bounded size are read, and
nothing is written through a link in it. Names that become parts of paths are checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.system.errors import UsageError, os_reason, shortened

LONGEST = 150
"""Bound on the bytes of a name; with a suffix and a temporary ending it stays below the 255 of file systems."""


def checked_name(name: str, *, what: str) -> str:
    """``name``, the name of ``what``, if a file can have it. Raises UsageError: it is empty, leads to another folder (``../x``), would be
    hidden, cannot be printed, or is too long."""
    unusable = not name.strip() or name.startswith((".", "-")) or not name.isprintable() or set("/\\") & set(name)
    if unusable or len(name.encode(errors="replace")) > LONGEST:
        raise UsageError(
            f"{what} {shortened(name)!r} cannot be the name of a file, and files are named after it; use letters, digits, - and _"
        )
    return name


SHARED = frozenset({"records", "state", "sweeps", "cache", "cost", "tables", "site", "figures", "sample-data"})
"""All folders in a results folder that the harness writes to. The path to a results folder may contain links; these folders and what is
below them may not."""
_TAIL = 2**20
"""Bytes that a library may not have written yet when the disk is full."""


def require_text(path: Path | str, *, what: str) -> None:
    """Raises UsageError: the path of ``what`` is not UTF-8, so that no file of a sweep could name it."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {path}: the bytes of this path are not UTF-8; rename it, or choose another") from None


def open_regular(path: Path) -> int:
    """A descriptor for reading a plain file; a link is not followed. Raises OSError: it is missing or cannot be opened. Raises
    ValueError: it is not a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a link, which is not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def read_regular(path: Path, *, largest: int) -> bytes:
    """The content of a plain file. Raises ValueError: it is not a regular file, cannot be read, or has more than ``largest`` bytes."""
    try:
        with open(open_regular(path), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > largest:
                raise ValueError(f"larger than {largest >> 20} MiB")
            return file.read(size)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def bounded_text(path: Path, *, where: str, most: int) -> str:
    """The text of a file that people wrote, of at most ``most`` bytes; ``where``: its kind and path, for messages. Raises UsageError: it
    cannot be read, is larger, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{where}: {os_reason(error)}") from error
    if len(content) > most:
        raise UsageError(f"{where}: more than {most} bytes, which is too large")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: it is not UTF-8 text ({error.reason})") from error


def end_of(path: Path, *, size: int) -> str:
    """The last ``size`` bytes of a text file; raises what `open_regular` raises."""
    with open(open_regular(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode("utf-8", errors="replace")


def own_folder(path: Path) -> Path:
    """The folder, created if needed. Raises OSError as `refuse_links` does."""
    refuse_links(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_links(path: Path) -> None:
    """Raises OSError: a folder of `SHARED` in the path of a folder, or one below it, is a link."""
    parts = path.parts
    outside = max((index for index, part in enumerate(parts) if part in SHARED), default=len(parts))
    for end in range(outside, len(parts)):
        if (folder := Path(*parts[: end + 1])).is_symlink():
            raise OSError(errno.ELOOP, f"{folder.name} is a link, and must be a folder", str(path))


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write next to ``path`` and rename, so that no reader sees half a file, even after a crash. ``durable``: fsync before the rename."""
    data = content.encode() if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(data), durable=durable)


def replace_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let ``write`` fill a temporary file next to ``path``, sync it, and rename it to ``path``.

    Others who share the folder may write to the file, so that they can continue a run. A full disk, or a limit on file sizes, is
    raised as an OSError with that errno, whatever ``write`` raises.
    """
    temporary = _new(path, ending=".tmp")
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        lacking = _no_room(error, temporary)
        temporary.unlink(missing_ok=True)
        if lacking:
            raise OSError(lacking, os.strerror(lacking), str(path)) from error
        raise
    if durable:
        with contextlib.suppress(OSError):  # make the rename itself durable, where the file system can
            _sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder next to ``path``, which gets that name when the block ends, and is deleted if the block fails.

    Where ``path`` is a folder with content, files of the same names are replaced, and others stay.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir() and any(path.iterdir()):
            for written in temporary.iterdir():
                os.replace(written, path / written.name)
        else:
            os.replace(temporary, path)  # an empty folder gives way
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def create_exclusively(path: Path, text: str) -> bool:
    """Create ``path`` with its whole ``text``; returns False where it exists. Atomic on NFS."""
    temporary = _new(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        os.link(temporary, path)
    except FileExistsError:
        # An NFS server may have made the link and lost its answer; the count of links shows that.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
            raise
        # A file system without hard links: exclusive, but a reader may briefly see half of the text.
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def create_anew(path: Path) -> int:
    """A descriptor of a new file for appending; an existing one is deleted."""
    own_folder(path.parent)
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)


def _new(path: Path, *, ending: str = "") -> Path:
    """A new file next to ``path``; whoever may write to its folder may write to it, as far as the umask allows."""
    folder = own_folder(path.parent)
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}{ending}"
    mode = 0o644 | folder.stat().st_mode & 0o022
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    return temporary


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_room(error: BaseException, written: Path) -> int:
    """The errno of a full disk or of a limit on file sizes, else 0; safetensors and torch raise other errors for these."""
    for number in (errno.ENOSPC, errno.EFBIG):
        if os.strerror(number) in str(error):
            return number
    if not isinstance(error, RuntimeError):
        return 0
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and written.stat().st_size + _TAIL >= limit:
        return errno.EFBIG
    return errno.ENOSPC if "writ" in str(error) and shutil.disk_usage(written.parent).free < _TAIL else 0
