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
    """``commit`` and ``dirty`` (hash of the uncommitted changes, empty if there are none) of the clone that is running now; both empty
    outside one, such as in a snapshot: a sweep's records get those of its submission. A repository further up, which others may have
    put there, is not asked, and in our own git runs nothing but itself."""
    root = Path(str(harness.__file__)).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD").strip() if (root / ".git").exists() else ""
    changes = git("diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", *PACKAGES) if commit else ""
    return {"commit": commit, "dirty": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else ""}
