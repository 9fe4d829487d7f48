"""Records of what ``sam-peft cost`` measured, one JSON file per session. Plain data, no torch.

``ROOT/cost/<key>-<session>.json``: the methods of a session ran interleaved in one process on one device, so their rounds pair. Sessions
are comparable only where their keys are equal, and rounds of two sessions never pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from harness.archive.files import LARGEST_RECORD, seal_holds, sealed
from harness.archive.older import RowLabel
from harness.archive.parser import Amount, Natural, validated
from harness.archive.schema import content_hash, first_backbone, plain_values
from harness.check import escaped
from harness.models.known import RENAMED
from harness.protocols.keys import hashed_options
from harness.system.files import read_regular, write_atomically
from harness.system.text import printable_line

UNSEALED = "its seal does not fit: a number was edited after it was written"
COST_SCHEMA_VERSION = 1


FREE = {"lr", "alpha_lr", "encoder_lr", "alpha_weight_decay"}
"""Options that do not change the cost of a step."""
OF_A_STEP = (
    *("epochs", "optimizer", "fused_attention", "activation_checkpointing"),
    *("cache_embeddings", "accumulate", "decoder", "mask_tokens"),
)
"""Rules that change the cost of a step, apart from size, batch and precision."""
PLAIN: Mapping[str, object] = {"accumulate": 1, "decoder": "sam"}
"""The values of a session that does not name these rules."""


@dataclass(frozen=True, kw_only=True)
class Comparability:
    """What must agree before two sessions are compared.

    Args:
        device: its full name, such as ``NVIDIA H100 80GB HBM3`` or the CPU's model.
        driver: GPU driver and CUDA version, empty on a CPU.
        threads: CPU threads of torch.
        precision: ``fp32`` | ``bf16`` | ``fp16``.
        image_size: side of the square input in pixels.
        batch: images per step.
        task: ``binary``, ``multiclass`` or ``classification``.
        options: optimisations and schedule of the protocol (fused_attention, activation_checkpointing, epochs, …);
            ``num_classes``, ``mask_tokens``, ``accumulate``, ``decoder``, ``budget`` and ``quantise`` only where they are not 2, 1,
            1, ``sam``, ``epochs`` and none.
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

    def is_step_of(self, rules: Mapping[str, object]) -> bool:
        """Whether the step of these rules was measured; a rule that is not among them counts as equal."""
        options = {name: value for name, value in self.options.items() if name in OF_A_STEP}
        measured = {
            "image_size": self.image_size, "precision": self.precision, "batch_size": self.batch, **PLAIN, **options,
        }  # fmt: skip
        return all({**PLAIN, **rules}.get(name, value) == value for name, value in measured.items())

    @property
    def key(self) -> str:
        return content_hash([COST_SCHEMA_VERSION, {**asdict(self), "backbone": first_backbone(self.backbone)}])


Seconds = Annotated[float, Field(gt=1e-9, lt=1e9)]
"""A time that a clock measures, so that a ratio to it is a number."""


def _takes_time(parts: dict[str, list[float]]) -> dict[str, list[float]]:
    if not all(1e-9 < seconds < 1e9 for seconds in parts.get("total", [])):
        raise ValueError("total is a time that no clock measures")
    return parts


