"""The cores that are really there, threads that wait, and a run on a system without what only Linux has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.machine import SPINS, cores, set_threads, thread_variables, waiting
from tests.values import REPOSITORY


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n"}, 8),
        ("0::/job/step\n", {"job/step/cpu.max": "250000 100000\n"}, 3),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    ],
)
def test_cores_are_those_of_affinity_and_quota(tmp_path: Path, lines: str, files: dict, expected: int) -> None:
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": lines, **named}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert cores(tmp_path) == expected


def test_what_the_user_set_stays() -> None:
    assert thread_variables(3, {}) == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": str(SPINS)}
    assert thread_variables(3, {"OMP_NUM_THREADS": "1"}) == {"GOMP_SPINCOUNT": str(SPINS)}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        environment = {name: "x"}
        set_threads(2, environment)
        assert environment == {name: "x", "OMP_NUM_THREADS": "2"}
        assert waiting(environment) == f"{name}=x"
    assert waiting({}) == "default"


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


def test_a_process_is_known_to_live_or_not_without_proc(elsewhere: dict[str, str]) -> None:
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
