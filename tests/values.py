"""What a test needs: the repository, a value that is there, and what comes in time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"
"""The committed records."""
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="needs what only Linux has: /proc, /dev/full, any byte in a name"
)
T = TypeVar("T")


def there(value: T | None) -> T:
    """The value, which is there."""
    assert value is not None
    return value


def wait_until(comes: Callable[..., Any], what: str = "it") -> None:
    deadline = time.monotonic() + 400  # the machine may be busy
    while not comes():
        assert time.monotonic() < deadline, f"waited 400 s for {what}"
        time.sleep(0.02)
