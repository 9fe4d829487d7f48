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
from typing import Any, ClassVar, Generic, TypeVar

from harness.archive.files import LARGEST_RECORD, compact, seal_holds, sealed
from harness.archive.reading import validated
from harness.check import spelt
from harness.system.files import read_regular, write_atomically

T = TypeVar("T")


class RecordFolder(ABC, Generic[T]):
    """The records of one kind below a results folder.

    A kind says what its folder is called (``name``), the dataclass of its records (``kind``), the last schema that this code
    reads (``version``), and for messages what a file is (``called``) and a field that every file has (``field``).
    """

    name: ClassVar[str]
    kind: ClassVar[type[Any]]
    version: ClassVar[int]
    called: ClassVar[str]
    field: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.folder = root / self.name

    @classmethod
    def load(cls, path: Path) -> T:
        """The record in one file.

        Raises:
            ValueError: no readable record of this kind, one that was edited, or a copy under another run's name.
        """
        data = read_regular(path, largest=LARGEST_RECORD)
        record: T = validated(cls.kind, data, version=cls.version, called=cls.called, field=cls.field)
        for reason in cls._wrong(record, data, stem=path.name.partition(".")[0]):
            raise ValueError(reason)
        return spelt(record)

    @classmethod
    @abstractmethod
    def _wrong(cls, record: T, data: bytes, *, stem: str) -> Iterator[str]:
        """What does not fit together, as a reason.

        Args:
            data: the file.
            stem: what it is called.
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


UNSEALED = "its seal does not fit: a number was edited after it was written"


def _not_of_run(key: str, data: bytes, *, stem: str, called: str) -> Iterator[str]:
    """Of a file that is called by the key of its run and sealed."""
    if stem != key:
        yield f"a copy: the {called} in it belongs to run {key}"
    if not seal_holds(data):
        yield UNSEALED


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
    schema_version: int = 1


class EvidenceStore(RecordFolder[EvidenceRecord]):
    """The evidence records below a results folder, by the keys of their runs."""

    name, kind, version, called, field = "evidence", EvidenceRecord, 1, "evidence record", "blocks"

    def _text(self, record: EvidenceRecord) -> bytes:
        return compact(super()._text(record))

    @classmethod
    def _wrong(cls, record: EvidenceRecord, data: bytes, *, stem: str) -> Iterator[str]:
        yield from _not_of_run(record.key, data, stem=stem, called=cls.called)
        if not record.blocks or record.batch < 1 or len(record.images) % record.batch:
            yield "it has no blocks, or its images do not fill minibatches"
            return
        first = record.blocks[0].trained
        entries = [record.batch * (record.batch - 1) // 2] * (len(record.images) // record.batch)
        for mode, values in record.merge.items():
            if len(values) != len(record.blocks) or not _finite(values):
                yield f"merge {mode}: not one finite number a block"
        for number, block in enumerate(record.blocks):
            for model in (block.trained, block.frozen):
                lists = (model.distance_px, model.after_attention, model.after_mlp, *model.grams)
                if not all(map(_finite, ([block.uniform_px, *block.update.values()], *lists))):
                    yield f"block {number}: a number is not finite"
                if len(model.distance_px) != len(first.distance_px) or not model.distance_px:
                    yield f"block {number} has another number of heads"
                if {len(model.after_attention), len(model.after_mlp)} != {len(first.after_mlp)} or not model.after_mlp:
                    yield f"block {number} has another number of frequencies"
                if [len(gram) for gram in model.grams] != entries:
                    yield f"block {number}: its Gram matrices do not fit the minibatches"


def _finite(values: list[float]) -> bool:
    return all(map(math.isfinite, values))


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
    schema_version: int = 1


class ForgettingStore(RecordFolder[ForgettingRecord]):
    """The forgetting records below a results folder, by the keys of their runs."""

    name, kind, version, called, field = "forgetting", ForgettingRecord, 1, "forgetting record", "elsewhere"

    @classmethod
    def _wrong(cls, record: ForgettingRecord, data: bytes, *, stem: str) -> Iterator[str]:
        yield from _not_of_run(record.key, data, stem=stem, called=cls.called)
        for benchmark, test in record.elsewhere.items():
            for scores in test.scores.values():
                for name in (name for name, value in scores.items() if not 0 <= value <= 1):
                    yield f"{benchmark}: {name} is no score"
