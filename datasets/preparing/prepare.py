"""``prepare``: archives to a benchmark's folder, whole or not at all.

Everything is unpacked and read in a hidden folder beside the target, which one rename puts in place; what a killed call left of it
the next one removes. gdown does the transfer, since it resumes by checked byte ranges, retries, and reads Google Drive, where several
of the published bundles lie.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from filelock import FileLock, Timeout

from harness.datasets.base import DatasetError
from harness.datasets.preparing import TellProgress, unpacking
from harness.datasets.reading.folder_benchmark import FolderBenchmark

FOLDER = ".downloads"
"""Below the data root: archives on their way."""
RECEIPT = ".prepared.json"
"""In the benchmark's folder: the hashes of the archives that it came from."""
_DRIVE = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_TIMEOUT_S = 60.0
_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive on disk: the URL or path that the user gave, where it lies, the hash of the whole file, hexadecimal."""

    source: str
    path: Path
    sha256: str


def file_name(url: str) -> str:
    """A local name for what ``url`` serves, of its own for each address; one for the ways to name a file on Google Drive."""
    parts = urlsplit(url)
    if parts.hostname in _DRIVE:
        shared = re.match(r"/file/(?:u/\d+/)?d/([\w-]+)", parts.path)
        drive = [shared[1]] if shared else parse_qs(parts.query).get("id", [])
        if not drive:
            raise DatasetError(
                f"{url} names no file; give the link that Google Drive's Share gives for the archive itself"
            )
        return f"drive-{re.sub(r'[^A-Za-z0-9_-]', '', drive[0])}"
    name = re.sub(r"[^\w.+ -]", "_", Path(parts.path).name).strip(". ")
    if not name and not parts.query:
        raise DatasetError(f"{url} names no file; give the address of the archive itself")
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name or 'download'}"


def obtain(source: str, data_root: Path, *, progress: TellProgress, sha256: str = "") -> Archive:
    """The archive behind ``source``, downloaded where it is a URL.

    A download that was cut goes on where it stopped; where the server cannot, it starts over.

    Args:
        sha256: its known hash; a download with another is removed.

    Raises:
        DatasetError: no such file, another hash, or the download failed; what came so far is kept.
    """
    if not source.startswith(("http://", "https://")):
        path = Path(source).expanduser()
        if path.is_dir():
            raise DatasetError(f"{source} is a folder, not an archive; use it as it is with --data")
        if not path.is_file():
            raise DatasetError(f"no archive {source}; give a file that is there, or its address (https://…)")
    else:
        path = data_root / FOLDER / file_name(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{path}.lock", timeout=0):  # two calls that append to one half-finished file would spoil it
                if not path.exists():
                    _download(source, path, progress=progress)
        except Timeout as error:
            raise DatasetError(f"another process is downloading {source}; wait for it") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and digest != sha256.lower():
        _forget(path, data_root / FOLDER)
        raise DatasetError(f"{source} has the SHA-256 {digest} instead of {sha256.lower()}; get it again")
    return Archive(source=source, path=path, sha256=digest)


def _download(url: str, path: Path, *, progress: TellProgress) -> None:
    import gdown  # only this verb needs it, and it is slow to import
    import requests
    from gdown.exceptions import DownloadError

    for attempt in ("resume", "start over"):
        try:
            options: dict[str, Any] = {
                "quiet": True,
                "use_cookies": False,
                "resume": True,
                "retries": _RETRIES,
                "timeout": _TIMEOUT_S,
            }
            gdown.download(url, str(path), progress=lambda done, total: progress(path.name, done, total), **options)
        except (DownloadError, requests.RequestException, OSError) as error:
            reason = " ".join(str(error).split())
            unusable = "byte range" in reason or "multiple temporary files" in reason or " 416 " in f" {reason} "
            if attempt == "resume" and unusable and _partial(path):
                _forget(path, path.parent)
                continue
            raise DatasetError(f"{url} did not download ({reason}); run the command again to resume") from error
        return


def _partial(path: Path) -> list[Path]:
    """What cut downloads of ``path`` left: gdown appends eight characters and ``.part``."""
    length = len(path.name) + 8 + len(".part")
    return [partial for partial in path.parent.glob(f"{glob.escape(path.name)}*.part") if len(partial.name) == length]


def _forget(path: Path, folder: Path) -> None:
    """Remove a download, whole or cut, so that the next call starts over; nothing that is not right in ``folder``."""
    for file in [path, *_partial(path)] if path.parent == folder else []:
        file.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` did. ``counts``: images by split; ``new``: False where the same archives had been prepared before."""

    folder: Path
    layout: str
    counts: dict[str, int]
    archives: tuple[Archive, ...]
    new: bool


