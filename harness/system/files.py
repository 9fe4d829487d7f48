"""Files that are there whole or not at all, in folders that may be shared: the one place that opens what lies below a results
folder. Others may have put anything there, and may change it meanwhile. So what is read is plain and of a bounded size, no link is
followed, and a new file is made exclusively, under a name that nobody can guess, and filled through its descriptor.

Names that become parts of paths, from cards, studies, records and the command line: checked where they enter.
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

from harness.system.errors import UsageError, os_reason, shown

LONGEST = 150
"""Bytes; with a suffix and a temporary file's ending it stays below the 255 that file systems allow."""


def checked_name(name: str, *, what: str) -> str:
    """``name``, if a file of that name lies in the folder that it is put into.

    Args:
        name: of a protocol or a study, for instance.
        what: what the name is of, for the message.

    Raises:
        UsageError: it is empty, leads elsewhere (``../x``), would be hidden, cannot be printed, or is too long.
    """
    if problem := _problem(name):
        raise UsageError(
            f"{what} {shown(name)!r} {problem}, and files are named after it; use letters, digits, - and _"
        )
    return name


def _problem(name: str) -> str:
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a slash"
    if name.startswith((".", "-")):
        return f"begins with {name[0]!r}"
    if not name.isprintable():
        return "holds a character that cannot be printed"
    if len(name.encode(errors="replace")) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return ""


SHARED = frozenset({"records", "state", "sweeps", "snapshots", "cache", "cost", "evidence", "forgetting"})
"""Folders of a results folder. The way to it may lead through links, as its user likes; from these on, none is followed."""
_TAIL = 2**20
"""Bytes that a library may hold back when what it writes to ends."""
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


def open_regular(path: Path) -> int:
    """A descriptor for reading a plain file; a FIFO or a device is never waited for, a link not followed.

    Raises:
        OSError: there is none, or it cannot be opened.
        ValueError: no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a link, which is not followed") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("no plain file")
    return descriptor


def read_regular(path: Path, *, largest: int) -> bytes:
    """The content of a plain file. Raises ValueError: no plain file, not readable, or more than ``largest`` bytes."""
    try:
        with open(open_regular(path), "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > largest:
                raise ValueError(f"larger than {largest >> 20} MiB")
            return file.read(size)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def bounded_text(path: Path, *, where: str, most: int) -> str:
    """The text of a file that people wrote.

    Args:
        where: what it is and its path, for messages.
        most: bytes that it may have.

    Raises:
        UsageError: not readable, larger, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{where}: {os_reason(error)}") from error
    if len(content) > most:
        raise UsageError(f"{where}: more than {most} bytes, so it is none")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: it is not UTF-8 text ({error.reason})") from error


