"""Who is still in a session: a method that fails is dropped with its reason, and the others are measured on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.costing.contestant import Contestant
from harness.experiment.failure import one_line, reason_code
from harness.system.errors import UsageError


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
