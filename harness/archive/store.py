"""Records on disk: one JSON file a run, written to a temporary file and renamed, with CSV files beside it.

``ROOT/records/<key>.json``, ``<key>.images.csv`` (per-image scores: columns variant, split, stem, then one a metric)
and ``<key>.architecture.csv`` (α history: columns epoch, site, then one an operation). A record that is there is whole.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from harness.archive.cache import look
from harness.archive.files import (
    BESIDE,
    LARGEST_RECORD,
    LARGEST_TABLE,
    architecture_csv,
    digest,
    files_beside,
    is_of_record,
    read_architecture,
    seal_holds,
    sealed,
)
from harness.archive.masks import MASKS
from harness.archive.reading import load, refuse_unread
from harness.archive.schema import SCHEMA_VERSION, Record, Run
from harness.system.errors import UsageError
from harness.system.files import read_regular, write_atomically
from harness.system.text import printable_line


def require_writable(folder: Path, *, named: str = "results folder", option: str = "--results") -> None:
    """Try a file in a folder, or where it would be made, before work depends on it; leaves nothing. Raises UsageError: it
    cannot be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UsageError(
            f"{named} {folder} cannot be written ({error.strerror}); choose another with {option} DIR"
        ) from error


FEW = 64
"""Keys up to which records are looked up one by one: more are worth a listing of the folder."""


