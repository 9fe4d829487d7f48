"""Forgetting records: what one trained model scores on benchmarks that it was not trained on. Plain data, no torch.

One file a run, ``ROOT/forgetting/<key of the run>.json``, written by ``python -m harness.forgetting`` beside the run's own
record, which is sealed and is not touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness.files import read_regular, write_atomically
from harness.records.files import LARGEST_RECORD
from harness.records.reading import spelt, validated
from harness.records.seal import seal_holds, sealed

FORGETTING_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Scores on the test images of another benchmark.

    Args:
        like: key of the finished run whose data (manifest, files, limits) and rules of evaluation were taken.
        scores: split -> metric -> score, as in `harness.records.schema.Record`.
    """

    like: str
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class ForgettingRecord:
    """One run's best model elsewhere.

    Args:
        key: of the run.
        state: digest of the trained tensors.
        elsewhere: by benchmark.
        environment: as in `harness.records.schema.Record`.
        finished: UTC time in ISO format.
    """

    key: str
    state: str
    elsewhere: dict[str, Elsewhere]
    environment: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    schema_version: int = FORGETTING_SCHEMA_VERSION


class ForgettingStore:
    """The forgetting records below a results folder.

    Args:
        root: the results folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "forgetting"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def write(self, record: ForgettingRecord) -> Path:
        path = self.path(record.key)
        write_atomically(path, sealed(asdict(record)))
        return path

    def find(self, key: str) -> ForgettingRecord | None:
        """None where there is none, or none that can be read; whoever reports that goes through `problems`."""
        try:
            return load_forgetting(self.path(key)) if os.path.lexists(self.path(key)) else None
        except ValueError:
            return None

    def __iter__(self) -> Iterator[ForgettingRecord]:
        return (found for _, found in self._read() if isinstance(found, ForgettingRecord))

    def problems(self) -> dict[Path, str]:
        """Files in the folder that are no readable forgetting record, with the reason."""
        return {path: found for path, found in self._read() if isinstance(found, str)}

    def _read(self) -> Iterator[tuple[Path, ForgettingRecord | str]]:
        for path in sorted(self.folder.glob("*.json")):
            try:
                yield path, load_forgetting(path)
            except ValueError as error:
                yield path, str(error)


def load_forgetting(path: Path) -> ForgettingRecord:
    """The record in one file.

    Raises:
        ValueError: no readable forgetting record, one that was edited, or a copy under another run's name.
    """
    data = read_regular(path, largest=LARGEST_RECORD)
    record = validated(_shaped, data, version=FORGETTING_SCHEMA_VERSION, kind="forgetting record", field="elsewhere")
    if path.name.partition(".")[0] != record.key:
        raise ValueError(f"a copy: the scores in it belong to run {record.key}")
    if not seal_holds(data):
        raise ValueError("its seal does not fit: a number was edited after it was written")
    for benchmark, one in record.elsewhere.items():
        for scores in one.scores.values():
            if wrong := [name for name, value in scores.items() if not (math.isfinite(value) and 0 <= value <= 1)]:
                raise ValueError(f"{benchmark}: {wrong[0]} is no score")
    return spelt(record)


def _shaped(data: bytes) -> ForgettingRecord:
    return _adapter().validate_json(data, strict=True)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(ForgettingRecord)
