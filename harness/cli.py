"""What every verb shares: errors become one line and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from harness.datasets.base import DatasetError
from harness.errors import REASONS, UsageError, os_reason
from harness.methods.parts.placement import MethodError
from harness.streams import lost_output, open_streams, say

DEBUG = "--debug"
_FREE_SPACE = "; free space or choose another folder, then give the same command again"
_DENIED = "; let its owner give you access, or choose another"
_ADVICE = {errno.ENAMETOOLONG: "", errno.EACCES: _DENIED, errno.EPERM: _DENIED}


class Main(Protocol):
    """What a verb's ``main`` is: arguments, or those of the command line, to an exit code."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def verb(main: Callable[[list[str] | None], int]) -> Main:
    """Decorate a verb's ``main``.

    User errors print ``error: …`` and return 2. So does any other exception, and its traceback goes to a file; with
    ``--debug`` among the arguments it is raised instead. Ctrl-C returns 130, SIGTERM and SIGHUP do what it does and
    return 143 and 129. A closed pipe is quiet; output that cannot be written is an error.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        words = sys.argv[1:] if argv is None else argv
        with _ended_as_by_ctrl_c() as received:
            try:
                open_streams()
                code = _run(main, [word for word in words if word != DEBUG])
            except (UsageError, MethodError, DatasetError) as error:
                code = _error(str(error))
            except KeyboardInterrupt as interrupt:
                say(f"interrupted: {interrupt}" if str(interrupt) else "interrupted")
                code = 128 + (received[-1] if received else signal.SIGINT)
            except BrokenPipeError:
                code = 0
            except Exception as error:
                if DEBUG in words:
                    raise
                code = _error(_last_resort(error))
            lost = lost_output()
        if lost is None or isinstance(lost, BrokenPipeError):
            return code
        return _error(f"standard output cannot be written: {os_reason(lost)}") if code == 0 else code

    return wrapped


def _run(main: Callable[[list[str] | None], int], words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse: --help, or a mistake in the arguments
        if lost := lost_output():
            raise lost from None
        raise end


def _error(text: str) -> int:
    say(f"error: {text}")
    return 2


def _last_resort(error: Exception) -> str:
    """One line about what nobody foresaw, with where its traceback is."""
    if isinstance(error, OSError) and error.errno in {*REASONS, *_ADVICE}:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os_reason(error)}{_ADVICE.get(error.errno, _FREE_SPACE)}"
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="harness-", suffix=".traceback", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    except OSError:
        return f"{text}; give {DEBUG} as well to see where"
    return f"{text}; this was not foreseen: the traceback is in {file.name} ({DEBUG} prints it)"


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP do what Ctrl-C does at that moment; gives the list of those that came.

    What is ignored stays ignored (``nohup``), what has a handler keeps it, and forked processes end as they always did.
    """
    received: list[int] = []
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        asked = signal.getsignal(signal.SIGINT)
        if not callable(asked):  # a shell's background job has Ctrl-C ignored
            raise KeyboardInterrupt
        asked(number, frame)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield received
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