class RecordStore:
    """The records below a results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "records"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def images_path(self, key: str) -> Path:
        return self.folder / f"{key}.images.csv"

    def architecture_path(self, key: str) -> Path:
        return self.folder / f"{key}.architecture.csv"

    def masks_path(self, key: str) -> Path:
        return self.folder / f"{key}.{MASKS}"

    def write(self, record: Record, images_csv: str = "", masks_png: bytes = b"") -> Path:
        """What lies beside it first, the record last; a file under its name that is no record is set aside with its own.

        What another record left beside it goes once a success stands there. A failure deletes nothing: what it finds may
        be of a start that is about to succeed.

        Args:
            images_csv: per-image scores.
            masks_png: `harness.archive.masks.encoded_masks`.

        Raises:
            UsageError: the disk is full, the folder cannot be written, or the file there cannot be read for now; older
                records stay as they were.
        """
        return self._write(record, images_csv, masks_png, left=() if record.code == "OK" else BESIDE)

    def relabel(self, record: Record) -> Path:
        """Write a record anew whose run has another label; what lies beside it stays. Raises as `write`."""
        return self._write(record, left=BESIDE)

    def _write(self, record: Record, images_csv: str = "", masks_png: bytes = b"", *, left: Collection[str]) -> Path:
        """``left`` are the endings of files beside it that stay though the record does not name them."""
        texts = (images_csv, architecture_csv(record.architecture))
        contents = (*(text.encode(errors="replace") for text in texts), masks_png)
        beside = {name: data for name, data in zip(BESIDE, contents, strict=True) if data}
        content = asdict(
            replace(
                record,
                message=printable_line(record.message),
                architecture=[],
                beside={**record.beside, **{name: digest(data) for name, data in beside.items()}},
                schema_version=SCHEMA_VERSION,
            )
        )
        del content["architecture"]
        path = self.path(record.key)
        try:
            self._set_aside_unreadable(path)
            for name, data in beside.items():
                write_atomically(path.with_suffix(f".{name}"), data)
            write_atomically(path, sealed(content))
            for name in set(BESIDE) - {*content["beside"], *left}:
                path.with_suffix(f".{name}").unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write the record {path}: {error.strerror or error}; free space or mend the folder, then start"
                " the same command again (older records are whole, the run continues from its checkpoint)"
            ) from error
        return path

    def read(self, key: str) -> Record | None:
        """The whole record, α history included; None where there is none. Raises UsageError: the file is there but no readable
        record."""
        record = self.summary(key)
        try:
            return None if record is None else self._whole(record)
        except ValueError as error:
            raise UsageError(f"the record {key} cannot be read whole: {error}; bring that file back") from error

    def summary(self, key: str) -> Record | None:
        """As `read`, without the α history that lies beside."""
        read = self._read(key)
        if isinstance(read, str):
            raise UsageError(f"{self.path(key)} is not a readable record ({read}); move it away to run {key} again")
        return read

    def find(self, key: str) -> Record | None:
        """As `summary`, and None also where the file is no readable record: whoever reports that goes through `summaries` or
        `problem`. Raises Unread: nobody can tell what the file holds, as the system did not let us read it."""
        read = self._read(key)
        return None if isinstance(read, str) else read

    def problem(self, key: str) -> str:
        """Why the file of a record is none; empty where it is one, or where there is no file. Raises Unread: as of `find`."""
        read = self._read(key)
        return read if isinstance(read, str) else ""

    def _read(self, key: str) -> Record | str | None:
        """The record, or why its file is none; None where there is no file. Raises Unread: as of `find`."""
        path = self.path(key)
        try:
            return load(path) if os.path.lexists(path) else None
        except ValueError as error:
            refuse_unread(path, error)
            return str(error)

    def __iter__(self) -> Iterator[Record]:
        """Whole records in the order of their keys; unreadable files are left to `summaries`."""
        for path in self.files():
            try:
                yield self._whole(load(path))
            except ValueError:
                continue

    def summaries(self) -> tuple[list[Record], dict[Path, str]]:
        """Records without their histories, in the order of their keys, and the unreadable files with the reason."""
        seen = look(self.root)
        seen.save()
        return seen.summaries(), seen.problems

    def ended(self, keys: Collection[str] | None = None) -> dict[str, Record | str]:
        """Records without their histories by key, in the order of the keys, and why a file is none; with ``keys`` those that
        have a file."""
        if keys is not None and len(keys) < FEW:
            return {key: record for key in keys if (record := self._ended(key)) is not None}
        seen = look(self.root)
        seen.save()
        if keys is None:
            return dict(seen.records)
        return {key: seen.records[key] for key in keys if key in seen.records}

    def _ended(self, key: str) -> Record | str | None:
        try:
            return load(self.path(key)) if os.path.lexists(self.path(key)) else None
        except ValueError as error:
            return str(error)

    def surely_ended(self, keys: Collection[str]) -> dict[str, Record | str]:
        """As `ended`, for whoever starts runs again: a file that was no readable record is looked at once more. Raises Unread:
        as of `find`; its run may be finished."""
        ended = self.ended(keys)
        for key in [key for key, read in ended.items() if isinstance(read, str)]:
            if not self.problem(key):
                ended |= self.ended([key])
        return ended

    def files(self) -> list[Path]:
        """Everything that may be a record, in the order of the names."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]

    def _set_aside_unreadable(self, path: Path) -> None:
        """Keep it as ``<key>.json.unreadable`` (``.unreadable.2`` …) and what lies beside it under the same ending, so that
        a new record overwrites nothing."""
        if not self.problem(path.stem):
            return
        files = [*files_beside(path).values(), path]
        endings = itertools.chain([".unreadable"], (f".unreadable.{number}" for number in itertools.count(2)))
        free = next(end for end in endings if not any(os.path.lexists(f"{file}{end}") for file in files))
        for file in filter(os.path.lexists, files):
            os.replace(file, f"{file}{free}")

    def architecture(self, record: Record) -> list[dict[str, list[float]]]:
        """The α history of a record, from beside it where it is not in it; empty without one. Raises ValueError: the file
        beside it holds none."""
        path, name = self.architecture_path(record.key), "architecture.csv"
        # A failure has none but what it names.
        own = name in record.beside or (record.code == "OK" and is_of_record(name, record.beside))
        if record.architecture or not own or not os.path.lexists(path):
            return record.architecture
        return read_architecture(path, expected=record.beside.get(name, ""))

    def _whole(self, record: Record) -> Record:
        return replace(record, architecture=self.architecture(record))


def is_sealed(path: Path) -> bool:
    """Whether a record's file has a seal; older ones have none."""
    return seal_holds(read_regular(path, largest=LARGEST_RECORD)) is not None


def add_seal(path: Path) -> None:
    """Seal an older record with the files that lie beside it; its content stays. Raises UsageError: it cannot be written."""
    content = json.loads(read_regular(path, largest=LARGEST_RECORD))
    files = {name: file for name, file in files_beside(path).items() if file.is_file()}
    content["beside"] = {name: digest(read_regular(file, largest=LARGEST_TABLE)) for name, file in files.items()}
    try:
        write_atomically(path, sealed(content))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def finished_run(results: Path, key: str) -> Run:
    """The run with ``key``, which ended well. Raises UsageError: there is no such record, or the run failed."""
    record = RecordStore(results).summary(key)
    if record is None:
        raise UsageError(f"no record below {results} has the key {key}")
    require_finished(record)
    return record.run


def require_finished(record: Record) -> None:
    """Refuse the record of a run that failed."""
    if record.code != "OK":
        raise UsageError(
            f"run {record.key} ended with {record.code} ({record.message}); only finished runs have a trained model"
        )
