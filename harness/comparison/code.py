"""Which code made the numbers of a table: records hold fingerprints of the parts that can touch a number, without
comments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.archive.schema import Record

PARTS: tuple[tuple[str, Callable[[Record], str]], ...] = (
    ("numbers", lambda record: ""),
    ("numbers_method", lambda record: record.run.method),
    ("numbers_benchmark", lambda record: record.run.benchmark),
)
"""Fingerprint in `Record.environment`, and what the records share that must have the same: all, those of a method,
of a benchmark."""


def made_by_other_code(records: Sequence[Record]) -> set[str]:
    """Keys of records that other number-making code than that of the latest record made, or began. Older records
    that do not say are left out."""
    other = {record.key for record in records if record.environment.get("begun_by")}
    told = [record for record in records if record.environment.get("numbers")]
    for name, kind in PARTS:
        newest: dict[str, Record] = {}
        for record in told:
            latest = newest.get(kind(record), record)
            newest[kind(record)] = max(latest, record, key=lambda each: (each.finished, each.key))
        other |= {
            record.key for record in told if record.environment.get(name) != newest[kind(record)].environment.get(name)
        }
    return other


def begun_by(record: Record) -> str:
    """Words about a record that other number-making code, or another machine or torch, began; empty for any other."""
    codes, machines = (record.environment.get(name, "") for name in ("begun_by", "begun_on"))
    return (f", begun by other code ({codes})" if codes else "") + (f", begun on {machines}" if machines else "")
