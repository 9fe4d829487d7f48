"""An index beside the records, so that a file that nothing touched is not read again: ``ROOT/cache/records-<user>.sqlite``.

It is never the truth. What it says of a file counts while that file has the inode, size and times that it had when it was
read, long enough after its last change; everything else is read anew, with every check of `harness.archive.reading`. An
index that another version of this code made, that does not open, or that somebody else may have written is made anew or
left alone, and deleting it loses nothing but time. ``SAM_PEFT_INDEX=off`` reads every record instead.

Looking costs one listing of the folder and the times of its files, in memory that does not grow with the archive.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from harness.archive.index_file import open_index, remove_index, transaction
from harness.archive.reading import load
from harness.archive.schema import Record, Run

T = TypeVar("T")

SWITCH = "SAM_PEFT_INDEX"
SMALLEST = 500
"""Records from which on a folder has an index: fewer are read in a tenth of a second."""

_SETTLED_NS = 2_000_000_000
"""A file that changed a moment ago may change again within one tick of its clock: it is read again next time."""
_BATCH = 1000

_BESIDE_TRAINING = ("start", "loading", "testing", "merging", "other")
_NAMES = ("method", "variant", "benchmark", "backbone", "protocol", "seed", "data_fingerprint")
_ENDING = ("code", "message", "attempts", "finished")
_TABLES = f"""
CREATE TABLE made(by TEXT);
CREATE TABLE file(key TEXT PRIMARY KEY, stamp INTEGER, problem TEXT, seconds REAL, whole INTEGER,
                  {", ".join(_NAMES)}, {", ".join(_ENDING)}) WITHOUT ROWID;
CREATE TABLE summary(key TEXT PRIMARY KEY, rules INTEGER, content TEXT);
CREATE TABLE shared(id INTEGER PRIMARY KEY, content TEXT UNIQUE);
"""
_SEEN = "CREATE TEMP TABLE seen(key TEXT PRIMARY KEY, stamp INTEGER) WITHOUT ROWID"
_TOUCHED = """CREATE TEMP TABLE touched AS
SELECT seen.key, seen.stamp FROM seen LEFT JOIN file USING(key) WHERE file.stamp IS NOT seen.stamp"""
_GONE = "SELECT key FROM file WHERE key NOT IN (SELECT key FROM seen)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What a record says of its run besides the numbers, and why its file is none (``problem``).

    Args:
        seconds: of the whole run where the record tells, else of its training.
        whole: whether they are of the whole run.
    """

    key: str
    problem: str = ""
    seconds: float = 0.0
    whole: bool = False
    method: str = ""
    variant: str = ""
    benchmark: str = ""
    backbone: str = ""
    protocol: str = ""
    seed: int = 0
    data_fingerprint: str = ""
    code: str = ""
    message: str = ""
    attempts: int = 0
    finished: str = ""

    @classmethod
    def of(cls, record: Record) -> Ending:
        run = {name: getattr(record.run, name) for name in _NAMES}
        own = {name: getattr(record, name) for name in _ENDING}
        seconds, whole = seconds_of(record.cost)
        return cls(key=record.key, seconds=seconds, whole=whole, **run, **own)


def seconds_of(cost: Mapping[str, float]) -> tuple[float, bool]:
    """How long a run took, and whether that is all of it: older records have the seconds of training alone.

    Training and validation are of all starts of a run, the other stages of the last.
    """
    trained = cost.get("wall_time_s", 0.0)
    others = [cost[f"stage_{name}_s"] for name in _BESIDE_TRAINING if f"stage_{name}_s" in cost]
    return (trained + math.fsum(others), True) if others else (trained, False)


