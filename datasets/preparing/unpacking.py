"""Archives to files, without trusting them: nothing outside the target, no links, no devices, no bombs, no damage.

Every stream is read to its end, because that is where the checksums are: `tarfile` alone stops at a tar's end mark, and
takes a broken header for one.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from harness.datasets.base import DatasetError

Progress = Callable[[str, int, int | None], None]
"""Called with the step, the amount done, and the total where that is known."""
_CHUNK = 1 << 20
_ABOUT = ("readme", "license", "licence")
MOST_MEMBERS = 500_000
MOST_RATIO, RATIO_FROM = 200, 1 << 28
"""Most unpacked bytes per archive byte, from so many bytes on: plain masks shrink a hundredfold."""


def unpack(archive: Path, target: Path, *, progress: Progress) -> int:
    """Unpack a zip or tar archive into ``target``; returns the number of files. A README or LICENSE of an earlier archive stays.

    Raises:
        DatasetError: hostile, damaged, protected by a password, neither zip nor tar, or with a file that an earlier archive brought.
            ``target`` may then hold a part.
    """
    target.mkdir(parents=True, exist_ok=True)
    budget = _Budget(archive, target, progress)
    try:
        (_unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar)(archive, budget)
    except DatasetError:
        raise
    except (
        Exception
    ) as error:  # damaged, protected or made to break the library, which may raise anything; or the disk is full
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].encode("ascii", "backslashreplace").decode()
        raise DatasetError(
            f"{archive} cannot be unpacked ({reason}); get it again as zip or tar, or unpack it yourself and use the folder with --data"
        ) from error
    return len(budget.names)


class _Budget:
    """Writes files and counts them against the limits: what a header says is not evidence."""

    def __init__(self, archive: Path, target: Path, progress: Progress) -> None:
        self.archive, self.target, self.progress = archive, target, progress
        self.archive_size = archive.stat().st_size
        self.most = int(shutil.disk_usage(target).free * 0.9)
        self.bytes = 0
        self.names: set[str] = set()

    def member(self, name: str) -> Path:
        """Account for one file; returns where it goes. Raises DatasetError: over a limit, twice, not UTF-8, or out of the target (absolute,
        with a drive, with ``..`` or a null byte)."""
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name or not path.parts:
            raise DatasetError(f"{self.archive} holds {name!r}, which leads out of the folder; it was refused")
        if name != name.encode(errors="replace").decode():
            raise DatasetError(f"{self.archive} holds the name {name!a}, which is not UTF-8; it was refused")
        if str(path).casefold() in self.names:
            raise DatasetError(f"{self.archive} holds {name!r} twice; it was refused")
        self.names.add(str(path).casefold())
        if len(self.names) > MOST_MEMBERS:
            raise DatasetError(f"{self.archive} holds more than {MOST_MEMBERS} files; it was refused")
        return self.target / path

    def check(self, count: int) -> None:
        """Refuse ``count`` bytes out of this archive where they exceed a limit, declared, read or written."""
        if count > self.most:
            raise DatasetError(f"{self.archive} unpacks to more than {self.most} bytes, the limit; it was refused")
        if count > RATIO_FROM and count > MOST_RATIO * self.archive_size:
            raise DatasetError(f"{self.archive} unpacks to over {MOST_RATIO} times its size; it was refused")

    def write(self, source: IO[bytes], path: Path, total: int | None) -> None:
        if path.exists():
            if path.name.casefold().startswith(_ABOUT):
                return
            raise DatasetError(f"{self.archive} and an archive before it both hold {path.name}; give one of the two")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while piece := source.read(_CHUNK):
                self.bytes += len(piece)
                self.check(self.bytes)
                file.write(piece)
        self.progress(f"unpacking {self.archive.name}", len(self.names), total)


def _unpack_zip(archive: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as opened:
        # Some programs of Windows end folders with a backslash.
        members = [i for i in opened.infolist() if not (i.is_dir() or (i.filename.endswith("\\") and not i.file_size))]
        for info in opened.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{archive} holds {info.filename!r}, a link or a device; it was refused")
        paths = [budget.member(info.filename) for info in members]
        budget.check(sum(info.file_size for info in members))
        for info, path in zip(members, paths, strict=True):
            with opened.open(info) as source:
                budget.write(source, path, len(members))


class _Header(tarfile.TarInfo):
    """A header of a tar. What is damaged or breaks off is an error, where `tarfile` would end its list as at an end mark; `tarfile` reads
    the content of extended headers whole, and none is as long as a file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        return cls._whole(lambda: super(_Header, cls).frombuf(buf, encoding, errors))

    @classmethod
    def _frombuf(cls, *given: Any, **how: Any) -> _Header:
        """What `tarfile` itself calls in its latest releases."""
        return cls._whole(lambda: super(_Header, cls)._frombuf(*given, **how))  # type: ignore[misc]

    @classmethod
    def _whole(cls, read: Callable[[], _Header]) -> _Header:
        try:
            header = read()
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header where one should be: {error}") from error
        if header.type not in tarfile.REGULAR_TYPES and header.size > _CHUNK:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _unpack_tar(archive: Path, budget: _Budget) -> None:
    with tarfile.open(archive, "r:*", tarinfo=_Header) as opened:
        for count, info in enumerate(opened):
            budget.check(budget.bytes + info.size)
            if count > MOST_MEMBERS:
                raise tarfile.ReadError(f"more than {MOST_MEMBERS} files and folders")
            if info.isdir():
                continue
            if not info.isreg():
                raise DatasetError(f"{archive} holds {info.name!r}, a link or a device; it was refused")
            source = opened.extractfile(info)
            assert source is not None, "regular files have content"
            with source:
                budget.write(source, budget.member(info.name), None)
        # Zeros and the checksums of the compression follow; else a header is damaged.
        while piece := opened.fileobj.read(_CHUNK):
            if any(piece):
                raise tarfile.ReadError("files follow its end mark, or the header of a file is damaged")
