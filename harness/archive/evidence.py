"""Evidence records: what one trained model does inside, beside what its frozen backbone does. Plain data, no torch.

One file a run, ``ROOT/evidence/<key of the run>.json``, written by ``python -m harness.evidence``. It stands beside the
run's record, which is sealed when the run ends and is not touched. Runs of one benchmark and seed-independent choice of
images were measured on the same images, so that their Gram matrices compare (`harness.archive.cka`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.archive.folder import RecordFolder, read_of_run
from harness.archive.seal import compact

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
    """The blocks of one run's best model.

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

    def stem(self, record: EvidenceRecord) -> str:
        return record.key

    def load(self, path: Path) -> EvidenceRecord:
        return load_evidence(path)

    def _text(self, record: EvidenceRecord) -> bytes:
        return compact(super()._text(record))


def load_evidence(path: Path) -> EvidenceRecord:
    """The record in one file.

    Raises:
        ValueError: no readable evidence record, one that was edited, or a copy under another run's name.
    """
    record = read_of_run(
        EvidenceRecord, path, version=EVIDENCE_SCHEMA_VERSION, called="evidence record", field="blocks"
    )
    for reason in _wrong(record):
        raise ValueError(reason)
    return record


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
        for one in (block.trained, block.frozen):
            if not _finite(
                [
                    *one.distance_px,
                    *one.after_attention,
                    *one.after_mlp,
                    *(value for gram in one.grams for value in gram),
                ]
            ):
                yield f"block {number}: a number is not finite"
            if len(one.distance_px) != len(first.distance_px) or not one.distance_px:
                yield f"block {number} has another number of heads"
            if {len(one.after_attention), len(one.after_mlp)} != {len(first.after_mlp)} or not one.after_mlp:
                yield f"block {number} has another number of frequencies"
            if [len(gram) for gram in one.grams] != entries:
                yield f"block {number}: its Gram matrices do not fit the minibatches"


def _finite(values: list[float]) -> bool:
    return all(map(math.isfinite, values))