_COLUMNS = tuple(field.name for field in fields(Ending))
_FILE = ("stamp", *_COLUMNS)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Records hold no cycles, and the collector would walk all of them again and again: a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class RecordIndex:
    """What the records of a folder say; made by `looked_up`.

    Args:
        folder: of the records.
        database: open, and up to date.
    """

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder = folder
        self.database = database
        self._numbers: dict[str, int] = {}

    def summaries(self) -> Iterator[Record]:
        """As `harness.archive.store.RecordStore.summaries`, in the order of the keys; equal rules are one object."""
        rules = {number: json.loads(text) for number, text in self.database.execute("SELECT id, content FROM shared")}
        for number, text in self.database.execute("SELECT rules, content FROM summary ORDER BY key"):
            content = json.loads(text)
            yield Record(**{**content, "run": Run(**content["run"], rules=rules[number])})

    def endings(self, keys: Collection[str] | None = None) -> Iterator[Ending]:
        """Of all files in the order of their keys, or of those with these keys."""
        columns = f"SELECT {', '.join(_COLUMNS)} FROM file"
        rows: Iterable[tuple[Any, ...]]
        if keys is None:
            rows = self.database.execute(f"{columns} ORDER BY key")
        else:
            rows = (row for key in keys for row in self.database.execute(f"{columns} WHERE key = ?", (key,)))
        for row in rows:
            values = dict(zip(_COLUMNS, row, strict=True))
            yield Ending(**{**values, "whole": bool(values["whole"])})

    def problems(self) -> dict[Path, str]:
        """Files that are no readable record, with the reason."""
        rows = self.database.execute("SELECT key, problem FROM file WHERE problem != '' ORDER BY key")
        return {self.folder / f"{key}.json": problem for key, problem in rows}

    @property
    def version(self) -> int:
        """Another one after every look that found something changed."""
        number: int = self.database.execute("PRAGMA user_version").fetchone()[0]
        return number

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One change of the whole, or none."""
        with transaction(self.database):
            yield self.database

    def refresh(self, entries: Iterable[tuple[str, int]]) -> None:
        """Read what changed.

        Args:
            entries: key and stamp of every file of the folder; see `_listing`.
        """
        self.database.execute(_SEEN)
        with transaction(self.database, locking="DEFERRED"):  # else each row is a change of its own
            self.database.executemany("INSERT INTO seen VALUES (?, ?)", entries)
        self.database.execute(_TOUCHED)
        last = 0
        statement = f"INSERT OR REPLACE INTO file({', '.join(_FILE)}) VALUES ({', '.join('?' * len(_FILE))})"
        while rows := self.database.execute(
            "SELECT rowid, key, stamp FROM touched WHERE rowid > ? ORDER BY rowid LIMIT ?", (last, _BATCH)
        ).fetchall():
            with transaction(self.database), collector_paused():
                files, summaries = zip(*(self._read(key, stamp) for _, key, stamp in rows), strict=True)
                self.database.executemany("DELETE FROM summary WHERE key = ?", ((key,) for _, key, _ in rows))
                self.database.executemany("INSERT INTO summary VALUES (?, ?, ?)", filter(None, summaries))
                self.database.executemany(statement, files)
                self._count_up()
            last = rows[-1][0]
        if self.database.execute(f"SELECT EXISTS({_GONE})").fetchone()[0]:
            with transaction(self.database):
                for table in ("summary", "file"):
                    self.database.execute(f"DELETE FROM {table} WHERE key IN ({_GONE})")
                self._count_up()

    def _count_up(self) -> None:
        self.database.execute(f"PRAGMA user_version = {(self.version + 1) % 2**31}")

    def _read(self, key: str, stamp: int) -> tuple[tuple[Any, ...], tuple[str, int, str] | None]:
        """The rows of a file in ``file`` and, where it is a record, in ``summary``."""
        summary = None
        try:
            record = load(self.folder / f"{key}.json")
        except ValueError as error:
            ending = Ending(key=key, problem=str(error))
            if isinstance(error.__cause__, OSError):  # which may pass without a trace on the file
                stamp = time.time_ns()
        else:
            ending = Ending.of(record)
            summary = (key, self._shared(record.run.rules), _summary(record))
        return (stamp, *(getattr(ending, name) for name in _COLUMNS)), summary

    def _shared(self, content: Any) -> int:
        text = json.dumps(content)
        if text not in self._numbers:
            self.database.execute("INSERT OR IGNORE INTO shared(content) VALUES (?)", (text,))
            found = self.database.execute("SELECT id FROM shared WHERE content = ?", (text,)).fetchone()
            if len(self._numbers) >= _BATCH:  # in memory that does not grow with the archive
                self._numbers.clear()
            self._numbers[text] = found[0]
        return self._numbers[text]


def from_index(
    root: Path, tell: Callable[[RecordIndex], T], *, others: Callable[[os.DirEntry[str], int], None] | None = None
) -> T | None:
    """What ``tell`` makes of the index of a results folder, brought up to date; None where the records are to be read
    instead.

    Args:
        others: is shown every file that is no record, and the time (nanoseconds), in the one listing of the folder.
    """
    folder, path = root / "records", _path(root)
    if os.environ.get(SWITCH) == "off":
        return None
    entries = _listing(folder, others)
    first = list(itertools.islice(entries, SMALLEST))
    database = open_index(path, tables=_TABLES) if len(first) == SMALLEST else None
    if database is None:
        return None
    with contextlib.closing(database):
        try:
            index = RecordIndex(folder, database)
            index.refresh(itertools.chain(first, entries))
            return tell(index)
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            # Busy, full or damaged, or names that it cannot hold: what it would have told lies in the files.
            if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                remove_index(path)
            return None


def write_to_index(root: Path, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Add to a table that somebody made while `from_index` told; nothing where the index is busy or gone."""
    path = _path(root)
    if not path.exists() or (database := open_index(path, tables=_TABLES)) is None:
        return
    with contextlib.closing(database), contextlib.suppress(sqlite3.Error, OSError), transaction(database):
        database.executemany(statement, rows)


def _path(root: Path) -> Path:
    return root / "cache" / f"records-{os.getuid()}.sqlite"


def _listing(folder: Path, others: Callable[[os.DirEntry[str], int], None] | None = None) -> Iterator[tuple[str, int]]:
    """Key and stamp of every file that may be a record; the stamp is new every time where a file just changed."""
    now = time.time_ns()
    try:
        found = os.scandir(folder)
    except OSError:
        return
    with found:
        for entry in found:
            name = entry.name
            if name.endswith(".json") and not name.startswith("."):
                yield name[:-5], stamp_of(entry, now)
            elif others is not None:
                others(entry, now)


def stamp_of(entry: os.DirEntry[str], now: int) -> int:
    """Of a file as it is now; ``now`` (nanoseconds) where it just changed or cannot be looked at."""
    try:
        status = entry.stat()
    except OSError:
        return now
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    same = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hash(same) if changed < now - _SETTLED_NS else now


def _summary(record: Record) -> str:
    """Without histories, and without the rules, which many records share."""
    content = {field.name: getattr(record, field.name) for field in fields(Record)}
    run = {field.name: getattr(record.run, field.name) for field in fields(Run) if field.name != "rules"}
    return json.dumps({**content, "history": [], "architecture": [], "run": run})
