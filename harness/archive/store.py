"""Records on disk: one JSON file per run with its sidecar files, each written to a temporary file and renamed.

``ROOT/records/<key>.json``; `harness.archive.files` describes the sidecar files. A record that exists is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from harness.archive.files import (
    SIDECARS,
    architecture_csv,
    digest,
    is_of_record,
    read_architecture,
    sealed,
    sidecar,
    sidecars_of,
)
from harness.archive.masks import MASKS_FILE
from harness.archive.parser import load_record, refuse_unread
from harness.archive.schema import SCHEMA_VERSION, Record, Run
from harness.system.errors import UsageError, writing_to
from harness.system.files import refuse_links, write_atomically
from harness.system.text import printable_line


def require_writable(folder: Path, *, named: str = "results folder", option: str = "--results") -> None:
    """Try to write into a folder, or where it would be made, before work depends on it; leaves nothing. Raises UsageError: that
    fails."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    with writing_to(f"{named} {folder}", then=f"; choose another with {option} DIR"):
        refuse_links(folder)
        tempfile.TemporaryFile(dir=there).close()


class RecordStore:
    """The records in a results folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "records"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def images_path(self, key: str) -> Path:
        return sidecar(self.path(key), "images.csv")

    def architecture_path(self, key: str) -> Path:
        return sidecar(self.path(key), "architecture.csv")

    def masks_path(self, key: str) -> Path:
        return self.folder / f"{key}.{MASKS_FILE}"

    def write(
        self, record: Record, images_csv: str = "", masks_png: bytes = b"", *, keep: Collection[str] | None = None
    ) -> Path:
        """Write the sidecar files, then the record. An unreadable file of its name is set aside with its sidecar files.

        A success deletes sidecar files that another record of this key left. A failure deletes nothing, since they may belong to a
        start that is about to succeed.

        Args:
            images_csv: scores by image (`harness.archive.files.images_csv`).
            masks_png: `harness.archive.masks.encoded_masks`.
            keep: endings of sidecar files that stay although they are not written; all of them where only a label changed.

        Raises:
            UsageError: the disk is full, the folder cannot be written, or the file there cannot be read for now. Older records stay
                as they are.
        """
        left = keep if keep is not None else () if record.code == "OK" else SIDECARS
        texts = (images_csv, architecture_csv(record.architecture))
        contents = (*(text.encode(errors="replace") for text in texts), masks_png)
        written = {name: data for name, data in zip(SIDECARS, contents, strict=True) if data}
        content = asdict(replace(record, message=printable_line(record.message), schema_version=SCHEMA_VERSION))
        content["beside"] = content.pop("sidecars") | {name: digest(data) for name, data in written.items()}
        del content["architecture"]
        path = self.path(record.key)
        try:
            self._set_aside_unreadable(path)
            for name, data in written.items():
                write_atomically(path.with_suffix(f".{name}"), data)
            write_atomically(path, sealed(content))
            for name in set(SIDECARS) - {*content["beside"], *left}:
                sidecar(path, name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write the record {path}: {error.strerror or error}; free space or repair the folder, then repeat"
                " the command (older records are intact, and the run continues from its checkpoint)"
            ) from error
        return path

    def read(self, key: str) -> Record | None:
        """The whole record with its α history; None without a file. Raises UsageError: the file is not a readable record."""
        record = self.summary(key)
        try:
            return None if record is None else self._whole(record)
        except ValueError as error:
            raise UsageError(f"the record {key} cannot be read whole: {error}; restore that file") from error

    def summary(self, key: str) -> Record | None:
        """As `read`, without the α history of the sidecar file."""
        read = self._read(key)
        if isinstance(read, str):
            raise UsageError(f"{self.path(key)} is not a readable record ({read}); move it away to rerun {key}")
        return read

    def find(self, key: str) -> Record | None:
        """As `summary`, but None where the file is not a readable record (`summaries` reports those). Raises Unread: the
        system did not let us read the file, so its content is not known."""
        read = self._read(key)
        return None if isinstance(read, str) else read

    def _read(self, key: str) -> Record | str | None:
        """The record, or why its file cannot be read as one; None without a file. Raises Unread, as `find`."""
        path = self.path(key)
        try:
            return load_record(path) if os.path.lexists(path) else None
        except ValueError as error:
            refuse_unread(path, error)
            return str(error)

    def __iter__(self) -> Iterator[Record]:
        """Whole records in the order of their keys; `summaries` reports unreadable files."""
        for path in self.files():
            with suppress(ValueError):
                yield self._whole(load_record(path))

    def summaries(self) -> tuple[list[Record], dict[Path, str]]:
        """Records without their histories, in the order of their keys; and unreadable files with the reason."""
        ended = self.ended()
        problems = {self.path(key): read for key, read in ended.items() if isinstance(read, str)}
        return [read for read in ended.values() if isinstance(read, Record)], problems

    def ended(self, keys: Collection[str] | None = None, *, surely: bool = False) -> dict[str, Record | str]:
        """Key -> record without its history, or why its file cannot be read as one; in the order of the keys, and only those in ``keys``.
        Raises Unread, as `find`, if ``surely``: otherwise a finished run could be started once more."""
        ended: dict[str, Record | str] = {}
        wanted = None if keys is None else set(keys)
        for path in self.files():
            if wanted is not None and path.stem not in wanted:
                continue
            try:
                ended[path.stem] = record = load_record(path)
            except ValueError as error:
                if surely:
                    refuse_unread(path, error)
                ended[path.stem] = str(error)
            else:
                record.history.clear()  # thousands of them would fill the memory
        return ended

    def files(self) -> list[Path]:
        """Paths of all files that may be records, by name."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]

    def _set_aside_unreadable(self, path: Path) -> None:
        """Rename an unreadable file and its sidecar files to end in ``.unreadable``, so that a new record overwrites nothing."""
        if isinstance(self._read(path.stem), str):
            for file in filter(os.path.lexists, [*sidecars_of(path).values(), path]):
                os.replace(file, f"{file}.unreadable")

    def architecture(self, record: Record) -> list[dict[str, list[float]]]:
        """The α history of a record, from its sidecar file where it is not in it; empty without one. Raises ValueError: the
        file does not hold one."""
        path, name = self.architecture_path(record.key), "architecture.csv"
        # A failed run has only what its record names.
        own = name in record.sidecars or (record.code == "OK" and is_of_record(name, record.sidecars))
        if record.architecture or not own or not os.path.lexists(path):
            return record.architecture
        return read_architecture(path, expected=record.sidecars.get(name, ""))

    def _whole(self, record: Record) -> Record:
        return replace(record, architecture=self.architecture(record))


def finished_run(results: Path, key: str) -> Run:
    """The finished run with ``key``. Raises UsageError: there is no such record, or the run failed."""
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
