"""Archives to files, without trusting them: nothing outside the target, no links, no devices, no bombs, no damage.

Every stream is read to its end, because that is where the checksums are: `tarfile` alone stops at a tar's end mark, and
takes a broken header for one.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from harness.datasets.base import DatasetError
from harness.datasets.preparing import TellProgress
from harness.datasets.reading.pairing import MASK_EXTENSIONS, is_image

_CHUNK = 1 << 20
_MOST_AT_ONCE = 1 << 26
"""`tarfile` reads headers whole; none has so many bytes."""

_STREAMED = 0x08
"""Flag of a zip's file: sizes and checksum follow its content."""

_ABOUT = ("readme", "license", "licence", "copying", "citation", "changes")
_OF_SYSTEMS = (".ds_store", "thumbs.db")
_DATA = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xml", ".yaml", ".yml"})
"""Endings of what is data whatever its name begins with."""

_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    LookupError,
    RuntimeError,
    NotImplementedError,
)
"""What the standard library raises on archives that are damaged, protected or made to break it."""


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """Beyond these an archive is a bomb. Plain masks shrink a hundredfold, so the ratio counts for large ones only.

    Args:
        members: most files.
        ratio: most unpacked bytes per archive byte, once ``ratio_from`` bytes are reached.
        ratio_from: see ``ratio``.
        size: most unpacked bytes; None for what the disk has free, less a tenth.
    """

    members: int = 500_000
    ratio: int = 200
    ratio_from: int = 1 << 28
    size: int | None = None


def unpack(
    archive: Path,
    target: Path,
    *,
    progress: TellProgress,
    limits: ArchiveLimits | None = None,
    written: dict[Path, Path] | None = None,
) -> int:
    """Unpack a zip or tar archive into ``target``; returns the number of files.

    Args:
        written: file -> the archive that it came from, of archives that were unpacked into ``target`` before; this one's are added.
            A file that is there stays where this archive's is the same, or is no part of a data set (README, LICENSE, .DS_Store).

    Raises:
        DatasetError: hostile, damaged, protected by a password, of another kind, or with another file of one name than an archive
            before it. ``target`` may then hold a part.
    """
    limits = limits or ArchiveLimits()
    target.mkdir(parents=True, exist_ok=True)
    budget = _Budget(archive, target, limits, written)
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, target, budget, progress)
        if (opener := _compression(archive)) or _is_plain_tar(archive):
            with (opener or open)(archive, "rb") as stream:
                return _unpack_tar(_Watched(stream, budget), target, budget, progress)
    except DatasetError:
        raise
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
        raise DatasetError(f"{archive} cannot be unpacked ({reason}); get it again") from error
    except OSError as error:
        # gzip and bz2 report damage as OSError; a full disk is one too, and its text says so.
        raise DatasetError(f"{archive} cannot be unpacked ({error})") from error
    raise DatasetError(f"{archive} is neither zip nor tar; unpack it yourself and use the folder with --data")


def _compression(archive: Path) -> Callable[..., Any] | None:
    """What opens a compressed file, told by its first bytes."""
    with archive.open("rb") as file:
        start = file.read(8)
    return next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)


