"""Which checkpoint a file is: a hash of every byte, and which backbones it is known to fit. Free of torch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from harness.system.errors import UsageError
from harness.system.files import write_atomically
from harness.system.hashes import file_hashes
from harness.system.machine import user_cache

PREFIX = "sha256-"


def fingerprint(path: Path) -> str:
    """``sha256-`` and 64 hex digits of the whole file, the same in every folder. The file is read once (`file_hashes`).

    Raises:
        UsageError: it cannot be read, is not a file, or changes while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"checkpoint {path} is not a file; give the path of a .pth or .safetensors file")
        return PREFIX + file_hashes([path], what=str(path))[path]
    except OSError as error:
        reason = error.strerror
        raise UsageError(f"checkpoint {path} cannot be read ({reason}); give the path of a file you have") from error


def checked_fingerprint(path: Path, backbone: str, check: Callable[[], None]) -> str:
    """`fingerprint` of a file that fits a backbone.

    Args:
        check: raises where it does not fit; not called where this code found before that the file does.
    """
    digest = fingerprint(path)
    if known_to_fit(digest, backbone):
        return digest
    check()
    if (after := fingerprint(path)) == digest:  # else it changed meanwhile
        remember_fit(digest, backbone)
    return after


def known_to_fit(digest: str, backbone: str) -> bool:
    """Whether this code found, by `remember_fit`, that the file of this fingerprint fits a backbone."""
    return (mark := _mark(digest, backbone)) is not None and mark.is_file()


def remember_fit(digest: str, backbone: str) -> None:
    """Remember that the file of this fingerprint fits a backbone, so that later plans need not import torch to see it."""
    if (mark := _mark(digest, backbone)) is not None:
        with contextlib.suppress(OSError):
            write_atomically(mark, f"{digest} {backbone}\n")


def _mark(digest: str, backbone: str) -> Path | None:
    folder = user_cache()
    name = hashlib.sha256(f"{digest} {backbone} {_judge()}".encode()).hexdigest()[:32]
    return None if folder is None else folder / "fits" / name


@functools.cache
def _judge() -> str:
    """The code that says whether a checkpoint fits, and timm's release, whose models may change: another may say otherwise."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    versions = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps([versions, version("timm")]).encode()).hexdigest()[:16]
