"""What every verb shares: one line instead of a traceback, whatever happens to it or to its output."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.command import verb
from harness.cli.tables import main as tables
from harness.experiment.environment import reason_code
from harness.run import main as run
from tests.signals import as_in_a_terminal
from tests.values import REPOSITORY, on_linux

VERB = """
import os, signal, sys, time
from harness.cli.command import verb

@verb
def main(argv=None):
    if argv == ["show"]:
        print("α ± 2 █▁│ ✓ \\udcff")
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


def test_an_unexpected_exception_is_one_line(says) -> None:
    line = says(raising(ZeroDivisionError("by\nzero \x1b[2J")), code=2)
    assert line.startswith(r"error: ZeroDivisionError: by zero \x1b[2J; ")


def test_debug_raises_it() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())(["--debug"])


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
def test_what_the_disk_refuses_is_called_what_it_is(number: int, said: str, says) -> None:
    line = says(raising(OSError(number, os.strerror(number), "/there")), code=2)
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
def test_want_of_memory_is_called_that(error: Exception, says) -> None:
    line = says(raising(error), code=2)
    assert "ulimit -v" in line
    assert "traceback" not in line
    assert reason_code(error) == "OOM"


@on_linux
@pytest.mark.parametrize(
    "words", [("-m", "harness.run", "--help"), ("-u", "-m", "harness.run", "--help"), ("-c", VERB, "show")]
)
def test_full_output_is_an_error(words: tuple[str, ...]) -> None:
    done = shell('"$@" > /dev/full', *words)
    assert done.returncode == 2
    assert re.fullmatch("error: (standard output cannot be written: )?the disk is full.*\n", done.stderr)


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
def test_every_signal_that_ends_a_verb_prints_what_ctrl_c_does(number: int, begun: Callable[[], None]) -> None:
    with subprocess.Popen(
        **command("-c", VERB, "wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=begun
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        error = process.communicate(timeout=30)[1]
    assert (process.returncode, error) == (128 + number, "interrupted\n")


def test_a_results_folder_with_an_impossible_name_is_one_line(says) -> None:
    line = says(tables, "--results", "x" * 300, code=2)
    assert re.fullmatch(r"error: x+/records: the name is too long", line)
    assert "UTF-8" in says(tables, "--results", os.fsdecode(b"a\xff"), code=2)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--results", "--datasets kvasir --results BAD"),
        ("--datasets", "--datasets kvasir=BAD"),
        ("--data", "--datasets kvasir --protocol nas-lora --data BAD"),
        ("--checkpoint", "--datasets kvasir --checkpoint BAD/x.pth"),
    ],
)
def test_a_path_that_no_file_of_a_sweep_could_name_is_refused_before_anything_is_submitted(
    option: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / os.fsdecode(b"a\xff")
    bad.mkdir()
    assert run(["--methods", "lora", *words.replace("BAD", str(bad)).split()]) == 2
    assert f"error: {option} " in (said := capsys.readouterr().err)
    assert "UTF-8" in said
    assert {path.name for path in tmp_path.iterdir()} == {bad.name}