def end_of(path: Path, *, size: int) -> str:
    """The last ``size`` bytes of a text, and the errors of `open_regular`."""
    with open(open_regular(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode("utf-8", errors="replace")


@contextlib.contextmanager
def folder_of(path: Path, *, make: int = 0) -> Iterator[int]:
    """A descriptor of the folder of ``path``, which stays that folder whatever others put in its place.

    Args:
        make: mode of the folders that are missing, less the umask; 0 makes none.

    Raises:
        OSError: it is not there, or the way from a folder of `SHARED` to it leads through a link; so say errors of the block
            about a name in it.
    """
    parts = path.parent.parts
    outside = max((index for index, part in enumerate(parts) if part in SHARED), default=len(parts))
    opened: list[int] = []
    try:
        if make:
            with contextlib.suppress(FileExistsError):  # by a file, which opening names
                Path(*parts[:outside]).mkdir(parents=True, exist_ok=True)
        opened.append(os.open(Path(*parts[:outside]), os.O_RDONLY | os.O_DIRECTORY))
        for part in parts[outside:]:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, make, dir_fd=opened[-1])
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        yield opened[-1]
    except OSError as error:
        if os.sep in os.fsdecode(error.filename or os.sep):
            raise
        link = error.errno in (errno.ELOOP, errno.ENOTDIR)
        reason = f"{error.filename} is a link or no folder" if link else error.strerror
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def own_folder(path: Path) -> Path:
    """A folder to which only who made it writes, in one where everybody may make such and nobody can move another's."""
    with folder_of(path, make=0o777) as parent:
        mode = os.fstat(parent).st_mode
        if mode & 0o022 and not mode & stat.S_ISVTX:
            with contextlib.suppress(PermissionError):  # another user made it
                os.fchmod(parent, stat.S_IMODE(mode) | stat.S_ISVTX)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path.name, 0o755, dir_fd=parent)
    return path


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write beside ``path`` and rename, so that a reader or a crash never sees half a file. ``durable``: fsynced before the rename;
    not needed for what is written every few seconds."""
    data = content.encode() if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(data), durable=durable)


def replace_atomically(
    path: Path, write: Callable[[Path], object], *, before: Callable[[], None] = lambda: None, durable: bool = True
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, call ``before``, and rename it to ``path``.

    ``write`` gets the path of a descriptor, which must be written to and cannot be replaced. Whoever shares the folder may write to
    the file, and so continue a run. A full disk, or a limit on files, is an OSError with that number, whatever ``write`` makes of it.
    """
    with folder_of(path, make=0o777) as folder:
        temporary = f".{path.name}.{secrets.token_hex(8)}.tmp"
        descriptor = _new(temporary, folder)
        try:
            write(Path(f"/dev/fd/{descriptor}"))
            if durable:
                os.fsync(descriptor)
            before()
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException as error:
            lacking = _no_room(error, descriptor, path.parent)
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            if lacking:
                raise OSError(lacking, os.strerror(lacking), str(path)) from error
            raise
        finally:
            os.close(descriptor)
        if durable:
            with contextlib.suppress(OSError):  # make the rename itself durable, where the file system can
                os.fsync(folder)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to be filled, which takes its name when the block ends, and is gone where the block fails.

    Where ``path`` holds something already, what was written replaces files of the same names, and others stay.
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


def _new(name: str, folder: int) -> int:
    """A new file, to which those may write who may write to its folder, less the umask."""
    return os.open(name, _NEW, 0o644 | os.fstat(folder).st_mode & 0o022, dir_fd=folder)


def _no_room(error: BaseException, descriptor: int, folder: Path) -> int:
    """The errno of a full disk or of a limit on file sizes, else 0; safetensors and torch raise errors of their own for these."""
    for number in (errno.ENOSPC, errno.EFBIG):
        if os.strerror(number) in str(error):
            return number
    if not isinstance(error, RuntimeError):
        return 0
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and os.fstat(descriptor).st_size + _TAIL >= limit:
        return errno.EFBIG
    return errno.ENOSPC if "writ" in str(error) and shutil.disk_usage(folder).free < _TAIL else 0


def create_exclusively(path: Path, text: str) -> bool:
    """Create ``path`` with ``text`` whole, or return False where it exists. Atomic on NFS."""
    with folder_of(path, make=0o777) as folder:
        temporary = f".{path.name}.{secrets.token_hex(8)}"
        with _synced(temporary, text, folder) as descriptor:
            try:
                os.link(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                # An NFS server may have made the link and lost the answer; the count of links tells.
                return os.fstat(descriptor).st_nlink == 2
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
                    raise
                # A file system without hard links: exclusive, though a reader may see it half for a moment.
                try:
                    with _synced(path.name, text, folder):
                        return True
                except FileExistsError:
                    return False
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
    return True


@contextlib.contextmanager
def _synced(name: str, text: str, folder: int) -> Iterator[int]:
    """A new file with ``text`` in it, on the disk, and open."""
    with open(_new(name, folder), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        yield file.fileno()


def create_anew(path: Path) -> int:
    """A descriptor of a new file, to be written to from its end, in the place of whatever is there."""
    with folder_of(path, make=0o777) as folder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        return os.open(path.name, _NEW | os.O_APPEND, 0o644, dir_fd=folder)
