"""Signals as a terminal's foreground process gets them, wherever the suite runs."""

from __future__ import annotations

import signal


def as_in_a_terminal() -> None:
    """For ``preexec_fn``: a suite in a shell's background (``nohup make test &``) has Ctrl-C and hang-up ignored, and its
    children inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
