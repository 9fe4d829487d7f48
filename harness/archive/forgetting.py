"""Forgetting records: what one trained model scores on benchmarks that it was not trained on. Plain data, no torch.

One file a run, ``ROOT/forgetting/<key of the run>.json``, written by ``python -m harness.forgetting`` beside the run's own
record, which is sealed and is not touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from harness.archive.folder import RecordFolder, read_of_run

FORGETTING_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Scores on the test images of another benchmark.

    Args:
        like: key of the finished run whose data (manifest, files, limits) and rules of evaluation were taken.
        scores: split -> metric -> score, as in `harness.archive.schema.Record`.
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
        environment: as in `harness.archive.schema.Record`.
        finished: UTC time in ISO format.
    """

    key: str
    state: str
    elsewhere: dict[str, Elsewhere]
    environment: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    schema_version: int = FORGETTING_SCHEMA_VERSION


class ForgettingStore(RecordFolder[ForgettingRecord]):
    """The forgetting records below a results folder, by the keys of their runs."""

    name = "forgetting"

    def stem(self, record: ForgettingRecord) -> str:
        return record.key

    def load(self, path: Path) -> ForgettingRecord:
        return load_forgetting(path)


def load_forgetting(path: Path) -> ForgettingRecord:
    """The record in one file.

    Raises:
        ValueError: no readable forgetting record, one that was edited, or a copy under another run's name.
    """
    record = read_of_run(
        ForgettingRecord, path, version=FORGETTING_SCHEMA_VERSION, called="forgetting record", field="elsewhere"
    )
    for benchmark, one in record.elsewhere.items():
        for scores in one.scores.values():
            if wrong := [name for name, value in scores.items() if not (math.isfinite(value) and 0 <= value <= 1)]:
                raise ValueError(f"{benchmark}: {wrong[0]} is no score")
    return record
