"""A run that is killed with SIGKILL and started again ends bit for bit as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout"}


class Forks:
    """Starts runs in processes of their own; see `tests.harness.training.tiny`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.harness.training.tiny"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, options: dict[str, Any], *, kill_at: str = "") -> list[str]:
        """What the run printed; it is killed as soon as it prints a line that starts with ``kill_at``."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(options) + "\n")
        self.server.stdin.flush()
        pid, killed, printed = 0, False, []
        for line in self.server.stdout:
            if line.startswith("pid "):
                pid = int(line.split()[1])
            if line.startswith("ended "):
                assert int(line.split()[1]) == (-signal.SIGKILL if kill_at else 0), printed
                return printed
            printed.append(line.strip())
            if kill_at and not killed and line.startswith(kill_at):
                os.kill(pid, signal.SIGKILL)
                killed = True
        raise AssertionError("the server died")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.server.communicate()


@pytest.mark.parametrize(
    ("method", "config", "every_step"),
    [
        pytest.param("lora", {}, True, id="lora, a checkpoint each step"),
        pytest.param("naslora", STAGEWISE, True, id="naslora: batch norm, two optimisers, held-out part"),
        pytest.param("naslora", STAGEWISE, False, id="naslora, repeating steps since the epoch's end"),
        pytest.param("convlora", {}, True, id="convlora: noise"),
    ],
)
def test_killed_at_several_steps_ends_bit_identical(
    forks: Forks, tmp_path: Path, method: str, config: dict[str, Any], every_step: bool
) -> None:
    rules = {"checkpoint_minutes": 1e-9 if every_step else 60.0}
    if method == "lora":
        rules |= {"batch_size": 1, "accumulate": 2}
    options = {"method": method, "config": config, "rules": rules}
    alone = json.loads(forks.run({**options, "folder": str(tmp_path / "alone")})[-1])

    killed = {**options, "folder": str(tmp_path / "killed")}
    for line in ("step 1 1", "step 2 2", "epoch 2", "step 3 1"):
        forks.run(killed, kill_at=line)
    *lines, result = forks.run(killed)

    assert any(line.startswith("note") and "continues in epoch" in line for line in lines)
    assert json.loads(result) == alone
    assert len(alone["history"]) == 3
