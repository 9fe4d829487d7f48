"""A run by its key, or by the beginning of it."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.records.schema import Run
from harness.records.store import RecordStore


def find_run(results: Path, key: str) -> Run:
    """The run with ``key``, or the only one whose key begins so.

    Raises:
        UsageError: none, several, or a run that failed.
    """
    store = RecordStore(results)
    records = {path.stem: path for path in sorted(store.folder.glob("*.json")) if path.stem.startswith(key)}
    if key not in records and len(records) != 1:
        known = f"{len(records)} runs begin so" if records else f"no record in {store.folder} begins so"
        raise UsageError(f"--run {key}: {known}; give a key as python -m harness.status lists it")
    record = store.read(key if key in records else next(iter(records)))
    assert record is not None
    if record.code != "OK":
        raise UsageError(
            f"run {record.key} ended with {record.code} ({record.message}); only finished runs have a trained model"
        )
    return record.run
