"""Records that stand beside those of runs, one JSON file each, in a folder of their kind below the results folder."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import TypeAdapter

from harness.archive.files import LARGEST_RECORD
from harness.archive.reading import spelt, validated
from harness.archive.seal import seal_holds, sealed
from harness.files import read_regular, write_atomically

T = TypeVar("T")


class RecordFolder(ABC, Generic[T]):
    """The records of one kind below a results folder.

    Args:
        root: the results folder.
    """

    name: ClassVar[str]
    """Of the folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root / self.name

    @abstractmethod
    def load(self, path: Path) -> T:
        """The record in one file; raises ValueError where there is no readable one, or one that was edited."""

    @abstractmethod
    def stem(self, record: T) -> str:
        """What its file is called."""

    def write(self, record: T) -> Path:
        path = self.path(self.stem(record))
        write_atomically(path, self._text(record))
        return path

    def path(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"

    def find(self, stem: str) -> T | None:
        """None where there is none, or none that can be read; whoever reports that goes through `problems`."""
        try:
            return self.load(self.path(stem)) if os.path.lexists(self.path(stem)) else None
        except ValueError:
            return None

    def __iter__(self) -> Iterator[T]:
        """Whole records in the order of their files; unreadable files are left to `problems`."""
        return (found for _, found in self._read() if not isinstance(found, str))

    def problems(self) -> dict[Path, str]:
        """Files in the folder that are no readable record of this kind, with the reason."""
        return {path: found for path, found in self._read() if isinstance(found, str)}

    def _read(self) -> Iterator[tuple[Path, T | str]]:
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, self.load(path)
            except ValueError as error:
                yield path, str(error)

    def _text(self, record: T) -> bytes:
        return sealed(asdict(record))  # type: ignore[call-overload]


def read_validated(kind: type[T], path: Path, *, version: int, called: str, field: str) -> tuple[T, bytes]:
    """A file as a dataclass, with its bytes, whose seal is still to be looked at; see `harness.archive.reading.validated`.

    Raises:
        ValueError: no plain file, or none of this kind and shape.
    """
    data = read_regular(path, largest=LARGEST_RECORD)
    adapter = _adapter(cast("Any", kind))
    record: T = validated(
        lambda text: adapter.validate_json(text, strict=True), data, version=version, kind=called, field=field
    )
    return record, data


def read_of_run(kind: type[T], path: Path, *, version: int, called: str, field: str) -> T:
    """The same of a file that is called by the key of its run and sealed.

    Raises:
        ValueError: as `read_validated`; or it was edited, or is a copy under another run's name.
    """
    record, data = read_validated(kind, path, version=version, called=called, field=field)
    key = getattr(record, "key", "")
    if path.name.partition(".")[0] != key:
        raise ValueError(f"a copy: the {called} in it belongs to run {key}")
    require_seal(holds=seal_holds(data))
    return spelt(record)


def require_seal(*, holds: bool | None) -> None:
    """Raises ValueError where the seal of a file does not fit, or is missing."""
    if not holds:
        raise ValueError("its seal does not fit: a number was edited after it was written")


@lru_cache(maxsize=8)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Built once a kind, and only where a file of it is read."""
    return TypeAdapter(kind)
