"""``prepare``: archives to a benchmark's folder, whole or not at all.

Everything is unpacked and read in a hidden folder beside the target, which one rename puts in place. A call that
was killed leaves the hidden folder; the next one removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.datasets.base import DatasetError
from harness.datasets.preparing import downloading, unpacking
from harness.datasets.preparing.downloading import Archive
from harness.datasets.preparing.progress import TellProgress
from harness.datasets.preparing.unpacking import ArchiveLimits
from harness.datasets.reading.folder_benchmark import FolderBenchmark

RECEIPT = ".prepared.json"
"""In the benchmark's folder: where it came from, with size and hash."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` did.

    Args:
        folder: the benchmark's folder.
        layout: the layout it has.
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
    limits: ArchiveLimits | None = None,
) -> Prepared:
    """Obtain, verify, unpack, read and put in place.

    Args:
        benchmark: what the archives hold together.
        sources: URLs or paths.
        data_root: where the benchmark's folder goes.
        progress: told of every step.
        sha256: known hashes, one a source, or none.
        sizes: known sizes in bytes, one a source, or none.
        limits: of unpacking.

    Raises:
        DatasetError: anything is missing, wrong, hostile or already there. No folder that looks whole is left.
    """
    for what, known in (("--sha256", sha256), ("--size", sizes)):
        if known and len(known) != len(sources):
            raise DatasetError(f"{what} is given {len(known)} times for {len(sources)} archives; give one for each")
    archives = [downloading.obtain(source, data_root, progress=progress) for source in sources]
    verified = [
        downloading.verify_archive(
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
        counts, layout = _stage(benchmark, archives, staging, progress=progress, limits=limits)
        _publish(benchmark, staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    downloading.record(archives, data_root)
    return Prepared(
        folder=folder, layout=layout, counts=counts, archives=tuple(archives), verified=tuple(verified), new=True
    )


def _stage(
    benchmark: FolderBenchmark,
    archives: Sequence[Archive],
    staging: Path,
    *,
    progress: TellProgress,
    limits: ArchiveLimits | None,
) -> tuple[dict[str, int], str]:
    for archive in archives:
        try:
            unpacking.unpack(archive.path, staging, progress=progress, limits=limits)
        except DatasetError:
            if downloading.is_url(archive.source):
                downloading.discard_partial(archive.path)  # damaged or hostile: the next call starts over
            raise
    located = _only(benchmark, staging)
    splits = benchmark.splits(located)
    parts = {"train": splits.train, "val": splits.val, **splits.test}
    for pairs in parts.values():
        benchmark.read(pairs[0])
    counts = {name: len(pairs) for name, pairs in parts.items()}
    receipt = {
        "benchmark": benchmark.name,
        "layout": splits.layout,
        "rule": splits.rule,
        "counts": counts,
        "archives": [downloading.as_plain(archive) for archive in archives],
    }
    (located / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    return counts, splits.layout


def _only(benchmark: FolderBenchmark, staging: Path) -> Path:
    """The benchmark's folder among what was unpacked, whatever the archive calls it."""
    found = benchmark.inside(staging)
    if not found:
        names = ", ".join(layout.name for layout in benchmark.layouts())
        raise DatasetError(f"the archive holds no {benchmark.title} in a layout that is known ({names})")
    if len(found) > 1:
        names = " and ".join(str(path.relative_to(staging)) for path in found)
        raise DatasetError(f"the archive holds {benchmark.title} more than once: {names}")
    return found[0]


def _publish(benchmark: FolderBenchmark, staging: Path, folder: Path) -> None:
    located = _only(benchmark, staging)
    try:
        os.rename(located, folder)
    except OSError as error:
        raise DatasetError(f"cannot put {benchmark.title} at {folder} ({error.strerror})") from error
    shutil.rmtree(staging, ignore_errors=True)


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
    for path in data_root.glob(f"{downloading.glob_escape(prefix)}*"):
        process = path.name.removeprefix(prefix)
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
