"""What every verb shares: errors become one line and exit code 2, never a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Protocol

from datasets.base import DatasetError
from harness.errors import UsageError
from methods.placement import MethodError


class Main(Protocol):
    """What a verb's ``main`` is: arguments, or those of the command line, to an exit code."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def verb(main: Callable[[list[str] | None], int]) -> Main:
    """Decorate a verb's ``main``: user errors print ``error: …`` and return 2, Ctrl-C returns 130, a closed pipe is quiet."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (UsageError, MethodError, DatasetError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as interrupt:
            print(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    return wrapped
