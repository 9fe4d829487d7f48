"""Runs in processes of their own, started by one server, so that each need not import everything again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.values import REPOSITORY


class Forks:
    """Starts runs in processes of their own; see `tests.harness.training.tiny`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.harness.training.tiny"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True)

    def close(self) -> None:
        self.server.communicate()

    def run(self, *options: dict[str, Any], kill_at: str = "") -> list[str]:
        """What the runs printed, which go on at once; the first is killed as soon as it prints a line that starts with
        ``kill_at``, and then the others may fail."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(options) + "\n")
        self.server.stdin.flush()
        pids: list[int] = []
        printed: list[str] = []
        killed = False
        for line in self.server.stdout:
            if line.startswith("pid "):
                pids.append(int(line.split()[1]))
            elif line.startswith("ended "):
                first, *others = map(int, line.split()[1:])
                assert first == (-signal.SIGKILL if kill_at else 0), printed
                assert kill_at or not any(others), printed
                return printed
            else:
                printed.append(line.strip())
            if kill_at and not killed and line.startswith(kill_at):
                os.kill(pids[0], signal.SIGKILL)
                killed = True
        raise AssertionError("the server died")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_pair(forks: Forks, options: dict[str, Any], *, kill_at: str = "") -> list[str]:
    """Both workers of a run; returns what the first printed. The second has another folder, which it must not use."""
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    folder = Path(options["folder"])
    workers = [
        {**options, "folder": str(own), "environment": {**address, "RANK": str(rank)}}
        for rank, own in enumerate((folder, folder / "second"))
    ]
    printed = forks.run(*workers, kill_at=kill_at)
    assert not (folder / "second").exists()
    return printed
