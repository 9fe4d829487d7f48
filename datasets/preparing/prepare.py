"""``prepare``: archives to a benchmark's folder, whole or not at all.

Everything is unpacked and read in a hidden folder beside the target, which one rename puts in place. A call that
was killed leaves the hidden folder; the next one removes it. Downloads resume, and the hash of what came is kept: gdown does the
transfer, since it resumes by checked byte ranges, retries, and reads Google Drive, where several of the published bundles lie.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from filelock import FileLock, Timeout

from harness.datasets.base import DatasetError
from harness.datasets.preparing import TellProgress, unpacking
from harness.datasets.reading.folder_benchmark import FolderBenchmark

FOLDER = ".downloads"
"""Below the data root: archives on their way, and ``seen.json``."""

_DRIVE = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive on disk: the URL or path that the user gave, where it lies, its bytes, the hash of the whole file, hexadecimal."""

    source: str
    path: Path
    size: int
    sha256: str


def is_url(source: str) -> bool:
    """Whether ``--from`` names something to download."""
    return source.startswith(("http://", "https://"))


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


def obtain(source: str, data_root: Path, *, progress: TellProgress) -> Archive:
    """The archive behind ``source``, downloaded where it is a URL.

    A download that was cut goes on where it stopped; where the server cannot, it starts over.

    Raises:
        DatasetError: no such file, or the download failed; what came so far is kept.
    """
    if not is_url(source):
        path = Path(source).expanduser()
        if path.is_dir():
            raise DatasetError(f"{source} is a folder, not an archive; use it as it is with --data or --dataset-root")
        if not path.is_file():
            raise DatasetError(f"no archive {source}; give a file that is there, or its address (https://…)")
        return Archive(source=source, path=path, size=path.stat().st_size, sha256=sha256_of(path, progress=progress))
    folder = data_root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(source)
    try:
        # Two calls that append to one half-finished file would spoil it.
        with FileLock(f"{path}.lock", timeout=0):
            if not path.exists():
                _download(source, path, progress=progress)
    except Timeout as error:
        raise DatasetError(
            f"another process is downloading {source}; wait for it, then run the command again"
        ) from error
    return Archive(source=source, path=path, size=path.stat().st_size, sha256=sha256_of(path, progress=progress))


def _download(url: str, path: Path, *, progress: TellProgress) -> None:
    import gdown  # only this verb needs it, and it is slow to import
    import requests
    from gdown.exceptions import DownloadError

    def report(done: int, total: int | None) -> None:
        progress(path.name, done, total)

    for attempt in ("resume", "start over"):
        if attempt == "start over":
            discard_partial(path)
        try:
            gdown.download(
                url,
                str(path),
                quiet=True,
                use_cookies=False,
                resume=True,
                retries=_RETRIES,
                timeout=_TIMEOUT_S,
                progress=report,
            )
        except (DownloadError, requests.RequestException, OSError) as error:
            reason = " ".join(str(error).split())
            unusable = "byte range" in reason or "multiple temporary files" in reason or " 416 " in f" {reason} "
            if attempt == "resume" and unusable and partial_files(path):
                continue
            raise DatasetError(f"{url} did not download ({reason}); run the command again to resume") from error
        return


def partial_files(path: Path) -> list[Path]:
    """What cut downloads of ``path`` left: gdown appends eight characters and ``.part``."""
    length = len(path.name) + 8 + len(".part")
    return [partial for partial in path.parent.glob(f"{glob.escape(path.name)}*.part") if len(partial.name) == length]


def discard_partial(path: Path) -> None:
    """Forget a download, whole or cut."""
    for file in [path, *partial_files(path)]:
        file.unlink(missing_ok=True)


