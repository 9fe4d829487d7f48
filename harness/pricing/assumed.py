"""What is assumed of a device that no record tells of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.archive.schema import Record

PROCESS_BYTES = 0.44 * 2**30
"""Resident memory of a process that has imported all that a run needs and computed nothing, measured once with
torch 2.13 for CPUs. A GPU's peak does not count it."""
START_SECONDS, UPDATE_SECONDS = 4.4, 0.03
"""Processor time of a process before its first update, and of an update beside its operations; measured once, on the
card ``demo`` with one thread, where nothing else is left."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is assumed of a device that no record tells of.

    Args:
        name: for the plan.
        kind: records made on the other kind of device say nothing of this one.
        flops: operations a second that training reaches, by precision.
        process_bytes: what a process takes of the memory that counts before it holds a model.
        start_seconds, update_seconds: what a run and an update take besides their operations.
        model: as records name it (`Record.environment`), empty where nobody knows; records of another say less.
        threads: of one run on a CPU.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    flops: Mapping[str, float]
    process_bytes: float = 0.0
    start_seconds: float = 0.0
    update_seconds: float = 0.0
    model: str = ""
    threads: int = 0

    def made(self, record: Record) -> bool:
        on_cpu = record.environment.get("device", "cpu").lower().startswith("cpu")
        return on_cpu == (self.kind == "cpu")

    def same(self, record: Record) -> bool:
        """Whether a record was made on a machine like this one, with as many threads."""
        machine = record.environment
        threads = self.kind == "gpu" or machine.get("threads") in (None, str(self.threads))
        return not self.model or (machine.get("device") == self.model and threads)


GPU = Device(name="an 80 GB data-centre GPU", kind="gpu", flops={"fp32": 3e13, "bf16": 8e13, "fp16": 8e13})


def cpu(cores: int) -> Device:
    """What is assumed of a run that has so many CPU cores."""
    flops = {"fp32": 4.5e10 * cores, "bf16": 7.5e10 * cores, "fp16": 4.5e10 * cores}
    name = "1 CPU core" if cores == 1 else f"{cores} CPU cores"
    return Device(
        name=name,
        kind="cpu",
        flops=flops,
        process_bytes=PROCESS_BYTES,
        start_seconds=START_SECONDS,
        update_seconds=UPDATE_SECONDS,
        threads=cores,
    )
