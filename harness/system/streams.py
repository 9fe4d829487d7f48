"""Standard output and standard error of a verb: always open, and never the cause of a traceback, whatever characters they can show.

Messages for people go to standard error, results to standard output.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from harness.system.text import printable


def open_streams() -> None:
    """Make both streams safe to write to, whatever characters they can show; output to closed ones is dropped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal of a stream; 0 where there is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else 0


def say(text: str) -> None:
    """Print one line on standard error, with control characters escaped; for a narrower terminal it is folded between words."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    with suppress(OSError):
        width = terminal_width(sys.stderr)
        print(folded(line, width=width) if width else line, file=sys.stderr, flush=True)


def folded(line: str, *, width: int) -> str:
    """A line folded into lines of at most ``width`` columns, the later ones indented; words, including paths, stay whole."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    folding = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return folding.fill(line)


def show_text(text: str) -> None:
    """Print lines on standard output, with control characters escaped; for a narrower terminal they are folded between words."""
    width = terminal_width(sys.stdout)
    lines = printable(text).removesuffix("\n").split("\n")
    print("\n".join(folded(line, width=width) if width else line for line in lines))


def say_skipped(problems: Mapping[Path, str]) -> None:
    """Print a line for every file that does not count, with the reason."""
    for path, reason in problems.items():
        say(f"skipped: {path}: {reason}")


def lost_output() -> OSError | None:
    """Why printed output could not be written, None if it was; further output is then dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # ValueError: a test's stand-in without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
        return error
    except ValueError:  # it is closed
        return None
    return None
