"""What is being done, on stderr, where that is a terminal; standard output is left to what was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def live(lines: Callable[[int], Sequence[tuple[str, str]]]) -> Any:
    """A `rich.live.Live` on stderr that asks ``lines`` again and again, a moving sign before the first; what is printed
    meanwhile stands above it.

    Args:
        lines: width -> (text, style) a line; each is cut at the width that it has just now.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    spinner = Spinner("dots")

    def render() -> Group:
        width = console.width
        rows = [Text(text, style=style, no_wrap=True, overflow="ellipsis") for text, style in lines(width - 2)]
        first = Table.grid(padding=(0, 1))
        first.add_column(width=1)
        first.add_column(no_wrap=True, overflow="ellipsis")
        first.add_row(spinner, rows[0] if rows else Text(""))
        return Group(first, *rows[1:])

    return Live(get_renderable=render, console=console, transient=True, refresh_per_second=8, redirect_stdout=False)


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told how many of ``total`` are done; ``what`` is done to them, such as ``scoring``."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as display:
        bar = display.add_task(what, total=total)
        yield lambda done: display.update(bar, completed=done)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Gives what is to be told each stage as it begins, such as ``merging``; the last one stands behind a moving sign."""
    if not sys.stderr.isatty():
        yield lambda stage: None
        return
    said = [""]
    with live(lambda width: [(f"{said[0]} …", "")]):
        yield lambda stage: said.__setitem__(0, stage)
