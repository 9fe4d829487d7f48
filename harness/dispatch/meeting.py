"""Where the processes of one run on several GPUs find each other."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.check import read_as
from harness.system.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a meeting's file holds: names of environment variables; empty where it was called off."""

    MASTER_ADDR: str = ""
    MASTER_PORT: str = ""


class Meeting:
    """A file that rank 0 writes once it has the lease, and the others wait for.

    Args:
        path: a file of this job and restart.
        size: number of processes.
    """

    def __init__(self, path: Path, *, size: int) -> None:
        self.path = path
        self.size = size

    def open(self) -> dict[str, str]:
        """Choose a port and tell the others; returns rank 0's environment variables."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        address = "127.0.0.1" if os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1" else socket.gethostname()
        write_atomically(self.path, json.dumps({"MASTER_ADDR": address, "MASTER_PORT": str(port)}))
        return self.variables(rank=0, local_rank=0)

    def call_off(self) -> None:
        """The run does not start; nobody need wait."""
        write_atomically(self.path, "{}")

    def variables(self, *, rank: int, local_rank: int) -> dict[str, str]:
        """The environment variables of one process, empty where the run was called off.

        Raises:
            FileNotFoundError: rank 0 has not decided yet.
        """
        place = read_as(self.path, _Place)
        if not place.MASTER_PORT:
            return {}
        return {**asdict(place), "RANK": str(rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(self.size)}
