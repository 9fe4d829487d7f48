"""Read all records of a results folder at once; in a large folder, a file that did not change since is not read again.

What was read is kept in a file of the user's own: ``sam-peft-harness/archives`` below ``~/.cache``, a folder that only its
owner may enter, since a results folder is often one to which others write. It is never the truth. What it says of a record counts
while the record's file has the inode, size and times that it had when it was read, long enough after its last change; everything
else is read with every check of `harness.archive.reading`. A cache that another version of this code made, or that is
damaged, is made anew, and deleting it loses nothing but time. ``SAM_PEFT_RECORD_CACHE=off`` reads every record instead.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from harness.archive.checkpoints import FILE, read_notes
from harness.archive.reading import load
from harness.archive.schema import Record, Run
from harness.system.user_cache import user_cache

SWITCH = "SAM_PEFT_RECORD_CACHE"
SMALLEST = 500
"""Records from which on a folder has a cache: fewer are read in a tenth of a second."""

_SETTLED_NS = 2_000_000_000
"""A file that changed a moment ago may change again within one tick of its clock: it is read again next time."""
_OF_RUN, _OF_RECORD = (tuple(field.name for field in fields(kind)) for kind in (Run, Record))
_FORGOTTEN_S = 90 * 86400
"""A cache that nobody wrote for so long is deleted when another is written."""

Kept = dict[str, tuple[int, "Record | str"]]
"""key -> stamp of the file, and its record without histories or why it is none."""


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


@dataclass(kw_only=True)
class Look:
    """What lies in the folder of records, as it was at one moment.

    Args:
        records: by key, in its order: without histories, or why the file is no record. Equal rules are one object.
        stamps: name of a file -> its inode, size and times as one number, of records and of the tables beside them.
        pages: a page's name and form -> what it was made of, and its text.
        has_cache: whether the folder is large enough for one, and nobody asked to read it plainly.
        changed: whether the cache says something else.
    """

    root: Path
    records: Mapping[str, Record | str]
    stamps: Mapping[str, int]
    has_cache: bool
    pages: dict[str, tuple[str, str]] = field(default_factory=dict)
    changed: bool = False

    @property
    def problems(self) -> dict[Path, str]:
        """Files that are no readable record, with the reason; and the notes on checkpoints where they are damaged."""
        folder = self.root / "records"
        reasons = {folder / f"{key}.json": reason for key, reason in self.records.items() if isinstance(reason, str)}
        return reasons | ({self.root / FILE: self._notes} if isinstance(self._notes, str) else {})

    @cached_property
    def _notes(self) -> dict[str, str] | str:
        try:
            return read_notes(self.root)
        except ValueError as error:
            return f"{error}; records keep the short fingerprints of their checkpoints until it is mended"

    def summaries(self) -> list[Record]:
        """The records. So that tables put runs of one checkpoint together, ``run.checkpoint`` is the hash of the whole file also
        where a record has a short one that is noted (`harness.archive.checkpoints`); ``key`` stays the record's."""
        whole = self._notes if isinstance(self._notes, dict) else {}
        records = [record for record in self.records.values() if isinstance(record, Record)]
        with collector_paused():
            for place, record in enumerate(records):
                if record.run.checkpoint in whole:
                    records[place] = replace(record, run=replace(record.run, checkpoint=whole[record.run.checkpoint]))
        return records

    def made_of(self, around: bytes) -> dict[str, str]:
        """Protocol -> digest of its records, of the tables beside each, of the notes on checkpoints and of ``around``."""
        around += repr(self._notes).encode()
        beside: dict[str, list[tuple[str, int]]] = {}
        for name in sorted(name for name in self.stamps if name.endswith(".csv")):
            beside.setdefault(name.partition(".")[0], []).append((name, self.stamps[name]))
        digests: dict[str, Any] = {}
        for key, record in self.records.items():
            if isinstance(record, Record):
                protocol = record.run.protocol
                digest = digests.get(protocol) or digests.setdefault(protocol, hashlib.blake2b(around, digest_size=16))
                digest.update(repr((key, self.stamps[f"{key}.json"], beside.get(key))).encode())
        return {protocol: digests[protocol].hexdigest() for protocol in sorted(digests)}

    def keep_page(self, name: str, made_of: str, text: str) -> None:
        """Remember a page's text until `save`."""
        self.pages[name] = (made_of, text)
        self.changed = True

    def save(self) -> None:
        """Write what is new into the cache; where that cannot be done it is read or made again next time."""
        if not (self.changed and self.has_cache):
            return
        with contextlib.suppress(OSError), _private_folder() as folder, collector_paused():
            _write(folder, _name(self.root), self)
            self.changed = False


