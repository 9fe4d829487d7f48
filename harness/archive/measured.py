"""Records of what was measured beside runs, one JSON file each in a folder of their kind below the results folder. Plain data, no torch.

``ROOT/evidence/<key of the run>.json``: what a run's best model does inside, beside what its frozen backbone does, written by
``sam-peft evidence``. ``ROOT/forgetting/<key>.json``: what it scores on benchmarks that it was not trained on, by
``sam-peft forgetting``. The run's own record is sealed and not touched.

``ROOT/cost/<key>-<session>.json``: what one session of ``sam-peft cost`` measured. Its methods ran interleaved in one process on
one device, so their rounds pair; sessions may be set side by side only where their keys are equal, and paired never.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from harness.archive.files import LARGEST_RECORD, compact, seal_holds, sealed
from harness.archive.reading import validated
from harness.archive.schema import content_hash, first_backbone, largest
from harness.check import spelt
from harness.models.known import RENAMED
from harness.system.files import read_regular, write_atomically
from harness.system.text import printable_line

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
        """The record in one file. Raises ValueError: no readable record of this kind, one that was edited, or a copy under
        another run's name."""
        data = read_regular(path, largest=LARGEST_RECORD)
        record: T = validated(cls.kind, data, version=cls.version, called=cls.called, field=cls.field)
        for reason in cls._wrong(record, data, stem=path.name.partition(".")[0]):
            raise ValueError(printable_line(reason))
        return spelt(record)

    @classmethod
    @abstractmethod
    def _wrong(cls, record: T, data: bytes, *, stem: str) -> Iterator[str]:
        """What does not fit together, as a reason; ``data`` is the file, ``stem`` what it is called."""

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
                for name in (name for name, value in scores.items() if not 0 <= value <= largest(name)):
                    yield f"{benchmark}: {name} is no score"


