"""The ways in which training ends early: an error, or a stop."""

from __future__ import annotations

from typing import ClassVar

from harness.archive.schema import Code


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
