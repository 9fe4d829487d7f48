"""The cores that are really there, threads that wait, and a run on a system without what only Linux has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.system.machine import SPINS, cores, set_threads, thread_variables, thread_waits


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
        assert thread_waits(environment) == f"{name}=x"
    assert thread_waits({}) == "default"