COST_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Comparability:
    """What must agree before two sessions are compared.

    Args:
        device: its full name, such as ``NVIDIA H100 80GB HBM3`` or the CPU's model.
        driver: GPU driver and CUDA version, empty on a CPU.
        threads: CPU threads of torch.
        precision: ``fp32`` | ``bf16`` | ``fp16``.
        image_size: side of the square input in pixels.
        batch: images a step.
        task: ``binary``, ``multiclass`` or ``classification``.
        options: optimisations and schedule of the protocol (fused_attention, activation_checkpointing, epochs, …);
            ``num_classes``, ``mask_tokens``, ``accumulate``, ``decoder``, ``budget`` and ``quantise`` only where they are not 2, 1, 1,
            ``sam``, ``epochs`` and none.
    """

    device: str
    driver: str
    threads: int
    torch: str
    precision: str
    backbone: str
    image_size: int
    batch: int
    task: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "backbone", RENAMED.get(self.backbone, self.backbone))

    @property
    def on_gpu(self) -> bool:
        return bool(self.driver)

    @property
    def key(self) -> str:
        return content_hash([COST_SCHEMA_VERSION, {**asdict(self), "backbone": first_backbone(self.backbone)}])


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A method over a baseline: geometric mean of the per-round ratios with a 95 % t interval of their logarithms, which is None where
    the quantity does not vary (memory, FLOPs, parameters)."""

    value: float
    low: float | None = None
    high: float | None = None
    rounds: int = 1


@dataclass(frozen=True, kw_only=True)
class MethodCost:
    """One method's cost.

    Args:
        method, variant, config: as in `harness.archive.schema.Run`.
        seconds: role (``weights``, ``architecture``, ``weights+architecture``) -> part -> seconds by round. Parts:
            ``total``, ``data``, ``forward``, ``backward``, ``optimiser``, ``untracked``.
        shares: role -> its share of the updates over the protocol's epochs; the search cost of a stage-wise method
            is the architecture's share.
        step_seconds: part -> seconds by round, roles weighted by their shares: what a training step costs on average.
        memory_bytes: ``allocated`` and ``reserved`` peaks over a training step, and its parts ``weights``,
            ``gradients``, ``optimiser``, ``activations`` (kept from forward to backward).
        flops: ``forward`` and ``backward`` of a step, shares applied; ``closed_form`` of the plain encoder's forward
            pass beside ``encoder_forward`` as counted.
        not_counted: operations that the FLOP counter does not know, with how often they ran.
        parameters: ``encoder``, ``decoder`` and ``trainable``, ``total``.
        inference_seconds: ``unmerged`` and ``merged-<mode>`` -> seconds by round, of one batch.
        inference_memory_bytes: the same -> peak bytes.
        inference_parameters: the same -> all parameters of that model.
        merge_failures: mode -> why it could not be measured.
        checkpoint_bytes: the method's state on disk.
        joules: energy of a training step by NVML, None without an exclusive GPU.
        ratios: baseline variant -> quantity (``time``, ``memory``, ``flops``, ``device_hours``) -> `Ratio`.
        changed: fields of ``config`` whose value is not the one that the protocol gives this method; None in older records.
    """

    method: str
    variant: str
    config: dict[str, Any]
    seconds: dict[str, dict[str, list[float]]]
    shares: dict[str, float]
    step_seconds: dict[str, list[float]]
    memory_bytes: dict[str, int]
    flops: dict[str, float]
    not_counted: dict[str, int]
    parameters: dict[str, int]
    inference_seconds: dict[str, list[float]] = field(default_factory=dict)
    inference_memory_bytes: dict[str, int] = field(default_factory=dict)
    inference_parameters: dict[str, int] = field(default_factory=dict)
    merge_failures: dict[str, str] = field(default_factory=dict)
    checkpoint_bytes: int = 0
    joules: float | None = None
    ratios: dict[str, dict[str, Ratio]] = field(default_factory=dict)
    changed: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """One session.

    Args:
        key: `Comparability.key`.
        session: content hash of the measurement, tells sessions of one key apart.
        comparability: what must agree.
        rounds: measured rounds, after ``warmup`` dropped ones.
        methods: in the order of the command line, which is the order within a round.
        dropped: variant -> why it could not be measured (``OOM: …``, ``ERROR: …``); it is not among ``methods``.
        shared: who else used the device, in words; empty if it was exclusive. Tables mark such a session.
        environment: as in `harness.archive.schema.Record`.
        finished: UTC time in ISO format.
    """

    key: str
    session: str
    comparability: Comparability
    rounds: int
    warmup: int
    methods: list[MethodCost]
    dropped: dict[str, str] = field(default_factory=dict)
    shared: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    schema_version: int = COST_SCHEMA_VERSION

    @property
    def place(self) -> str:
        """Where it was measured, and at which size."""
        shown = self.comparability
        return f"{shown.device} · {shown.backbone} · {shown.image_size} px · batch {shown.batch} · {shown.precision}"


def places(sessions: Iterable[CostRecord]) -> dict[str, str]:
    """Key -> where its sessions were measured, with the options that tell it from other keys of the same place."""
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for session in sessions:
        shown = asdict(session.comparability)
        told = {name: shown[name] for name in ("driver", "threads", "torch", "task")} | shown["options"]
        alike.setdefault(session.place, {})[session.key] = told
    named = {}
    for place, by_key in alike.items():
        names = sorted({name for told in by_key.values() for name in told})
        apart = [name for name in names if len({repr(told.get(name)) for told in by_key.values()}) > 1]
        for key, told in by_key.items():
            words = [f"{name}={told[name]}" if name in told else f"{name} not named" for name in apart]
            named[key] = " · ".join([place, *([", ".join(words)] if words else [])])
    return named


class CostStore(RecordFolder[CostRecord]):
    """The cost records below a results folder; one key may have several sessions."""

    name, kind, version, called, field = "cost", CostRecord, COST_SCHEMA_VERSION, "cost record", "comparability"

    def stem(self, record: CostRecord) -> str:
        return f"{record.key}-{record.session}"

    @classmethod
    def _wrong(cls, record: CostRecord, data: bytes, *, stem: str) -> Iterator[str]:
        if record.comparability.key != record.key:
            yield "its key is not the hash of its comparability: the device, the options or the like were edited"
        content = json.loads(data)
        if wrong := _first_wrong(content):
            yield f"{wrong} is negative or not finite"
        holds = seal_holds(data)
        if holds is None:  # older than seals: the session is a hash of all else
            holds = content_hash({**content, "session": ""})[:8] == record.session
        if not holds:
            yield UNSEALED


def _first_wrong(value: Any, where: str = "") -> str:
    """The first number that is negative or not finite, by its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((wrong for name, item in items if (wrong := _first_wrong(item, f"{where}.{name}"))), "")
    return where.lstrip(".") if isinstance(value, int | float) and not 0 <= value < math.inf else ""
