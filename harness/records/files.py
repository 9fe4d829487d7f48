"""The files of a record: what lies beside it, how large they may be, and their digests."""

from __future__ import annotations

import hashlib

RESULTS_BESIDE = ("images.csv", "architecture.csv")
"""Endings of the files beside a record that are part of its result; their names begin with its key."""

BESIDE = (*RESULTS_BESIDE, "masks.png")
"""The same, with what is kept to look at."""

LARGEST_RECORD = 64 << 20
LARGEST_TABLE = 256 << 20
"""Bytes of a record, and of a CSV file beside it (20,000 images under six scored models take a tenth of it)."""


def digest(content: bytes) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
