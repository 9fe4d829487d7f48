"""The rules behind a hash that a table shows, from the records that were made under it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.archive.schema import ADDED_LATER, QUIRKS_ADDED_LATER
from harness.archive.store import RecordStore
from harness.system.errors import UsageError
from harness.system.streams import say_skipped

SHORTEST = 4
"""Digits of a hash that are looked for."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Rules as records hold them.

    Args:
        card: name of the card that they started from.
        digest: the whole hash.
        records: how many were made under it.
        rules: of each benchmark.
    """

    card: str
    digest: str
    records: int
    rules: Mapping[str, Mapping[str, Any]]


TABLES = ("methods", "benchmarks")


def is_hash(text: str) -> bool:
    return re.fullmatch(rf"[0-9a-f]{{{SHORTEST},16}}", text) is not None


def recorded(digest: str, root: Path) -> Recorded:
    """The rules whose hash begins with ``digest``, from the records below ``root``.

    Raises:
        UsageError: no record was made under it, or several hashes begin so.
    """
    records, skipped = RecordStore(root).summaries()
    say_skipped(skipped)
    hashes = sorted({one.run.protocol_hash for one in records if one.run.protocol_hash.startswith(digest)})
    if not hashes:
        raise UsageError(
            f"no card and no record below {root} has the hash {digest!r}; give the folder of its records with --results DIR"
        )
    if len(hashes) > 1:
        raise UsageError(f"{digest!r} is the beginning of {', '.join(hashes)}; give more of it")
    runs = [one.run for one in records if one.run.protocol_hash == hashes[0]]
    rules = {run.benchmark: _filled(run.rules) for run in sorted(runs, key=lambda run: run.benchmark)}
    return Recorded(card=runs[0].protocol, digest=hashes[0], records=len(runs), rules=rules)


def _filled(rules: Mapping[str, Any]) -> dict[str, Any]:
    """With the fields that are younger than a record, at the value that it was made with; without the tables that a card
    has for methods and benchmarks: a run's options are in its configuration, its benchmark's rules are applied."""
    filled = {**ADDED_LATER, **rules, "quirks": {**QUIRKS_ADDED_LATER, **rules.get("quirks", {})}}
    return {name: filled[name] for name in sorted(filled) if name not in TABLES}
