"""A session of cost measurements: the methods, the rules, the device and the clock, and the roster of the methods that are still in
it. A method that fails is dropped with its reason, and the others are measured on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from harness.costing.contestant import Contestant
from harness.costing.device import CLOCKS
from harness.experiment.environment import one_line, reason_code
from harness.models.decoder_shape import Task
from harness.planning.request import Variant
from harness.planning.rows import MethodRow, method_row
from harness.protocols.card import Protocol
from harness.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Session:
    """What to measure.

    Args:
        rows: the methods, in the order in which they take turns.
        checkpoint: its weights, None for random ones; cost hardly depends on them.
        protocol: the rules, with image size and batch size.
        task, num_classes: of the benchmark that is stood for.
        baselines: variants to which the ratios of all others are wanted, as far as they are among ``rows``.
        seed: of weights and methods.
        shared: who else uses the device, in words.
        clock: ``wall``, or ``processor`` for a CPU that others use as well.

    Raises:
        UsageError: two rows have one name, or the clock does not fit the device.
    """

    rows: Sequence[MethodRow]
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
        names = [row.label for row in self.rows]
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
        """A context for a turn of ``variant``: whatever goes wrong in it drops the variant and frees what it held.

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


def baselines_among(
    rows: Sequence[MethodRow],
    entries: Sequence[Variant],
    *,
    protocol: Protocol,
    overrides: Mapping[str, Mapping[str, Any]],
    backbone: str,
) -> tuple[list[str], list[str]]:
    """Variants among ``rows`` that ``entries`` name, and the names of entries that are not there.

    An entry is the row of its name, else those with its very configuration, else, without options, every row of its
    method.

    Raises:
        UsageError, MethodError: as `method_row`.
    """
    chosen: list[str] = []
    absent: list[str] = []
    for entry in entries:
        asked = method_row(entry, protocol, overrides, backbone)
        fitting = (
            [row.label for row in rows if row.label == asked.label]
            or [row.label for row in rows if (row.method, row.config) == (asked.method, asked.config)]
            or [row.label for row in rows if row.method == asked.method and not entry.options]
        )
        chosen += [name for name in fitting if name not in chosen]
        absent += [] if fitting else [asked.label]
    return chosen, absent
