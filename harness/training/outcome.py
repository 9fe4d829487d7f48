"""The ways in which training ends: the choice of an epoch, a stop, or an error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from harness.archive.schema import Code
from harness.evaluation.conventions import higher_is_better


class Diverged(RuntimeError):
    """The loss or a gradient is not finite."""

    code: ClassVar[Code] = "DIVERGED"


class Blank(RuntimeError):
    """The trained model predicts background alone in every test image: its scores mean nothing."""

    code: ClassVar[Code] = "BLANK"


class Interrupted(RuntimeError):
    """A stop was requested; the checkpoint is written and the same call continues from it."""


class StopRequest:
    """A flag that a signal handler sets; the loop finishes its update, writes a checkpoint and raises `Interrupted`."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        self.requested = True


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rule that chooses the best epoch on validation.

    Args:
        metric: a name among those that ``validate`` returns.
    """

    metric: str

    def improves(self, value: float, best: float | None) -> bool:
        """Whether ``value`` beats ``best``; ties keep the earlier epoch, and a value that is not a number never wins."""
        if best is None or math.isnan(best):
            return True
        return value > best if higher_is_better(self.metric) else value < best
