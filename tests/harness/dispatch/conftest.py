"""Stand-ins for SLURM's clients."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Puts a shell script in place of one of SLURM's clients: ``client(name, script)``.

    Otherwise the PATH holds only what scripts are written with, so that a test that forgets one fails where SLURM is
    installed, too.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("cat", "cp", "dirname", "env", "git", "grep", "head", "stat", "touch", "wc"):
        if program := shutil.which(tool):
            (folder / tool).symlink_to(program)
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


@pytest.fixture
def idle_cluster(client):
    """A cluster that knows no job; a test adds the clients that matter to it."""
    for name in ("squeue", "srun"):
        client(name, "true")
    return client
