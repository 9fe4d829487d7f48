"""Which code is running: what a record and a sweep say of it."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

import harness

PACKAGES = ("methods", "datasets", "harness")  # the folders of a clone


@functools.cache
def code_version() -> dict[str, str]:
    """``commit`` and ``dirty`` (hash of the uncommitted changes, empty if there are none) of the tree that is running now; both empty
    outside a checkout, such as in a snapshot: a sweep's records get those of its submission."""
    root = Path(str(harness.__file__)).parents[1]

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD").strip()
    changes = git("diff", "HEAD", "--", *PACKAGES) if commit else ""
    return {"commit": commit, "dirty": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""}