@dataclass(frozen=True, kw_only=True)
class MethodCost:
    """One method's cost.

    Args:
        method, label, config: as in `harness.archive.schema.Run`.
        seconds: role (``weights``, ``architecture``, ``weights+architecture``) -> part -> seconds by round. Parts:
            ``total``, ``data``, ``forward``, ``backward``, ``optimiser``, ``untracked``.
        shares: role -> its share of the updates over the protocol's epochs; the search cost of a stage-wise method
            is the architecture's share.
        step_seconds: part -> seconds by round, roles weighted by their shares: what a training step costs on average.
        memory_bytes: ``allocated`` and ``reserved`` peaks over a training step, and its parts ``weights``,
            ``gradients``, ``optimiser``, ``activations`` (kept from forward to backward).
        flops: ``forward`` and ``backward`` of a step as executed, shares applied. Older records also hold others.
        parameters: ``encoder``, ``decoder`` and ``trainable``, ``total``.
        inference_seconds: ``unmerged`` and ``merged-<mode>`` -> seconds by round, of one batch.
        inference_memory_bytes: the same -> peak bytes.
        inference_parameters: the same -> all parameters of that model.
        merge_failures: mode -> why it was not measured.
        ratios: by the label of a baseline, in files that name their baselines.
        changed: fields of ``config`` that differ from the protocol's for this method; None where the file lacks them.
    """

    method: str
    label: RowLabel
    config: dict[str, Any]
    seconds: dict[str, dict[str, list[Amount]]]
    shares: dict[str, Amount]
    step_seconds: Annotated[dict[str, list[Amount]], AfterValidator(_takes_time)]
    memory_bytes: dict[str, Natural]
    flops: dict[str, Amount]
    parameters: dict[str, Natural]
    inference_seconds: dict[str, list[Seconds]] = field(default_factory=dict)
    inference_memory_bytes: dict[str, Natural] = field(default_factory=dict)
    inference_parameters: dict[str, Natural] = field(default_factory=dict)
    merge_failures: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, Any] = field(default_factory=dict)
    changed: list[str] | None = None

    def is_step_of(self, method: str, config: Mapping[str, object]) -> bool:
        """Whether this is the cost of the same method with the same options, except for those that cost nothing."""
        own, other = (
            {name: value for name, value in plain_values(hashed_options(method, of)).items() if name not in FREE}
            for of in (self.config, config)
        )
        return self.method == method and own == other

    def merge_to(self, plain: int) -> str:
        """``exact`` or ``calibrated``: the merge after which the model has no more parameters than a ``plain`` one; ``not needed`` where
        it never has more; ``no``; empty where it was not measured."""
        counts = self.inference_parameters
        if not counts.get("unmerged"):
            return ""
        if counts["unmerged"] <= plain:
            return "not needed"
        return next((mode for mode in ("exact", "calibrated") if 0 < counts.get(f"merged-{mode}", 0) <= plain), "no")


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """One session.

    Args:
        key: `Comparability.key`.
        session: content hash of the measurement; differs between sessions of one key.
        comparability: what must agree between sessions.
        rounds: measured rounds, after ``warmup`` dropped ones.
        methods: in the order of the command line, which is the order within a round.
        dropped: label -> why it is not among ``methods`` (``OOM: …``, ``ERROR: …``).
        shared: who else used the device, in words; empty if it was exclusive. Tables mark a shared session.
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
    def setup(self) -> str:
        """Device, backbone, size, batch and precision in words."""
        shown = self.comparability
        return f"{shown.device} · {shown.backbone} · {shown.image_size} px · batch {shown.batch} · {shown.precision}"

    @property
    def caveat(self) -> str:
        """``; the device was not exclusive: …`` of a shared session, else empty."""
        return f"; the device was not exclusive: {self.shared}" if self.shared else ""


def setups(sessions: Iterable[CostRecord]) -> dict[str, str]:
    """Key -> the set-up of its sessions, with the options that distinguish it from other keys of an equal set-up."""
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for session in sessions:
        shown = asdict(session.comparability)
        options = {name: shown[name] for name in ("driver", "threads", "torch", "task")} | shown["options"]
        alike.setdefault(session.setup, {})[session.key] = options
    named = {}
    for setup, by_key in alike.items():
        names = sorted({name for options in by_key.values() for name in options})
        apart = [name for name in names if len({repr(options.get(name)) for options in by_key.values()}) > 1]
        for key, options in by_key.items():
            words = [f"{name}={options[name]}" if name in options else f"{name} not named" for name in apart]
            named[key] = " · ".join([setup, *([", ".join(words)] if words else [])])
    return named


class CostStore:
    """The cost records below a results folder; one key may have several sessions."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "cost"

    @staticmethod
    def load(path: Path) -> CostRecord:
        """The record in one file. Raises ValueError, with one line: it cannot be read as a cost record, was edited, or is a copy."""
        data = read_regular(path, largest=LARGEST_RECORD)
        record: CostRecord = validated(CostRecord, data, versions=range(1, COST_SCHEMA_VERSION + 1))
        for reason in _wrong(record, data):
            raise ValueError(printable_line(reason))
        if path.name != (own := f"{record.key}-{record.session}.json"):
            raise ValueError(printable_line(f"a copy: the session in it belongs to {own}"))
        return escaped(record)

    def write(self, record: CostRecord) -> Path:
        path = self.folder / f"{record.key}-{record.session}.json"
        write_atomically(path, sealed(asdict(record)))
        return path

    def sessions(self) -> tuple[list[CostRecord], dict[Path, str]]:
        """The cost records of the folder; and the files that cannot be read as one, with the reason."""
        records, problems = list[CostRecord](), dict[Path, str]()
        for path in sorted(self.folder.glob("*.json")):
            try:
                records.append(self.load(path))
            except ValueError as error:
                problems[path] = str(error)
        return records, problems


def _wrong(record: CostRecord, data: bytes) -> Iterator[str]:
    """Reasons why a record is inconsistent; ``data`` is the content of its file."""
    if record.comparability.key != record.key:
        yield "its key is not the hash of its comparability: the device, the options or the like were edited"
    holds = seal_holds(data)
    if holds is None:  # older than seals: the session is a hash of all else
        holds = content_hash({**json.loads(data), "session": ""})[:8] == record.session
    if not holds:
        yield UNSEALED
