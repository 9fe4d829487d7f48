"""The SQLite file behind the index of records: opened, checked, made anew."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

_WAIT_S = 5.0


def open_index(path: Path, *, tables: str) -> sqlite3.Connection | None:
    """The database with its ``tables``, made anew where it is damaged; None where it cannot be ours."""
    for _ in range(2):
        try:
            if not _is_ours(path):
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        except (sqlite3.Error, OSError):
            return None
        try:
            database.execute("PRAGMA trusted_schema = OFF")
            if _made_by(database) == _version():
                return database
            if _made_by(database) is None and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                with transaction(database):
                    for statement in filter(str.strip, tables.split(";")):
                        database.execute(statement)
                    database.execute("INSERT INTO made VALUES (?)", (_version(),))
                return database
        except sqlite3.OperationalError:  # busy
            database.close()
            return None
        except sqlite3.Error:
            pass
        database.close()
        remove_index(path)
    return None


def remove_index(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-journal")):
        with contextlib.suppress(OSError):
            name.unlink()


def _made_by(database: sqlite3.Connection) -> str | None:
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'made'").fetchone():
        return None
    row = database.execute("SELECT by FROM made").fetchone()
    return row[0] if row else ""


def _is_ours(path: Path) -> bool:
    """Not there yet, or a plain file that nobody else may write to."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


_READERS = ("archive", "dispatch")


@cache
def _version() -> str:
    """Of what reads records, and of what sweeps add here: another one may read them otherwise."""
    harness = Path(__file__).parents[1]
    content = b"".join(path.read_bytes() for path in sorted(harness.glob("*/*.py")) if path.parent.name in _READERS)
    return f"{hashlib.sha256(content).hexdigest()} {sys.version}"


@contextlib.contextmanager
def transaction(
    database: sqlite3.Connection, *, locking: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE"
) -> Iterator[None]:
    """One change of the whole, or none; DEFERRED where only temporary tables change, which others need not wait for."""
    database.execute(f"BEGIN {locking}")
    try:
        yield
    except BaseException:
        database.rollback()
        raise
    database.commit()
