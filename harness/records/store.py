"""Records on disk: one JSON file a run, written to a temporary file and renamed; per-image scores as CSV beside it.

``ROOT/records/<key>.json`` and ``ROOT/records/<key>.images.csv`` (columns variant, split, stem, then one a metric).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.records.schema import SCHEMA_VERSION, Record, Run


def write_atomically(path: Path, text: str) -> None:
    """Write beside ``path`` and rename, so that a reader or a crash never sees half a file; fsynced before the rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def record_from_json(data: dict[str, Any]) -> Record:
    """Raises ValueError where ``data`` is not a record of a schema this code reads."""
    version = data.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"schema_version {version!r}; this code reads 1 to {SCHEMA_VERSION}")
    known = {f.name for f in fields(Record)}
    content = {name: value for name, value in data.items() if name in known}
    run = Run(**content.pop("run"))
    return Record(run=run, **content)


class RecordStore:
    """The records below a results folder.

    Args:
        root: the results folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "records"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def images_path(self, key: str) -> Path:
        return self.folder / f"{key}.images.csv"

    def write(self, record: Record, images_csv: str = "") -> Path:
        """Per-image scores first, the record last: a record that is there is whole."""
        if images_csv:
            write_atomically(self.images_path(record.key), images_csv)
        path = self.path(record.key)
        write_atomically(path, json.dumps(asdict(record), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return path

    def read(self, key: str) -> Record | None:
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            return record_from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{path} is not a readable record ({error}); move it away to run {key} again") from error

    def __iter__(self) -> Iterator[Record]:
        """Whole records in the order of their keys; unreadable files are left to `problems`."""
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield record_from_json(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError):
                continue

    def problems(self) -> dict[Path, str]:
        """Files in the folder that are no readable record, with the reason."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                record_from_json(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, KeyError) as error:
                found[path] = f"{type(error).__name__}: {error}"
        return found
