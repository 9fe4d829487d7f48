"""``prepare``: archives to a benchmark's folder, whole or not at all.

Everything is unpacked and read in a hidden folder in the data root, which one rename puts in place. The next call removes what a
killed call left. gdown does the transfer, since it resumes by checked byte ranges, retries, and reads Google Drive, which holds
several of the published bundles.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from harness.datasets.base import DatasetError, Splits
from harness.datasets.preparing.unpacking import Progress, unpack
from harness.datasets.readers.folder_benchmark import FolderBenchmark

FOLDER = ".downloads"
"""Below the data root: archives that are being downloaded."""
_TIMEOUT_S = 60.0
_RETRIES = 5


def file_name(url: str) -> str:
    """A local name for what ``url`` serves, unique to each address."""
    name = re.sub(r"[^\w.+ -]", "_", Path(urlsplit(url).path).name).strip(". ")
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name or 'download'}"


def place_of(source: str, data_root: Path) -> Path:
    """The archive of ``source``, or where it goes if that is an address. Raises DatasetError: no such file, or not an address."""
    if source.startswith(("http://", "https://")):
        try:
            return data_root / FOLDER / file_name(source)
        except ValueError as error:
            raise DatasetError(f"{source} is not an address ({error}); give one like https://host/name.zip") from error
    path = Path(source).expanduser()
    if path.is_dir():
        raise DatasetError(f"{source} is a folder, not an archive; use it as it is with --data")
    if not path.is_file():
        raise DatasetError(f"no archive {source}; give an existing file, or its address (https://…)")
    return path


def _download(url: str, path: Path, *, progress: Progress) -> None:
    """Download, resuming where an earlier call stopped. Raises DatasetError: it failed; what has arrived is kept."""
    import gdown  # only this verb needs it, and it is slow to import
    import requests
    from gdown.exceptions import DownloadError

    def move(done: int, total: int | None) -> None:
        progress(path.name, done, total)

    options: dict[str, Any] = {"quiet": True, "use_cookies": False, "resume": True}
    path.parent.mkdir(exist_ok=True)
    try:
        gdown.download(url, str(path), progress=move, retries=_RETRIES, timeout=_TIMEOUT_S, **options)
    except (DownloadError, requests.RequestException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{url} did not download ({reason}); run the command again to resume, or remove {path.parent} to start over"
        ) from error


def prepare(
    benchmark: FolderBenchmark, sources: Sequence[str], data_root: Path, *, progress: Progress
) -> tuple[Path, Splits]:
    """Obtain, unpack, read and put in place: the benchmark's folder, and its splits.

    Args:
        benchmark: what the archives hold together.
        sources: URLs or paths.
        data_root: where the benchmark's folder goes.

    Raises:
        DatasetError: anything is missing, wrong, hostile or already there. No folder that looks complete is left.
    """
    folder, staging = data_root / benchmark.folders[0], data_root / f".unpacking-{benchmark.name}"
    if folder.exists():
        raise DatasetError(f"{folder} is already there; use it, or move it away")
    archives = [place_of(source, data_root) for source in sources]
    data_root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(data_root / ".preparing.lock", timeout=0):  # two calls that append to one download would spoil it
            for source, archive in zip(sources, archives, strict=True):
                if not archive.exists():
                    _download(source, archive, progress=progress)
            try:
                _stage(benchmark, archives, staging, progress=progress).rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except Timeout as error:
        raise DatasetError(f"another process is preparing data in {data_root}; wait for it") from error
    return folder, benchmark.splits(folder)


def _stage(benchmark: FolderBenchmark, archives: Sequence[Path], staging: Path, *, progress: Progress) -> Path:
    """Unpack into ``staging`` and read; returns the benchmark's folder there."""
    shutil.rmtree(staging, ignore_errors=True)  # of a call that was killed: the lock is ours
    for archive in archives:
        try:
            unpack(archive, staging, progress=progress)
        except DatasetError:
            if archive.parent == staging.parent / FOLDER:  # damaged or hostile: the next call downloads it anew
                archive.unlink()
            raise
    roots = benchmark.inside(staging)  # whatever the archive calls it
    if len(roots) != 1:
        known = ", ".join(layout.name for layout in benchmark.layouts())
        names = " and ".join(str(path.relative_to(staging)) for path in roots) or "none"
        raise DatasetError(
            f"the archive must hold exactly one {benchmark.title} in a known layout ({known}); found: {names}"
        )
    for pairs in benchmark.splits(roots[0]).parts.values():
        benchmark.read(pairs[0])
    return roots[0]
