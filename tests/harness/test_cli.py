"""What every verb shares: one line instead of a traceback, whatever happens to it or to its output."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from harness.cli.command import verb
from harness.cli.tables import main as tables
from harness.experiment.environment import reason_code
from harness.system.streams import Live, counter, stages
from tests.signals import as_in_a_terminal
from tests.terminals import Terminal, screen_of
from tests.values import REPOSITORY, on_linux, wait_until

VERB = """
import os, signal, sys, time
from harness.cli.command import verb

@verb
def main(argv=None):
    if argv == ["show"]:
        print("α ± 2 █▁│ ✓ \\udcff")
    if argv == ["fail"]:
        raise ZeroDivisionError("by\\nzero")
    if argv == ["wait"]:
        print("ready", flush=True)
        time.sleep(30)
    return 0

sys.exit(main())
"""


def command(*words: str, **variables: str) -> dict[str, Any]:
    """Arguments for `subprocess`; output is buffered as it is for users."""
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONUNBUFFERED", None)
    return {"args": [sys.executable, *words], "env": environment, "text": True, "encoding": "utf-8", "cwd": REPOSITORY}


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    arguments = command(*words)
    arguments["args"] = ["sh", "-c", line, "sh", *arguments["args"]]
    return subprocess.run(**arguments, capture_output=True, check=False)


def raising(error: Exception) -> Callable[[list[str] | None], int]:
    @verb
    def main(argv: list[str] | None = None) -> int:
        raise error

    return main


def test_an_exception_that_nobody_foresaw_is_one_line_and_its_traceback_a_file(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert raising(ZeroDivisionError("by\nzero \x1b[2J"))([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: ZeroDivisionError: by zero \x1b[2J; this was not foreseen: the traceback is in ")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in line
    assert "raise error" in kept.read_text()


def test_debug_raises_it() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())(["--debug"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("x" * 200), f"ZeroDivisionError: {'x' * 200}; "),
        (ZeroDivisionError("x" * 201), f"ZeroDivisionError: {'x' * 200}…; "),
        (MemoryError("x" * 201), f": {'x' * 200}\n"),
    ],
)
def test_where_no_traceback_can_be_kept_the_line_stays_and_is_cut(error, said, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert raising(error)([]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert ("--debug" in told) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "give you access"),
    ],
)
def test_what_the_disk_refuses_is_called_what_it_is(number: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(number, os.strerror(number), "/there"))([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /there: ")
    assert said in line


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 786432 bytes."),
        ImportError("libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_want_of_memory_is_called_that(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error)([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ulimit -v" in line
    assert "foreseen" not in line
    assert reason_code(error) == "OOM"


@on_linux
@pytest.mark.parametrize(
    "words", [("-m", "harness.run", "--help"), ("-u", "-m", "harness.run", "--help"), ("-c", VERB, "show")]
)
def test_full_output_is_an_error(words: tuple[str, ...]) -> None:
    done = shell('"$@" > /dev/full', *words)
    assert done.returncode == 2
    assert re.fullmatch("error: (standard output cannot be written: )?the disk is full.*\n", done.stderr)


@pytest.mark.parametrize("words", [("-m", "harness.run", "--help"), ("-c", VERB, "wait")])
def test_closed_output_is_an_error_before_anything_starts(words: tuple[str, ...]) -> None:
    done = shell('"$@" >&-', *words)
    assert done.returncode == 2
    assert done.stderr == "error: standard output is closed; send it to a file, or to /dev/null\n"


def test_closed_errors_and_a_reader_that_left_are_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = shell('"$@" 2>&-', "-c", VERB, "fail")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = shell('"$@" | true', "-c", VERB, "show")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", ["harness.run", "harness status"])
def test_help_is_shown_in_ascii(words: str) -> None:
    ascii_only = command("-m", *words.split(), "--help", PYTHONIOENCODING="ascii")
    done = subprocess.run(**ascii_only, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def with_ctrl_c_ignored() -> None:
    """As a background job has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "begun"),
    [
        (signal.SIGINT, as_in_a_terminal),
        (signal.SIGTERM, as_in_a_terminal),
        (signal.SIGHUP, as_in_a_terminal),
        (signal.SIGTERM, with_ctrl_c_ignored),
    ],
)
def test_every_way_to_end_a_verb_says_what_ctrl_c_says(number: int, begun: Callable[[], None]) -> None:
    with subprocess.Popen(
        **command("-c", VERB, "wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=begun
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        error = process.communicate(timeout=30)[1]
    assert (process.returncode, error) == (128 + number, "interrupted\n")


def test_nohup_stays_in_force_and_handlers_are_put_back() -> None:
    during: list[Any] = []

    @verb
    def main(argv: list[str] | None = None) -> int:
        during.extend(map(signal.getsignal, (signal.SIGHUP, signal.SIGTERM)))
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminated = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main([]) == 0
        assert during[0] == signal.SIG_IGN
        assert callable(during[1])
        assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, terminated)


def test_a_verb_works_in_a_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(verb(lambda argv: 0)([])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_results_folder_with_an_impossible_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables(["--results", "x" * 300]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: x+/records: the name is too long", line)
    assert tables(["--results", os.fsdecode(b"a\xff")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "UTF-8" in line


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
