"""Records of what was measured on trained models, one JSON file each in a folder of their kind below the results folder.

``ROOT/evidence/<key of the run>.json``: what a run's best model does inside, beside what its frozen backbone does, written by
``sam-peft evidence``. ``ROOT/forgetting/<key>.json``: what it scores on benchmarks that it was not trained on, by
``sam-peft forgetting``. The run's own record is sealed and not touched. Plain data, no torch.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from harness.archive.files import LARGEST_RECORD, compact, seal_holds, sealed
from harness.archive.reading import validated
from harness.check import spelt
from harness.system.files import read_regular, write_atomically

T = TypeVar("T")


class RecordFolder(ABC, Generic[T]):
    """The records of one kind below a results folder."""

    name: ClassVar[str]
    """Of the folder."""

    def __init__(self, root: Path) -> None:
        self.folder = root / self.name

    @staticmethod
    @abstractmethod
    def load(path: Path) -> T:
        """The record in one file.

        Raises:
            ValueError: no readable record of this kind, one that was edited, or a copy under another run's name.
        """

    def stem(self, record: T) -> str:
        """What its file is called: by the key of its run."""
        return str(record.key)  # type: ignore[attr-defined]

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
        return (record for _, record in self._read() if not isinstance(record, str))

    def problems(self) -> dict[Path, str]:
        """Files in the folder that are no readable record of this kind, with the reason."""
        return {path: reason for path, reason in self._read() if isinstance(reason, str)}

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
    return validated(kind, data, version=version, called=called, field=field), data


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


EVIDENCE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What one block of one model does.

    Args:
        distance_px: mean attention distance by head, in pixels of the network's input.
        after_attention, after_mlp: log amplitude along the half-diagonal of the spectrum minus its first value, of the
            tokens behind the residual attention and behind the block; entry k is the frequency 2πk / (side of the map).
        grams: by minibatch, the entries above the diagonal of XXᵀ row by row, X the block's output (images × features)
            less its mean over the minibatch.
    """

    distance_px: list[float]
    after_attention: list[float]
    after_mlp: list[float]
    grams: list[list[float]]

    @property
    def mean_distance(self) -> float:
        """Over heads."""
        return math.fsum(self.distance_px) / len(self.distance_px)


@dataclass(frozen=True, kw_only=True)
class BlockEvidence:
    """One block.

    Args:
        window: side of its attention window in tokens, 0 where attention is global.
        uniform_px: the attention distance that uniform attention has here, padding left out.
        trained, frozen: the trained model, and the pretrained backbone without the method, on the same images.
        update: site (``q``, ``k``, ``v``, ``proj``, ``mlp_in``, ``mlp_out``, ``block``) -> ‖f(x) − f₀(x)‖ / ‖f₀(x)‖ over the
            tokens x that reach it in the trained model, f₀ the frozen backbone's; of ``block`` what it adds to its input.
    """

    window: int
    uniform_px: float
    trained: Inside
    frozen: Inside
    update: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EvidenceRecord:
    """The blocks of one run's best model. Records with equal ``images`` compare by their Gram matrices (`harness.statistics.cka`).

    Args:
        key: of the run.
        state: digest of the trained tensors.
        images: split and stem of the test images, in the order of the minibatches.
        batch: images a minibatch.
        grid: tokens of the map, height and width.
        patch: side of a token in pixels.
        blocks: in order of depth.
        merge: mode -> ‖merged − unmerged‖ / ‖unmerged‖ of every block's output.
        environment: as in `harness.archive.schema.Record`.
        finished: UTC time in ISO format.
    """

    key: str
    state: str
    images: list[tuple[str, str]]
    batch: int
    grid: tuple[int, int]
    patch: int
    blocks: list[BlockEvidence]
    merge: dict[str, list[float]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    schema_version: int = EVIDENCE_SCHEMA_VERSION


class EvidenceStore(RecordFolder[EvidenceRecord]):
    """The evidence records below a results folder, by the keys of their runs."""

    name = "evidence"

    @staticmethod
    def load(path: Path) -> EvidenceRecord:
        record = read_of_run(
            EvidenceRecord, path, version=EVIDENCE_SCHEMA_VERSION, called="evidence record", field="blocks"
        )
        for reason in _wrong(record):
            raise ValueError(reason)
        return record

    def _text(self, record: EvidenceRecord) -> bytes:
        return compact(super()._text(record))


def _wrong(record: EvidenceRecord) -> Iterator[str]:
    """What does not fit together, as a reason."""
    if not record.blocks or record.batch < 1 or len(record.images) % record.batch:
        yield "it has no blocks, or its images do not fill minibatches"
        return
    first = record.blocks[0].trained
    entries = [record.batch * (record.batch - 1) // 2] * (len(record.images) // record.batch)
    for mode, values in record.merge.items():
        if len(values) != len(record.blocks) or not _finite(values):
            yield f"merge {mode}: not one finite number a block"
    for number, block in enumerate(record.blocks):
        if not _finite([block.uniform_px, *block.update.values()]):
            yield f"block {number}: a number is not finite"
        for model in (block.trained, block.frozen):
            if not _finite(
                [
                    *model.distance_px,
                    *model.after_attention,
                    *model.after_mlp,
                    *(value for gram in model.grams for value in gram),
                ]
            ):
                yield f"block {number}: a number is not finite"
            if len(model.distance_px) != len(first.distance_px) or not model.distance_px:
                yield f"block {number} has another number of heads"
            if {len(model.after_attention), len(model.after_mlp)} != {len(first.after_mlp)} or not model.after_mlp:
                yield f"block {number} has another number of frequencies"
            if [len(gram) for gram in model.grams] != entries:
                yield f"block {number}: its Gram matrices do not fit the minibatches"


def _finite(values: list[float]) -> bool:
    return all(map(math.isfinite, values))


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

    @staticmethod
    def load(path: Path) -> ForgettingRecord:
        record = read_of_run(
            ForgettingRecord, path, version=FORGETTING_SCHEMA_VERSION, called="forgetting record", field="elsewhere"
        )
        for benchmark, test in record.elsewhere.items():
            for scores in test.scores.values():
                if wrong := [name for name, value in scores.items() if not (math.isfinite(value) and 0 <= value <= 1)]:
                    raise ValueError(f"{benchmark}: {wrong[0]} is no score")
        return record