def _is_plain_tar(archive: Path) -> bool:
    """Whether the first header is a tar's; `tarfile.is_tarfile` would read as much as that header asks it to."""
    with archive.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Budget:
    """Counts files and bytes against the limits while they are written: what a header says is no evidence."""

    def __init__(
        self, archive: Path, target: Path, limits: ArchiveLimits, written: dict[Path, Path] | None = None
    ) -> None:
        self.archive = archive
        self.written = {} if written is None else written
        self.limits = limits
        self.archive_size = archive.stat().st_size
        self.most = limits.size if limits.size is not None else int(shutil.disk_usage(target).free * 0.9)
        self.bytes = 0
        self.names: set[str] = set()

    def member(self, name: str) -> PurePosixPath:
        """Account for one file; its path relative to the target."""
        path = safe_path(name, self.archive)
        folded = str(path).casefold()
        if folded in self.names:
            raise DatasetError(f"{self.archive} holds {name!r} twice; it was refused")
        self.names.add(folded)
        if len(self.names) > self.limits.members:
            raise DatasetError(f"{self.archive} holds more than {self.limits.members} files; it was refused")
        return path

    def spend(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.most:
            raise DatasetError(f"{self.archive} unpacks to more than {self.most} bytes, the limit; it was refused")
        self.check_ratio(self.bytes)

    def check_ratio(self, count: int) -> None:
        """Refuse ``count`` bytes out of this archive where that is beyond measure, written or not."""
        if count > self.limits.ratio_from and count > self.limits.ratio * self.archive_size:
            raise DatasetError(f"{self.archive} unpacks to over {self.limits.ratio} times its size; it was refused")

    def check_declared(self, sizes: Iterable[int]) -> None:
        """Refuse before a byte is written where the headers already say too much."""
        before = self.bytes
        self.spend(sum(sizes))
        self.bytes = before


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """A member's path, if it stays below the target. Raises DatasetError: absolute, with a drive, with ``..`` or a null byte, or no
    UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"{archive} holds the name {name!a}, which is no UTF-8; it was refused") from error
    posix = PurePosixPath(name.replace("\\", "/"))
    absolute = posix.is_absolute() or PureWindowsPath(name).drive
    if absolute or ".." in posix.parts or "\0" in name or not posix.parts:
        raise DatasetError(f"{archive} holds {name!r}, which leads out of the folder; it was refused")
    return posix


def _unpack_zip(archive: Path, target: Path, budget: _Budget, progress: TellProgress) -> int:
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if not _is_folder(info)]
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{archive} holds {info.filename!r}, a link or a device; it was refused")
        paths = [budget.member(info.filename) for info in members]
        budget.check_declared(info.file_size for info in members)
        for number, (info, path) in enumerate(zip(members, paths, strict=True), 1):
            with opened.open(info) as source:
                _check_local_header(opened, info)
                _write(source, target / path, budget)
            progress(f"unpacking {archive.name}", number, len(members))
    return len(members)


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """Whether a zip's entry is a folder, which some programs of Windows end with a backslash."""
    return info.is_dir() or (info.filename.endswith("\\") and not info.file_size)


def _check_local_header(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Compare a file's own header with the list at the zip's end: where that is damaged, a file may come out empty.

    Raises:
        zipfile.BadZipFile: the file's own header has another checksum. (Streamed archives have none there.)
    """
    file = opened.fp
    assert file is not None, "open"
    before = file.tell()
    file.seek(info.header_offset)
    flags, crc = struct.unpack("<6xH6xL12x", file.read(30))
    file.seek(before)
    if not flags & _STREAMED and crc != info.CRC:
        raise zipfile.BadZipFile(f"two checksums for {info.filename!r}")


class _Watched:
    """An uncompressed tar as `tarfile` reads it: forwards, with what was read last and how much came out so far."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self.stream = stream
        self.budget = budget
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.stream.read(size)
        self.budget.check_ratio(self.stream.tell())
        return self.last

    def seek(self, position: int) -> None:
        while (left := position - self.stream.tell()) > 0 and self.read(min(left, _CHUNK)):
            pass

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True

    def finish(self) -> None:
        """Read what follows the last member: an end mark and zeros, and the checksums of the compression.

        Raises:
            tarfile.ReadError: the end mark is missing, or members follow it: a header is damaged.
        """
        if len(self.last) < tarfile.BLOCKSIZE or any(self.last):
            raise tarfile.ReadError("it breaks off, or the header of a file is damaged")
        while piece := self.read(_CHUNK):
            if any(piece):
                raise tarfile.ReadError("files follow its end mark, or the header of a file is damaged")


def _unpack_tar(stream: _Watched, target: Path, budget: _Budget, progress: TellProgress) -> int:
    archive, count = budget.archive, 0
    with tarfile.open(fileobj=stream, mode="r:") as opened:  # type: ignore[call-overload]
        for info in opened:
            # tarfile's own rules first (PEP 706): traversal, absolute names, devices, links that lead out.
            tarfile.data_filter(info, str(target))
            if info.isdir():
                continue
            if not info.isreg():
                raise DatasetError(f"{archive} holds {info.name!r}, a link or a device; it was refused")
            path = budget.member(info.name)
            budget.check_declared([info.size])
            source = opened.extractfile(info)
            assert source is not None, "regular files have content"
            with source:
                _write(source, target / path, budget)
            count += 1
            progress(f"unpacking {archive.name}", count, None)
        stream.finish()
    return count


def _write(source: IO[bytes], path: Path, budget: _Budget) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path in budget.written:
        _compare(source, path, budget)
        return
    with path.open("xb") as file:
        while piece := source.read(_CHUNK):
            budget.spend(len(piece))
            file.write(piece)
    budget.written[path] = budget.archive


def _is_no_data(path: Path) -> bool:
    """Whether a file is about a data set, or a system's own; a ``license_plate_1.png`` is neither."""
    if path.name.casefold() in _OF_SYSTEMS or path.name.startswith("._"):
        return True
    data = path.suffix.lower() in _DATA or is_image(path.name, MASK_EXTENSIONS)
    return not data and path.stem.casefold().startswith(_ABOUT)


def _compare(source: IO[bytes], path: Path, budget: _Budget) -> None:
    """Read a file that another archive has written. Raises DatasetError: it differs, and may be data."""
    same = True
    with path.open("rb") as file:
        while piece := source.read(_CHUNK):
            budget.spend(len(piece))
            same = same and file.read(len(piece)) == piece
        same = same and not file.read(1)
    if not same and not _is_no_data(path):
        raise DatasetError(
            f"{budget.written[path]} and {budget.archive} hold different files {path.name} in one place; give archives of one copy"
        )
