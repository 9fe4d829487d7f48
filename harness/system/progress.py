"""The progress of a command, on standard error where that is a terminal: bars, and a spinner with the name of the stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, TaskID
from rich.spinner import Spinner
from rich.text import Text


@contextmanager
def bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function to call with (what, done, total); each ``what`` has a bar on stderr, where that is a terminal."""
    tasks: dict[str, TaskID] = {}
    display = Progress(
        console=Console(stderr=True), transient=True, redirect_stdout=False, disable=not sys.stderr.isatty()
    )
    with display:

        def move(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what, total=total)
            display.update(tasks[what], completed=done, total=total)

        yield move


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """Yields a function to call with each stage as it begins, such as ``merging``. The current stage has a spinner on stderr, where that
    is a terminal."""
    current, drawn = [""], Spinner("dots")

    def render() -> Spinner:
        drawn.text = Text(f"{current[0]} …")
        return drawn

    console = Console(stderr=True, highlight=False)
    live = Live(get_renderable=render, console=console, transient=True, redirect_stdout=False)
    with live if sys.stderr.isatty() else nullcontext():
        yield lambda stage: current.__setitem__(0, stage)
