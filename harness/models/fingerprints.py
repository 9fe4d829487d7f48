"""Which checkpoint a file is: a hash of every byte, remembered so that gigabytes are read once. Free of torch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.system.errors import UsageError
from harness.system.files import write_atomically
from harness.system.machine import user_cache
from harness.system.streams import say

PREFIX = "sha256-"
_MEBIBYTE = 1 << 20
_SAID_FROM = 64 * _MEBIBYTE
_SETTLED_S = 2.0
_HASH = re.compile(r"[0-9a-f]{64}")


def fingerprint(path: Path) -> str:
    """``sha256-`` and 64 hex digits of the whole file, the same in every folder.

    The hash is remembered in the user's cache folder by path, inode, size and times of change, so that a large file is
    read once; while it is read, a line on stderr says so. The cache may be deleted at any time.

    Raises:
        UsageError: the file cannot be read, is none, or changes while it is read.
    """
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise UsageError(f"checkpoint {path} is no file; give the path of a .pth or .safetensors file")
        if known := _entry_of(path, before):
            return PREFIX + str(known["sha256"])
        if before.st_size >= _SAID_FROM:
            size = f"{before.st_size / 1e9:.2f} GB"
            say(f"reading all {size} of {path} for its fingerprint (once; it is remembered)")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from error
    if _identity(path, before) != _identity(path, after):
        raise UsageError(f"checkpoint {path} changed while it was read; wait until it is written, then start again")
    _remember(path, after, digest)
    return PREFIX + digest


def known_to_fit(path: Path, backbone: str) -> bool:
    """Whether this very code stored, by `remember_fit`, that this very file fits a backbone."""
    return bool(_entry_of(path, status_of(path)).get("fits", {}).get(backbone) == _judge())


def status_of(path: Path) -> os.stat_result:
    """Raises UsageError: there is no such file, or it may not be looked at."""
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error


def remember_fit(path: Path, backbone: str, *, checked: os.stat_result) -> None:
    """Remember that a file fits a backbone, so that not every plan imports torch to see it. Stored with its `fingerprint`, which is
    made first.

    Args:
        checked: the file's status before it was checked; where it has another by now, nothing is remembered.
    """
    entry, content = _entry(path), _entry_of(path, checked)
    if entry is None or not content:
        return
    with contextlib.suppress(OSError, ValueError, TypeError):
        write_atomically(entry, json.dumps(content | {"fits": content.get("fits", {}) | {backbone: _judge()}}) + "\n")


def short_fingerprint(path: Path) -> str:
    """16 hex digits from a file's size and its first and last MiB, which other files may share: what records named a checkpoint by
    before `fingerprint`. Raises UsageError: the file cannot be read."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(_MEBIBYTE))
            if size > _MEBIBYTE:
                file.seek(max(size - _MEBIBYTE, _MEBIBYTE))
                digest.update(file.read(_MEBIBYTE))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()[:16]


def is_checkpoint(path: Path, recorded: str) -> bool:
    """Whether a file has the fingerprint, whole or short, that a run names. Raises UsageError: the file cannot be read."""
    return (fingerprint if recorded.startswith(PREFIX) else short_fingerprint)(path) == recorded


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"checkpoint {path} cannot be read ({error.strerror}); give the path of a file you have")


def _identity(path: Path, status: os.stat_result) -> list[str | int]:
    """What identifies a file's contents without reading them; ctime is in it since anybody can set mtime back."""
    return [str(path.absolute()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _entry(path: Path) -> Path | None:
    """Where the hash of a file is remembered: one small file each, so that processes do not wait for each other."""
    folder = user_cache()
    name = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:32]
    return None if folder is None else folder / "fingerprints" / f"{name}.json"


@functools.cache
def _judge() -> str:
    """The code that says whether a checkpoint fits, and timm's release, whose models may change: another may say otherwise."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    versions = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps([versions, version("timm")]).encode()).hexdigest()[:16]


def _entry_of(path: Path, status: os.stat_result) -> dict[str, Any]:
    """What is remembered of a file with this status: ``file``, ``sha256`` and the backbones that it ``fits``; else nothing."""
    entry = _entry(path)
    try:
        if entry is None or not entry.is_file() or entry.stat().st_size > 64 * 1024:
            return {}
        content = json.loads(entry.read_text(encoding="utf-8"))
        same = content["file"] == _identity(path, status) and _HASH.fullmatch(content["sha256"])
        return dict(content) if same and isinstance(content.get("fits", {}), dict) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _remember(path: Path, status: os.stat_result, digest: str) -> None:
    """Keep a file's hash, unless the file changed a moment ago: within one tick of the clock it may change again and keep its times."""
    entry = _entry(path)
    if entry is None or time.time() - status.st_ctime < _SETTLED_S:
        return
    with contextlib.suppress(OSError, ValueError):
        content = {"file": _identity(path, status), "sha256": digest}
        write_atomically(entry, json.dumps(content) + "\n")
