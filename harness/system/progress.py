"""What is being done, on stderr, where that is a terminal; standard output is left to what was asked for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

REDRAWN_EVERY_S = 0.125


class Live:
    """Lines on stderr that are drawn again and again, a moving sign before the first; what is printed meanwhile stands above.

    Args:
        lines: width -> (text, style) a line; each is cut at the width that the terminal has just now.
    """

    def __init__(self, lines: Callable[[int], Sequence[tuple[str, str]]]) -> None:
        from rich.live import Live as RichLive
        from rich.spinner import Spinner

        self._lines, self._spinner = lines, Spinner("dots")
        self.console = _gated_console()
        self._live = RichLive(
            get_renderable=self._render, console=self.console, transient=True, auto_refresh=False, redirect_stdout=False
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)

    def __enter__(self) -> Live:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        try:
            self._thread.join()
        finally:  # of a second Ctrl-C too: the lines go
            self._live.stop()

    def _redraw(self) -> None:
        while not self._done.wait(REDRAWN_EVERY_S):
            with self.console:
                self._live.refresh()

    def _render(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = [
            Text(text, style=style, no_wrap=True, overflow="ellipsis")
            for text, style in self._lines(self.console.width - 2)
        ]
        first = Table.grid(padding=(0, 1))
        first.add_column(width=1)
        first.add_column(no_wrap=True, overflow="ellipsis")
        first.add_row(self._spinner, rows[0] if rows else Text(""))
        return Group(first, *rows[1:])


def _gated_console() -> Any:
    """A console on stderr that prints one thing at a time: rich works out how many lines it draws over before it writes, and
    what another thread drew between the two would take a printed line with it."""
    from rich.console import Console

    class GatedConsole(Console):
        def __init__(self) -> None:
            self._gate = threading.RLock()
            super().__init__(stderr=True, highlight=False)

        def __enter__(self) -> Console:
            self._gate.acquire()
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            try:
                super().__exit__(*error)
            finally:
                self._gate.release()

    return GatedConsole()


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told how many of ``total`` are done; ``what`` is done to them, such as ``scoring``."""
    if not sys.stderr.isatty():
        with interrupted_while(lambda: what):
            yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with (
        interrupted_while(lambda: what),
        Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as display,
    ):
        bar = display.add_task(what, total=total)
        yield lambda done: display.update(bar, completed=done)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Gives what is to be told each stage as it begins, such as ``merging``; the last one stands behind a moving sign."""
    said = [""]
    shown = Live(lambda width: [(f"{said[0]} …", "")]) if sys.stderr.isatty() else nullcontext()
    with interrupted_while(lambda: said[0]), shown:
        yield lambda stage: said.__setitem__(0, stage)


@contextmanager
def interrupted_while(doing: Callable[[], str]) -> Iterator[None]:
    """A Ctrl-C in here says what it interrupted, unless it says so already."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args or not doing():
            raise
        raise KeyboardInterrupt(f"{doing()}; give the same command again") from interrupt
