"""Runs in processes of their own, started by one server, so that each need not import everything again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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

    def run(self, options: dict[str, Any], *, kill_at: str = "") -> list[str]:
        """What a run printed; it is killed as soon as it prints a line that starts with ``kill_at``."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(options) + "\n")
        self.server.stdin.flush()
        printed: list[str] = []
        killed = False
        for line in self.server.stdout:
            if line.startswith("pid "):
                pid = int(line.split()[1])
            elif line.startswith("ended "):
                assert int(line.split()[1]) == (-signal.SIGKILL if kill_at else 0), printed
                return printed
            else:
                printed.append(line.strip())
            if kill_at and not killed and line.startswith(kill_at):
                os.kill(pid, signal.SIGKILL)
                killed = True
        raise AssertionError("the server died")
