"""Files that others may have put into a results folder: only plain files of a bounded size are read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

RESULTS_BESIDE = ("images.csv", "architecture.csv")
"""Endings of the files beside a record that are part of its result; their names begin with its key."""

BESIDE = (*RESULTS_BESIDE, "masks.png")
"""The same, with what is kept to look at."""

LARGEST_RECORD = 64 << 20
LARGEST_TABLE = 256 << 20
"""Bytes of a record, and of a CSV file beside it (20,000 images under six scored models take a tenth of it)."""


def read_regular(path: Path, *, largest: int) -> bytes:
    """The content of a plain file, or of the one that a link points to; a FIFO or a device is never waited for.

    Raises:
        ValueError: no plain file, not readable, or more than ``largest`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("no plain file")
            if found.st_size > largest:
                raise ValueError(f"larger than {largest >> 20} MiB")
            data = b""
            while chunk := os.read(descriptor, found.st_size - len(data)):
                data += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return data


def digest(content: bytes) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
