"""What moves on a terminal is gone when it ends, and Ctrl-C says what it interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from harness.system.streams import Live, counter, stages
from tests.terminals import Terminal, screen_of
from tests.values import wait_until


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called by the test itself: what a fixture puts in the place of stderr, pytest takes away."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr("harness.system.streams.REDRAWN_EVERY_S", 0.002)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return made


def interrupted(within: AbstractContextManager[Callable[[Any], None]], said: Any, *reason: str) -> str:
    """What a Ctrl-C says that comes once ``said`` was told, and shown where stderr is a terminal."""
    try:
        with within as tell:
            tell(said)
            if isinstance(terminal := sys.stderr, Terminal) and isinstance(said, str):
                wait_until(lambda: said in terminal.getvalue())
            raise KeyboardInterrupt(*reason)
    except KeyboardInterrupt as interrupt:
        return str(interrupt)


def test_ctrl_c_clears_the_moving_line_and_says_what_was_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    assert interrupted(stages(), "merging the weights") == "merging the weights; give the same command again"
    assert not any(line.strip() for line in screen_of(terminal.getvalue()))


def test_a_second_ctrl_c_while_the_line_goes_leaves_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def again() -> None:
        raise KeyboardInterrupt

    terminal = on_terminal(monkeypatch)
    shown = Live(lambda width: [("merging the weights …", "")])
    shown.__enter__()
    wait_until(lambda: "merging the weights" in terminal.getvalue())
    monkeypatch.setattr(shown._thread, "join", again)
    with pytest.raises(KeyboardInterrupt):
        shown.__exit__()
    assert not any(line.strip() for line in screen_of(terminal.getvalue()))


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_among_files_says_what_was_done_to_them(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if terminal:
        on_terminal(monkeypatch)
    assert interrupted(counter("scoring", 3), 1) == "scoring; give the same command again"


def test_a_reason_that_is_known_already_stays_and_nothing_is_made_up() -> None:
    assert interrupted(stages(), "merging", "stopped at step 3") == "stopped at step 3"
    assert interrupted(stages(), "") == ""
