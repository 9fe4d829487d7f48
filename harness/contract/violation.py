"""How a clause says that it is broken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.methods.parts.placement import MethodError


class Violation(AssertionError):
    """A method breaks a clause; the message says which value was seen."""


def require(truth: bool, message: str) -> None:  # noqa: FBT001 - reads like an assertion
    """Raise `Violation` with ``message`` unless ``truth``."""
    if not truth:
        raise Violation(message)


@contextmanager
def must_refuse(message: str) -> Iterator[None]:
    """The code inside must raise `MethodError`; ``message`` says what is wrong if it does not."""
    try:
        yield
    except MethodError:
        return
    raise Violation(message)


def first(names: Iterable[str]) -> str:
    """One name for a message, the same one every time."""
    return min(names, default="nothing")