def look(root: Path) -> Look:
    """Look at the records below a results folder: one listing, and the files that changed.

    The cache is left as it is until `Look.save`.
    """
    stamps = _stamps(root / "records", time.time_ns())
    names = sorted(name for name in stamps if name.endswith(".json"))
    records: dict[str, Record | str] = {}
    has_cache = len(names) >= SMALLEST and os.environ.get(SWITCH) != "off"
    seen = Look(root=root, records=records, stamps=stamps, has_cache=has_cache)
    kept: Kept = {}
    with collector_paused():
        if seen.has_cache:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError), _private_folder() as folder:
                kept, seen.pages = _read(folder, _name(root))
        for name in names:
            key = name[:-5]
            stamp, records[key] = kept.get(key, (0, ""))
            if stamp != stamps[name]:
                seen.changed = True
                try:
                    records[key] = _summary(root / "records" / name)
                except ValueError as error:
                    records[key] = str(error)
                    if isinstance(error.__cause__, OSError):  # which may pass without a trace on the file
                        stamps[name] = time.time_ns()
    seen.changed |= kept.keys() != records.keys()
    return seen


def _stamps(folder: Path, now: int) -> dict[str, int]:
    """Of everything in the folder that may be a record or lie beside one; new every time where a file just changed."""
    stamps: dict[str, int] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".json", ".csv")) and not entry.name.startswith("."):
                stamps[entry.name] = _stamp(entry, now)
    return stamps


def _stamp(entry: os.DirEntry[str], now: int) -> int:
    try:
        status = entry.stat()
    except OSError:
        return now
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    same = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hash(same) if changed < now - _SETTLED_NS else now


def _summary(path: Path) -> Record:
    """Raises as `load`."""
    record = load(path)
    record.history.clear()
    record.architecture.clear()
    return record


@contextlib.contextmanager
def _private_folder() -> Iterator[int]:
    """A descriptor of the folder of caches. Raises OSError: there is no home for it, or others may enter it."""
    if (base := user_cache()) is None:
        raise OSError("no home")
    (base / "archives").mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(base / "archives", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise OSError("not the user's own alone")
        yield folder
    finally:
        os.close(folder)


def _name(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32] + ".json"


def _read(folder: int, name: str) -> tuple[Kept, dict[str, tuple[str, str]]]:
    """Raises OSError, ValueError, TypeError, KeyError or IndexError where there is no cache of this version."""
    from pydantic_core import from_json

    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
        content = from_json(file.read(), cache_strings="all")
    if content["version"] != _version():
        raise ValueError("another version's")
    rules = content["rules"]
    return (
        {key: (stamp, _record(told, rules)) for key, (stamp, told) in content["records"].items()},
        {page: (made_of, text) for page, (made_of, text) in content["pages"].items()},
    )


def _record(told: dict[str, Any] | str, rules: list[dict[str, Any]]) -> Record | str:
    if isinstance(told, str):
        return told
    run = told["run"]
    return Record(**{**told, "run": Run(**{**run, "rules": rules[run["rules"]]})})


def _write(folder: int, name: str, seen: Look) -> None:
    from pydantic_core import to_json

    rules: dict[bytes, int] = {}
    records = {}
    for key, record in seen.records.items():
        told: Any = record
        if isinstance(record, Record):
            number = rules.setdefault(to_json(record.run.rules), len(rules))
            run = {name: getattr(record.run, name) for name in _OF_RUN} | {"rules": number}
            told = {name: getattr(record, name) for name in _OF_RECORD} | {"run": run}
        records[key] = (seen.stamps[f"{key}.json"], told)
    content = {"version": _version(), "records": records, "pages": seen.pages}
    data = to_json(content)[:-1] + b',"rules":[' + b",".join(rules) + b"]}"
    temporary = f".{name}.{os.getpid()}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
    for other in os.listdir(folder):
        if os.stat(other, dir_fd=folder, follow_symlinks=False).st_mtime < time.time() - _FORGOTTEN_S:
            os.unlink(other, dir_fd=folder)


@cache
def _version() -> str:
    """Of what reads records: another one may read them otherwise."""
    content = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return f"{hashlib.sha256(content).hexdigest()} {sys.version}"
