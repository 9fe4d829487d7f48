"""What moves on a terminal is gone when it ends, and Ctrl-C says what it interrupted."""

from __future__ import annotations

import sys
import time

import pytest

from harness.progress import Live, counter, stages
from tests.terminals import Terminal, screen_of


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called by the test itself: what a fixture puts in the place of stderr, pytest takes away."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr("harness.progress.REDRAWN_EVERY_S", 0.002)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return made


def wait_for(words: str, terminal: Terminal) -> None:
    deadline = time.monotonic() + 20
    while words not in terminal.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_ctrl_c_clears_the_moving_line_and_says_what_was_being_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="^merging the weights; give the same command again$"), stages() as tell:
        tell("merging the weights")
        wait_for("merging the weights", terminal)
        raise KeyboardInterrupt
    assert not any(line.strip() for line in screen_of(terminal.getvalue()))


def test_a_second_ctrl_c_while_the_line_goes_leaves_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    shown = Live(lambda width: [("merging the weights …", "")])

    def again() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), shown:
        wait_for("merging the weights", terminal)
        monkeypatch.setattr(shown._thread, "join", again)
    assert not any(line.strip() for line in screen_of(terminal.getvalue()))


def test_ctrl_c_among_files_says_what_was_done_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="^scoring; give"), counter("scoring", 3) as count:
        count(1)
        raise KeyboardInterrupt


@pytest.mark.parametrize("said", ["", "merging"])
def test_a_reason_that_is_known_already_stays_and_nothing_is_made_up(said: str) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, stages() as tell:
        tell(said)
        raise KeyboardInterrupt(*(["stopped at step 3"] if said else []))
    assert caught.value.args == (("stopped at step 3",) if said else ())
