"""Archives to files, without trusting them: nothing outside the target, no links, no devices, no bombs."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from datasets.base import DatasetError

Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
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


def unpack(archive: Path, target: Path, *, progress: Progress, limits: Limits | None = None) -> int:
    """Unpack a zip or tar archive into ``target``; returns the number of files.

    Raises:
        DatasetError: hostile, damaged, protected by a password, or of another kind. ``target`` may then hold a part.
    """
    limits = limits or Limits()
    target.mkdir(parents=True, exist_ok=True)
    budget = _Budget(archive, target, limits)
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, target, budget, progress)
        if tarfile.is_tarfile(archive):
            return _unpack_tar(archive, target, budget, progress)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DatasetError(f"{archive} cannot be unpacked ({type(error).__name__}: {error}); get it again") from error
    except OSError as error:
        # gzip and lzma report damage as OSError; a full disk is one too, and its text says so.
        raise DatasetError(f"{archive} cannot be unpacked ({error})") from error
    raise DatasetError(f"{archive} is neither zip nor tar; unpack it yourself and use the folder with --root")


class _Budget:
    """Counts files and bytes against the limits while they are written: what a header says is no evidence."""

    def __init__(self, archive: Path, target: Path, limits: Limits) -> None:
        self.archive = archive
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
        if self.bytes > self.limits.ratio_from and self.bytes > self.limits.ratio * self.archive_size:
            raise DatasetError(f"{self.archive} unpacks to over {self.limits.ratio} times its size; it was refused")

    def check_declared(self, sizes: Iterable[int]) -> None:
        """Refuse before a byte is written where the headers already say too much."""
        before = self.bytes
        self.spend(sum(sizes))
        self.bytes = before


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """A member's path, if it stays below the target.

    Raises:
        DatasetError: absolute, with a drive, with ``..`` or a null byte.
    """
    posix = PurePosixPath(name.replace("\\", "/"))
    absolute = posix.is_absolute() or PureWindowsPath(name).drive
    if absolute or ".." in posix.parts or "\0" in name or not posix.parts:
        raise DatasetError(f"{archive} holds {name!r}, which leads out of the folder; it was refused")
    return posix


def _unpack_zip(archive: Path, target: Path, budget: _Budget, progress: Progress) -> int:
    with zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if not info.is_dir()]
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{archive} holds {info.filename!r}, a link or a device; it was refused")
        paths = [budget.member(info.filename) for info in members]
        budget.check_declared(info.file_size for info in members)
        for number, (info, path) in enumerate(zip(members, paths, strict=True), 1):
            with opened.open(info) as source:
                _write(source, target / path, budget)
            progress(f"unpacking {archive.name}", number, len(members))
    return len(members)


def _unpack_tar(archive: Path, target: Path, budget: _Budget, progress: Progress) -> int:
    count = 0
    with tarfile.open(archive) as opened:
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
    return count


def _write(source: IO[bytes], path: Path, budget: _Budget) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while piece := source.read(_CHUNK):
            budget.spend(len(piece))
            file.write(piece)
