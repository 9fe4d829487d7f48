"""A run on a system that lacks what only Linux has: names of ``os``, /proc and prctl are taken away from every process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.archive.store import RecordStore
from tests.values import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps, which every system without /proc has")
TAKEN_AWAY = """
import builtins, ctypes, errno, io, os, signal
for module, names in {
    os: "sched_getaffinity sched_setaffinity pidfd_open posix_fallocate posix_fadvise memfd_create sendfile waitid",
    errno: "EREMOTEIO", signal: "pidfd_send_signal",
}.items():
    for name in names.split():
        vars(module).pop(name, None)
def without(function):
    def called(path, *arguments, **named):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *arguments, **named)
    return called
builtins.open = io.open = without(io.open)
os.stat, os.listdir, os.readlink = without(os.stat), without(os.listdir), without(os.readlink)
load = ctypes.CDLL
class Library:
    def __init__(self, *arguments, **named):
        self.loaded = load(*arguments, **named)
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return getattr(self.loaded, name)
ctypes.CDLL = lambda name=None, *arguments, **named: Library(name) if name is None else load(name, *arguments, **named)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of processes of such a system."""
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "sitecustomize.py").write_text(TAKEN_AWAY)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'system'}:{REPOSITORY}", "SAM_PEFT_SETTINGS": "none"}


def test_it_trains_in_workers_and_prints_its_table(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    command = ["--methods", "decoder,lora", "--datasets", "kvasir", "--workers", "2", "--results"]
    done = subprocess.run(
        [sys.executable, "-m", "harness.run", *command, str(tmp_path / "runs")],
        env=elsewhere, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [record.code for record in RecordStore(tmp_path / "runs")] == ["OK", "OK"]
    assert "| LoRA |" in done.stdout
    assert "interrupted" not in done.stdout + done.stderr


def test_a_process_is_told_alive_or_dead_without_proc(elsewhere: dict[str, str]) -> None:
    program = (
        "import os, time\n"
        "from harness.dispatch.attempts import Holder\n"
        "assert not hasattr(os, 'posix_fallocate')\n"
        "assert not os.path.exists('/proc/self')\n"
        "here = Holder.here()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(60)\n"
        "from dataclasses import replace\n"
        "other = replace(here, pid=child)\n"
        "assert (here.alive(), other.alive()) == (None, None), 'its heartbeat decides'\n"
        "os.kill(child, 9)\n"
        "os.waitpid(child, 0)\n"
        "assert other.alive() is False\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
