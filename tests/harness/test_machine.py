"""The cores that are really there, and how threads wait: said before torch is loaded, and never against the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.machine import SPINS, cores, set_threads, thread_variables, waiting
from tests.values import REPOSITORY


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)


V1 = "cpu,cpuacct/docker/x/cpu.cfs"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n"}, 8),
        ("0::/job/step\n", {"job/step/cpu.max": "250000 100000\n"}, 3),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("3:cpu,cpuacct:/docker/x\n0::/\n", {f"{V1}_quota_us": "400000\n", f"{V1}_period_us": "100000\n"}, 4),
        ("3:cpu,cpuacct:/docker/x\n", {f"{V1}_quota_us": "-1\n", f"{V1}_period_us": "100000\n"}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quota(tmp_path: Path, lines: str, files: dict, expected: int) -> None:
    named = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": lines, **named}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    assert cores(tmp_path) == expected


def test_a_machine_that_tells_nothing_of_groups_has_the_cores_of_the_affinity(tmp_path: Path) -> None:
    assert cores(tmp_path) == 8


def test_what_the_user_set_stays() -> None:
    assert thread_variables(3, {}) == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": str(SPINS)}
    assert thread_variables(3, {"OMP_NUM_THREADS": "1"}) == {"GOMP_SPINCOUNT": str(SPINS)}
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        environment = {name: "x"}
        set_threads(2, environment)
        assert environment == {name: "x", "OMP_NUM_THREADS": "2"}
        assert waiting(environment) == f"{name}=x"
    assert waiting({}) == "default"


WORKER = """
import json, os, sys
from harness.dispatch import worker
assert worker.main([sys.argv[1]]) == 3  # no such chunk
assert "torch" not in sys.modules
print(json.dumps([os.environ.get(name) for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")]))
"""


@pytest.mark.parametrize(
    ("given", "expected"), [({}, [None, str(SPINS)]), ({"OMP_WAIT_POLICY": "active"}, [None, None])]
)
def test_a_worker_says_it_before_torch_is_loaded(tmp_path: Path, given: dict, expected: list) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "chunk.000.json")],
        cwd=REPOSITORY, env={**plain, **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    threads, spins = json.loads(done.stdout)
    assert int(threads) >= 1
    assert spins == expected[1]
