"""Where the options of a command line send runs, and which GPUs there are."""

from __future__ import annotations

import pytest

from harness.dispatch.target import Target, gpu_name, target_of, visible_gpus

TWO = "printf 'GPU 0: NVIDIA A (UUID: GPU-1)\\n  MIG 1g.5gb Device 0: (UUID: MIG-2)\\nGPU 1: NVIDIA B (UUID: GPU-3)\\n'"


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path, client):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # whatever driver is installed here
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("harness.dispatch.target.cores", lambda: 12)


def test_a_worker_has_a_gpu_or_its_share_of_at_most_four_workers_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert target_of("inline") == Target(executor="inline", workers=1, threads=12)
    assert target_of() == target_of("local") == Target(executor="local", workers=4, threads=3)
    assert target_of(workers=5) == Target(executor="local", workers=5, threads=2)
    assert target_of(workers=20) == Target(executor="local", workers=20, threads=1)
    monkeypatch.setattr("harness.dispatch.target.cores", lambda: 2)
    assert target_of() == Target(executor="local", workers=2, threads=1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8932f937,5")
    devices = ("3", "GPU-8932f937", "5")
    assert target_of("inline") == Target(executor="inline", devices=devices, workers=1, threads=2)
    assert target_of() == Target(executor="local", devices=devices, workers=3, threads=1)


def test_without_the_variable_the_driver_is_asked(client):
    assert visible_gpus() == []
    assert gpu_name("0") == ""
    client("nvidia-smi", TWO)
    assert visible_gpus() == ["0", "1"]
    assert target_of("local").devices == ("0", "1")
    client("nvidia-smi", f"{TWO}; exit 9")  # a driver that does not fit the kernel
    assert visible_gpus() == []


def test_a_gpu_is_asked_for_its_model_by_its_number(client):
    client("nvidia-smi", 'test "$1" = --query-gpu=name && test "$2" = --format=csv,noheader && echo "NVIDIA ${3:-any}"')
    assert gpu_name("1") == "NVIDIA --id=1"
    assert gpu_name("GPU-8932f937") == "NVIDIA any"
    client("nvidia-smi", "echo NVIDIA; exit 9")
    assert gpu_name("0") == ""
    client("nvidia-smi", "true")
    assert gpu_name("0") == ""
