"""Whether a run needs no further start, since a record says that it finished, or failed in a way that is not tried again."""

from __future__ import annotations

from pathlib import Path

from harness.archive.schema import Record, content_hash
from harness.archive.store import RecordStore


def settled(results: Path, key: str, *, replaces: str) -> Record | None:
    """The record that makes another start needless: a success, or a failure other than the one to be replaced.

    Raises:
        UsageError: there is a file that cannot be read for now, and it may be that record.
    """
    record = RecordStore(results).find(key)
    return record if record is not None and settles(record, replaces=replaces) else None


def settles(record: Record, *, replaces: str) -> bool:
    return record.code == "OK" or ending_fingerprint(record) != replaces


def ending_fingerprint(record: Record) -> str:
    """Tells the records of two endings of one run apart, without comparing clocks of two machines."""
    return content_hash([record.code, record.attempts, record.finished])


def fingerprint_at(results: Path, key: str) -> str:
    """`ending_fingerprint` of the record there is, empty without one.

    Raises:
        UsageError: as `settled`.
    """
    record = RecordStore(results).find(key)
    return ending_fingerprint(record) if record is not None else ""
