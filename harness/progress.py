"""What is being done, on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told how many of ``total`` are done; ``what`` is done to them, such as ``scoring``."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as display:
        bar = display.add_task(what, total=total)
        yield lambda done: display.update(bar, completed=done)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Gives what is to be told each stage as it begins, such as ``merging``; the last one stands behind a spinner."""
    if not sys.stderr.isatty():
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as display:
        yield lambda stage: display.update(f"{stage} …")
