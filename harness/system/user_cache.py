"""The user's own cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """``sam-peft-harness`` below ``XDG_CACHE_HOME`` or ``~/.cache``, made by whoever writes there; None without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "sam-peft-harness"
