"""Standard output and error of a verb: open, and never the cause of a traceback, whatever characters they can show.

Progress goes to standard error, where that is a terminal; results go to standard output.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from harness.system.text import printable


@contextmanager
def bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Gives a function to call with (what, done, total): each ``what`` has a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    tasks: dict[str, Any] = {}
    display = Progress(
        console=Console(stderr=True), transient=True, redirect_stdout=False, disable=not sys.stderr.isatty()
    )
    with interrupted_while(lambda: next(reversed(tasks), "")), display:

        def move(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what, total=total)
            display.update(tasks[what], completed=done, total=total)

        yield move


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Gives a function to call with each stage as it begins, such as ``merging``. The last one has a spinner on stderr, where that is a
    terminal."""
    current = [""]
    spinner = _spinner(lambda: current[0]) if sys.stderr.isatty() else nullcontext()
    with interrupted_while(lambda: current[0]), spinner:
        yield lambda stage: current.__setitem__(0, stage)


def _spinner(stage: Callable[[], str]) -> Any:
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots")

    def render() -> Spinner:
        spinner.text = Text(f"{stage()} …")
        return spinner

    console = Console(stderr=True, highlight=False)
    return Live(get_renderable=render, console=console, transient=True, redirect_stdout=False)


@contextmanager
def interrupted_while(doing: Callable[[], str]) -> Iterator[None]:
    """Add to a Ctrl-C in the block what it interrupted, unless it has a message."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args or not doing():
            raise
        raise KeyboardInterrupt(f"{doing()}; repeat the command") from interrupt


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
    """Print one line on standard error, with control characters escaped; a terminal that is narrower gets it folded between words."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    with suppress(OSError):
        width = terminal_width(sys.stderr)
        print(folded(line, width=width) if width else line, file=sys.stderr, flush=True)


def folded(line: str, *, width: int) -> str:
    """A line as several of at most ``width`` columns, indented below itself; words, paths among them, stay whole."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    folding = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return folding.fill(line)


def show_text(text: str) -> None:
    """Print lines on standard output, with control characters escaped; a terminal that is narrower gets them folded between words."""
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
