"""What models do inside, as differences to their frozen backbones: one number a block, for figures and claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from harness.archive.measured import BlockEvidence, EvidenceRecord
from harness.statistics.cka import cka


def distance_change(block: BlockEvidence) -> float:
    """Attention distance, trained minus frozen, mean over heads, in pixels."""
    return block.trained.mean_distance - block.frozen.mean_distance


def frequency_change(block: BlockEvidence) -> float:
    """Log amplitude of the highest frequency behind the block, trained minus frozen."""
    return block.trained.after_mlp[-1] - block.frozen.after_mlp[-1]


def cka_to_frozen(block: BlockEvidence) -> float:
    """1 where the block's output is the frozen one's but for rotation and scale."""
    return cka(block.trained.grams, block.frozen.grams)


def block_update(block: BlockEvidence) -> float:
    """‖f − f₀‖ / ‖f₀‖ of what the block adds to its input."""
    return block.update.get("block", 0.0)


MEASURES: Mapping[str, Callable[[BlockEvidence], float]] = {
    "attention distance": distance_change,
    "high frequencies": frequency_change,
    "CKA to frozen": cka_to_frozen,
    "update": block_update,
}
"""Name in a claim -> one number a block."""

KINDS = ("all", "windowed", "global", "first-half", "last-half")


def chosen(record: EvidenceRecord, kind: str) -> list[BlockEvidence]:
    """The blocks of one of `KINDS`; none where the backbone has none (a plain ViT has no windows)."""
    half = len(record.blocks) // 2
    places = {
        "all": record.blocks,
        "windowed": [block for block in record.blocks if block.window],
        "global": [block for block in record.blocks if not block.window],
        "first-half": record.blocks[:half],
        "last-half": record.blocks[half:],
    }
    return places[kind]


def mean_change(record: EvidenceRecord, measure: str, kind: str) -> float | None:
    """Mean over the chosen blocks; None where there are none."""
    values = [MEASURES[measure](block) for block in chosen(record, kind)]
    return math.fsum(values) / len(values) if values else None


def comparable(records: Sequence[EvidenceRecord]) -> bool:
    """Whether all were measured on the same images in the same minibatches."""
    return len({(tuple(map(tuple, record.images)), record.batch, record.grid) for record in records}) <= 1
