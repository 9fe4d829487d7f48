"""A session of cost measurements: the methods, the rules, the device and the clock, and the roster of the methods that are still in
it. A method that fails is dropped with its reason, and the others are measured on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from harness.costing.contestant import Contestant
from harness.costing.device import CLOCKS
from harness.experiment.failure import one_line, reason_code
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


class Roster:
    """The subjects of a session by variant, in the order in which they take turns.

    Args:
        report: is told who is dropped.

    ``dropped`` holds the reason of everyone who is no longer in it.
    """

    def __init__(self, *, report: Callable[[str], None]) -> None:
        self.subjects: dict[str, Contestant] = {}
        self.dropped: dict[str, str] = {}
        self._report = report

    def __iter__(self) -> Iterator[tuple[str, Contestant]]:
        """Everyone who is in; safe against drops on the way."""
        for variant in list(self.subjects):
            yield variant, self.subjects[variant]

    @contextmanager
    def turn(self, variant: str) -> Iterator[None]:
        """Around a turn of ``variant``: whatever goes wrong there drops it and frees what it held.

        Raises:
            UsageError: the command itself is wrong, for all methods.
        """
        try:
            yield
        except UsageError:
            raise
        except Exception as error:  # a method's code may raise anything, and the others' measurements are worth keeping
            self.dropped[variant] = why(error)
        if variant not in self.dropped:
            return
        self._report(f"{variant} is dropped: {self.dropped[variant]}")
        if subject := self.subjects.pop(variant, None):
            subject.close()
        del subject
        release()

    def require_some(self) -> None:
        """Raises UsageError if nobody is left."""
        if not self.subjects:
            reasons = "; ".join(f"{variant}: {reason}" for variant, reason in self.dropped.items())
            raise UsageError(f"no method could be measured ({reasons})")

    def close(self) -> None:
        for subject in self.subjects.values():
            subject.close()


def why(error: Exception) -> str:
    """``OOM: …`` or ``ERROR: …``, one line."""
    return f"{reason_code(error)}: {one_line(error)}"


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