def sha256_of(path: Path, *, progress: TellProgress) -> str:
    """SHA-256 of a file, read in pieces."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            progress(f"hashing {path.name}", done, total)
    return digest.hexdigest()


def verify_archive(archive: Archive, *, sha256: str | None, size: int | None, data_root: Path) -> str:
    """Compare with what is known: what the user states, or else what the same source was when it came the last time.

    Returns:
        What was verified, in words.

    Raises:
        DatasetError: another size or hash. A wrong download is removed, so that the next call starts over.
    """
    seen = _seen(data_root).get(archive.source)
    if size is not None and archive.size != size:
        _reject(archive, f"has {archive.size} bytes instead of {size}")
    if sha256 is not None:
        if archive.sha256 != sha256.lower():
            _reject(archive, f"has the SHA-256 {archive.sha256} instead of {sha256.lower()}")
        return "SHA-256 as stated"
    if seen is not None and seen["sha256"] != archive.sha256:
        _reject(
            archive,
            f"has the SHA-256 {archive.sha256}, and had {seen['sha256']} the last time; "
            "if the change is meant, state the new one with --sha256",
        )
    return "SHA-256 as seen before" if seen is not None else "SHA-256 not known before, recorded"


def _reject(archive: Archive, reason: str) -> None:
    removed = ""
    if is_url(archive.source):
        discard_partial(archive.path)
        removed = "; the download was removed"
    raise DatasetError(f"{archive.source} {reason}{removed}")


def _seen(data_root: Path) -> dict[str, dict[str, str | int]]:
    path = data_root / FOLDER / "seen.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON ({error}); remove it to record hashes anew") from error


def record(archives: list[Archive], data_root: Path) -> None:
    """Remember size and hash of archives by their source."""
    folder = data_root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known = _seen(data_root)
    known.update({archive.source: {"size": archive.size, "sha256": archive.sha256} for archive in archives})
    temporary = folder / f"seen.json.{os.getpid()}"
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / "seen.json")


RECEIPT = ".prepared.json"
"""In the benchmark's folder: where it came from, with size and hash."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` did.

    Args:
        counts: images by split.
        archives: what it came from.
        verified: by archive, what its hash was compared with.
        new: False where the same archives had been prepared before.
    """

    folder: Path
    layout: str
    counts: dict[str, int]
    archives: tuple[Archive, ...]
    verified: tuple[str, ...]
    new: bool


def prepare(
    benchmark: FolderBenchmark,
    sources: Sequence[str],
    data_root: Path,
    *,
    progress: TellProgress,
    sha256: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> Prepared:
    """Obtain, verify, unpack, read and put in place.

    Args:
        benchmark: what the archives hold together.
        sources: URLs or paths.
        data_root: where the benchmark's folder goes.
        sha256, sizes: known hashes and sizes in bytes, one a source, or none.

    Raises:
        DatasetError: anything is missing, wrong, hostile or already there. No folder that looks whole is left.
    """
    for what, known in (("--sha256", sha256), ("--size", sizes)):
        if known and len(known) != len(sources):
            raise DatasetError(f"{what} is given {len(known)} times for {len(sources)} archives; give one for each")
    archives = [obtain(source, data_root, progress=progress) for source in sources]
    verified = [
        verify_archive(
            archive,
            sha256=sha256[number] if sha256 else None,
            size=sizes[number] if sizes else None,
            data_root=data_root,
        )
        for number, archive in enumerate(archives)
    ]
    data_root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(data_root, benchmark.name)
    folder = data_root / benchmark.folders[0]
    if folder.exists():
        return _already_there(benchmark, folder, archives, verified)
    staging = data_root / f".unpacking-{benchmark.name}-{socket.gethostname()}-{os.getpid()}"
    try:
        located, counts, layout = _stage(benchmark, archives, staging, progress=progress)
        try:
            os.rename(located, folder)
        except OSError as error:
            raise DatasetError(f"cannot put {benchmark.title} at {folder} ({error.strerror})") from error
        shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    record(archives, data_root)
    return Prepared(
        folder=folder, layout=layout, counts=counts, archives=tuple(archives), verified=tuple(verified), new=True
    )


def _stage(
    benchmark: FolderBenchmark, archives: Sequence[Archive], staging: Path, *, progress: TellProgress
) -> tuple[Path, dict[str, int], str]:
    """Unpack into ``staging`` and read; the benchmark's folder there, its images by split, its layout."""
    written: dict[Path, Path] = {}
    for archive in archives:
        try:
            unpacking.unpack(archive.path, staging, progress=progress, written=written)
        except DatasetError:
            if is_url(archive.source):
                discard_partial(archive.path)  # damaged or hostile: the next call starts over
            raise
    roots = benchmark.inside(staging)  # whatever the archive calls it
    if not roots:
        names = ", ".join(layout.name for layout in benchmark.layouts())
        raise DatasetError(f"the archive holds no {benchmark.title} in a layout that is known ({names})")
    if len(roots) > 1:
        names = " and ".join(str(path.relative_to(staging)) for path in roots)
        raise DatasetError(f"the archive holds {benchmark.title} more than once: {names}")
    located = roots[0]
    splits = benchmark.splits(located)
    for pairs in splits.parts.values():
        benchmark.read(pairs[0])
    counts = {name: len(pairs) for name, pairs in splits.parts.items()}
    receipt = {
        "benchmark": benchmark.name,
        "layout": splits.layout,
        "rule": splits.rule,
        "counts": counts,
        "archives": [{**asdict(archive), "path": archive.path.name} for archive in archives],
    }
    (located / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    return located, counts, splits.layout


def _already_there(
    benchmark: FolderBenchmark, folder: Path, archives: Sequence[Archive], verified: Sequence[str]
) -> Prepared:
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        before = {entry["sha256"] for entry in receipt["archives"]}
    except (OSError, ValueError, KeyError, TypeError):
        before = set()
    if before != {archive.sha256 for archive in archives}:
        raise DatasetError(
            f"{folder} is already there and was not prepared from these archives; move it away to prepare it anew"
        )
    return Prepared(
        folder=folder,
        layout=receipt["layout"],
        counts=receipt["counts"],
        archives=tuple(archives),
        verified=tuple(verified),
        new=False,
    )


def remove_leftovers(data_root: Path, name: str) -> None:
    """Remove hidden folders that dead calls of this host left; those of other hosts may be alive."""
    prefix = f".unpacking-{name}-{socket.gethostname()}-"
    for path in data_root.glob(f"{glob.escape(prefix)}*"):
        process = path.name.removeprefix(prefix)
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except ProcessLookupError:
        return False
    return True
