"""Which code made a record, and whether the difference to the latest can have touched a number.

A version is a snapshot or a commit: it moves with every comment. What can touch a number is in fingerprints of its own
(`Record.environment`: ``numbers``, ``numbers_method``, ``numbers_benchmark``, hashes of code without comments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.archive.schema import Record


def version_of(record: Record) -> str:
    """The code that made a record: its snapshot, or commit with the hash of uncommitted changes."""
    environment = record.environment
    commit, dirty = environment.get("commit", "")[:10], environment.get("dirty", "")[:6]
    return environment.get("snapshot", "")[:12] or (commit + (f"+{dirty}" if dirty else "")) or "unknown"


def begun_by(record: Record) -> str:
    """Words about a record that other number-making code began, empty for any other."""
    codes = record.environment.get("begun_by", "")
    return f", begun by other code ({codes})" if codes else ""


def stale_versions(records: Iterable[Record]) -> set[str]:
    """Every version but that of the record finished last."""
    known = list(records)
    return {version_of(record) for record in known} - {version_of(_latest(known))} if known else set()


@dataclass(frozen=True, kw_only=True)
class CodeDifferences:
    """What a table says of the code behind its records.

    Args:
        touched: keys of records whose number-making code is not that of the latest record.
        mixed: keys of records that other number-making code began than finished them.
        untold: versions, other than the latest, whose records do not say what code made their numbers.
    """

    touched: frozenset[str]
    mixed: frozenset[str]
    untold: tuple[str, ...]


def code_differences(records: Sequence[Record]) -> CodeDifferences:
    """Compare the shared code with the latest record's, a method's with the latest of that method, a benchmark's likewise."""
    told = [record for record in records if record.environment.get("numbers")]
    touched: set[str] = set()
    parts: tuple[tuple[str, Callable[[Record], str]], ...] = (
        ("numbers", lambda record: ""),
        ("numbers_method", lambda record: record.run.method),
        ("numbers_benchmark", lambda record: record.run.benchmark),
    )
    for name, kind in parts:
        for value in {kind(record) for record in told}:
            alike = [record for record in told if kind(record) == value]
            newest = _latest(alike).environment.get(name)
            touched |= {record.key for record in alike if record.environment.get(name) != newest}
    untold = {version_of(record) for record in records if not record.environment.get("numbers")}
    newest_version = {version_of(_latest(records))} if records else set()
    mixed = frozenset(record.key for record in records if record.environment.get("begun_by"))
    return CodeDifferences(touched=frozenset(touched), mixed=mixed, untold=tuple(sorted(untold - newest_version)))


def _latest(records: Sequence[Record]) -> Record:
    return max(records, key=lambda record: (record.finished, record.key))
