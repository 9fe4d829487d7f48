"""Standard output and error as a verb needs them: open, never the cause of a traceback, whatever characters they can show."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from harness.system.errors import UsageError

PLAIN = {
    "±": "+-",
    "–": "-",
    "—": "-",
    "…": "...",
    "·": "*",
    "×": "x",
    "→": "->",
    "≡": "==",
    "²": "^2",
    "α": "alpha",
    "β": "beta",
    **{"Δ": "delta", "φ": "phi", "ω": "omega", "Σ": "sum", "−": "-", "≈": "~", "↑": "^", "↓": "v", "†": "+", "‡": "++"},
}
"""For a terminal or a file that is ASCII; what is not here is written as an escape."""


def open_streams() -> None:
    """Make both streams safe to write to.

    A file that is opened later must not become descriptor 1 or 2, or what is printed would go into it.

    Raises:
        UsageError: standard output is closed: what was asked for could not be shown.
    """
    closed = sys.stdout is None
    for number in range(3):
        _occupy(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    if closed:
        raise UsageError("standard output is closed; send it to a file, or to /dev/null")


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal behind a stream; 0 where there is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else 0


def say(text: str) -> None:
    """One line on standard error, without what a terminal would obey; nobody may be there to read it. A terminal that is
    narrower gets it folded between words."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    with contextlib.suppress(OSError):
        width = terminal_width(sys.stderr)
        print(folded(line, width=width) if width else line, file=sys.stderr, flush=True)


def folded(line: str, *, width: int) -> str:
    """A line as several of at most ``width`` columns; words, paths among them, stay whole."""
    folding = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return folding.fill(line)


def say_skipped(problems: Mapping[Path, str]) -> None:
    """A line for every file that does not count, with the reason."""
    for path, reason in problems.items():
        say(f"skipped: {path}: {reason}")


def lost_output() -> OSError | None:
    """Why what was printed cannot be written, None if it was; where it cannot, nothing more is tried."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a test's stand-in without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
        return error
    except ValueError:  # closed by somebody
        return None
    return None


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end
