"""What a cost measurement is of: the methods, the rules, the device and the clock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from harness.costing.device import CLOCKS
from harness.models.decoder_shape import Task
from harness.protocols.card import Protocol
from harness.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A method to measure: canonical name, configuration, what tables call it, and the options that differ from the card's."""

    method: str
    config: Any
    variant: str
    changed: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class Session:
    """What to measure.

    Args:
        rows: the methods, in the order in which they take turns.
        backbone: name in the catalogue.
        checkpoint: its weights, None for random ones; cost hardly depends on them.
        protocol: the rules, with image size and batch size.
        task, num_classes: of the benchmark that is stood for.
        rounds: measured rounds.
        device: where.
        baselines: variants to which the ratios of all others are wanted, as far as they are among ``rows``.
        seed: of weights and methods.
        shared: who else uses the device, in words.
        clock: ``wall``, or ``processor`` for a CPU that others use as well.

    Raises:
        UsageError: two rows have one name, or the clock does not fit the device.
    """

    rows: Sequence[Measured]
    backbone: str
    checkpoint: Path | None
    protocol: Protocol
    task: Task = "binary"
    num_classes: int = 2
    rounds: int = 9
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    baselines: Sequence[str] = ("full", "lora")
    seed: int = 0
    shared: str = ""
    clock: Literal["wall", "processor"] = "wall"

    def __post_init__(self) -> None:
        names = [row.variant for row in self.rows]
        if len(set(names)) < len(names):
            raise UsageError(f"two of {', '.join(names)} have one name; give their options in brackets")
        CLOCKS[self.clock](self.device)
