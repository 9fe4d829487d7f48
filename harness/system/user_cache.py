"""The user's own cache folder, and sums by which entries of a cache that others may write to are known as one's own."""

from __future__ import annotations

import contextlib
import functools
import hmac
import os
import secrets
import stat
import tempfile
from pathlib import Path

SUM_BYTES = 32


def user_cache() -> Path | None:
    """``sam-peft-harness`` below ``XDG_CACHE_HOME`` or ``~/.cache``, made by whoever writes there; None without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "sam-peft-harness"


def own_key() -> bytes | None:
    """32 secret bytes that this user's processes share; None where there is no place that keeps them from others."""
    folder = user_cache()
    return None if folder is None else _kept_key(folder / "key")


def own_sum(key: bytes, name: str, data: bytes | bytearray | memoryview) -> bytes:
    """HMAC-SHA256 of ``data`` stored as ``name``: without the key nobody makes it, nor gives an entry another's name."""
    mac = hmac.new(key, f"{len(name)} {name}".encode(), "sha256")
    mac.update(data)
    return mac.digest()


@functools.cache
def _kept_key(path: Path) -> bytes | None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as file, contextlib.suppress(FileExistsError):
                file.write(secrets.token_hex(32))
                file.flush()
                os.link(file.name, path)  # whole or not at all; of two processes one is first
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return key if len(key) == 32 else None