def prepare(
    benchmark: FolderBenchmark,
    sources: Sequence[str],
    data_root: Path,
    *,
    progress: TellProgress,
    sha256: Sequence[str] = (),
) -> Prepared:
    """Obtain, verify, unpack, read and put in place.

    Args:
        benchmark: what the archives hold together.
        sources: URLs or paths.
        data_root: where the benchmark's folder goes.
        sha256: known hashes, one a source, or none.

    Raises:
        DatasetError: anything is missing, wrong, hostile or already there. No folder that looks whole is left.
    """
    if sha256 and len(sha256) != len(sources):
        raise DatasetError(f"--sha256 is given {len(sha256)} times for {len(sources)} archives; give one for each")
    known = dict(zip(sources, sha256, strict=False))
    archives = tuple(obtain(source, data_root, progress=progress, sha256=known.get(source, "")) for source in sources)
    data_root.mkdir(parents=True, exist_ok=True)
    folder, staging = data_root / benchmark.folders[0], data_root / f".unpacking-{benchmark.name}"
    try:
        with FileLock(f"{staging}.lock", timeout=0):
            new = not folder.exists()
            try:
                if new:
                    _stage(benchmark, archives, staging, data_root, progress=progress).rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except Timeout as error:
        raise DatasetError(f"another process is preparing {benchmark.name} in {data_root}; wait for it") from error
    if _receipt(folder) != sorted(archive.sha256 for archive in archives):
        raise DatasetError(f"{folder} is already there and was not prepared from these archives; move it away")
    splits = benchmark.splits(folder)
    counts = {name: len(pairs) for name, pairs in splits.parts.items()}
    return Prepared(folder=folder, layout=splits.layout, counts=counts, archives=archives, new=new)


def _stage(
    benchmark: FolderBenchmark, archives: Sequence[Archive], staging: Path, data_root: Path, *, progress: TellProgress
) -> Path:
    """Unpack into ``staging`` and read; the benchmark's folder there."""
    shutil.rmtree(staging, ignore_errors=True)  # of a call that was killed: the lock is ours
    for archive in archives:
        try:
            unpacking.unpack(archive.path, staging, progress=progress)
        except DatasetError:
            _forget(archive.path, data_root / FOLDER)  # damaged or hostile: the next call starts over
            raise
    roots = benchmark.inside(staging)  # whatever the archive calls it
    if len(roots) != 1:
        known = ", ".join(layout.name for layout in benchmark.layouts())
        names = " and ".join(str(path.relative_to(staging)) for path in roots) or "none"
        raise DatasetError(f"the archive holds no one {benchmark.title} in a layout that is known ({known}): {names}")
    for pairs in benchmark.splits(roots[0]).parts.values():
        benchmark.read(pairs[0])
    (roots[0] / RECEIPT).write_text(json.dumps([archive.sha256 for archive in archives]) + "\n", encoding="utf-8")
    return roots[0]


def _receipt(folder: Path) -> list[str]:
    try:
        content = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        return sorted(map(str, content))
    except (OSError, ValueError, TypeError):
        return []
