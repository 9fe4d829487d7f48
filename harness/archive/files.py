"""The files of a record: what lies beside it, how large they may be, and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

_IMAGES = "images.csv"
RESULTS_BESIDE = (_IMAGES, "architecture.csv")
"""Endings of the files beside a record that are part of its result; their names begin with its key."""

BESIDE = (*RESULTS_BESIDE, "masks.png")
"""The same, with what is kept to look at."""

LARGEST_RECORD = 64 << 20
LARGEST_TABLE = 256 << 20
"""Bytes of a record, and of a CSV file beside it (20,000 images under six scored models take a tenth of it)."""


def files_beside(path: Path) -> dict[str, Path]:
    """Ending -> where that file lies beside a record's, there or not.

    Args:
        path: the record's file, which need not lie under its key.
    """
    return {name: path.with_suffix(f".{name}") for name in BESIDE}


def is_of_record(name: str, named: Collection[str]) -> bool:
    """Whether the file that ends in ``name`` beside a record is that record's, and not left by another under its key.

    Records older than digests name no file, and some whose run was given a label later name their α history alone: that
    per-image scores are theirs shows in the scores (`harness.archive.agreement`).

    Args:
        named: `harness.archive.schema.Record.beside`.
    """
    return not named or name in named or name == _IMAGES


def digest(content: bytes) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
