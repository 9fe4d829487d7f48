"""Texts of pages that nothing touched: kept in the index of the records, by all that a page is made of.

A page is made of records, of what lies beside them, of this code with the cards, studies, claims and published numbers that
come with it, and of the folder's notes on checkpoints. What is kept under another mixture of these is not looked at, and
without an index nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.archive.checkpoints import FILE
from harness.archive.index import RecordIndex, from_index, stamp_of, write_to_index
from harness.archive.index_file import transaction

_TABLES = (
    "CREATE TABLE IF NOT EXISTS page(name TEXT, form TEXT, made_of TEXT, text TEXT, PRIMARY KEY(name, form))",
    "CREATE TABLE IF NOT EXISTS looked(at INTEGER PRIMARY KEY, seen TEXT, digests TEXT)",  # of one row
)
_ROWS = """SELECT protocol, file.key, file.stamp, beside.stamp FROM file LEFT JOIN beside USING(key)
WHERE problem = '' ORDER BY protocol, file.key, beside.stamp"""
_HERE = Path(__file__).parents[2]
_CODE = ("harness", "methods", "datasets", "results/paper")


@dataclass(frozen=True, kw_only=True)
class KeptTexts:
    """What an index knows of the pages of a results folder.

    Args:
        root: the results folder.
        made_of: protocol -> digest of its records and of all else that a page looks at.
        problems: files that are no readable record, with the reason.
        texts: (page, form) -> what it was made of, and its text.
    """

    root: Path
    made_of: Mapping[str, str]
    problems: Mapping[Path, str]
    texts: Mapping[tuple[str, str], tuple[str, str]]
    new: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def get(self, name: str, form: str, made_of: str) -> str | None:
        """The text of a page, None where it is to be made."""
        then, text = self.texts.get((name, form), ("", ""))
        return text if then == made_of else None

    def put(self, name: str, form: str, made_of: str, text: str) -> None:
        """Remember it until `keep`."""
        self.new[name, form] = (made_of, text)

    def keep(self) -> None:
        """Write down what is new; where that cannot be done the page is made again next time."""
        if not self.new:
            return
        rows = [(name, form, made_of, text) for (name, form), (made_of, text) in self.new.items()]
        write_to_index(self.root, "INSERT OR REPLACE INTO page VALUES (?, ?, ?, ?)", rows)


def kept_texts(root: Path) -> KeptTexts | None:
    """None where the folder has no index, and its pages are made anew."""
    beside = _Beside()
    return from_index(root, lambda index: _told(root, index, beside.digest), others=beside.see)


class _Beside:
    """The scores of images that lie beside records: a digest, whatever the order of the listing."""

    def __init__(self) -> None:
        self.digest = 0

    def see(self, entry: os.DirEntry[str], now: int) -> None:
        name = entry.name
        if name.endswith(".csv"):
            self.digest += hash((zlib.crc32(name.encode()), stamp_of(entry, now)))


def _told(root: Path, index: RecordIndex, beside: int) -> KeptTexts:
    database = index.database
    for statement in _TABLES:
        database.execute(statement)
    notes = root / FILE
    around = _around() + (notes.read_bytes() if notes.is_file() else b"")
    seen = f"{index.version} {beside} {hashlib.blake2b(around).hexdigest()}"
    known = database.execute("SELECT digests FROM looked WHERE seen = ?", (seen,)).fetchone()
    digests = json.loads(known[0]) if known else _digests(index, around)
    if not known:
        write_to_index(root, "INSERT OR REPLACE INTO looked VALUES (0, ?, ?)", [(seen, json.dumps(digests))])
    texts = {(name, form): (of, text) for name, form, of, text in database.execute("SELECT * FROM page")}
    return KeptTexts(root=root, made_of=digests, problems=index.problems(), texts=texts)


def _digests(index: RecordIndex, around: bytes) -> dict[str, str]:
    """Protocol -> digest of its records, of what lies beside each, and of ``around``."""
    database = index.database
    database.execute("CREATE TEMP TABLE beside(key TEXT, stamp INTEGER)")
    now = time.time_ns()
    with transaction(database, locking="DEFERRED"), os.scandir(index.folder) as found:
        database.executemany(
            "INSERT INTO beside VALUES (?, ?)",
            (
                (entry.name[:16], stamp_of(entry, now) ^ zlib.crc32(entry.name[16:].encode()))
                for entry in found
                if entry.name.endswith(".csv")
            ),
        )
    database.execute("CREATE INDEX temp.beside_key ON beside(key)")
    made_of: dict[str, Any] = {}
    for protocol, *values in database.execute(_ROWS):
        digest = made_of.get(protocol) or made_of.setdefault(protocol, hashlib.blake2b(around, digest_size=16))
        digest.update(repr(values).encode())
    return {protocol: digest.hexdigest() for protocol, digest in made_of.items()}


@cache
def _around() -> bytes:
    """Of this code, and of all that comes with it."""
    digest = hashlib.blake2b(sys.version.encode())
    files = [path for folder in _CODE for path in sorted((_HERE / folder).rglob("*")) if path.suffix != ".pyc"]
    for path in (*files, _HERE / "results" / "claims.yaml"):
        if path.is_file():
            digest.update(str(path).encode() + path.read_bytes())
    return digest.digest()
