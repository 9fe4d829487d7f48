"""Two workers on one run, through gloo: the numbers of one worker with the same batches; only the first one writes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import UsageError
from harness.training.distributed import ALONE, join
from tests.harness.training.forks import Forks


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Forks, Forks]]:
    pair = Forks(), Forks()
    yield pair
    for forks in pair:
        forks.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_pair(pair: tuple[Forks, Forks], options: dict[str, Any], *, kill_at: str = "") -> list[str]:
    """Both workers of a run; returns what the first printed. The second has another folder, which it must not use."""
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    folder = Path(options["folder"])
    with ThreadPoolExecutor() as threads:
        first, second = (
            threads.submit(
                forks.run,
                {**options, "folder": str(own), "environment": {**address, "RANK": str(rank)}},
                kill_at="" if rank else kill_at,
                may_fail=bool(rank and kill_at),
            )
            for rank, (forks, own) in enumerate(zip(pair, (folder, folder / "second"), strict=True))
        )
        printed = first.result(timeout=120)
        second.result(timeout=120)
    assert not (folder / "second").exists()
    return printed


CASES = [
    pytest.param({"method": "lora"}, id="lora"),
    pytest.param({"rules": {"accumulate": 2, "loss": "balanced-bce"}}, id="lora, accumulated balanced bce"),
    pytest.param({"method": "naslora", "config": {"search_start_epoch": 1}}, id="naslora: batch norm, two optimisers"),
    pytest.param({"method": "naslora", "config": {"fused": False}, "images": 5}, id="naslora, cell not fused"),
    pytest.param({"method": "decoder", "task": "multiclass", "classes": 4}, id="multi-class"),
]


@pytest.mark.parametrize("options", CASES)
def test_two_workers_equal_one_with_the_same_global_batch(
    pair: tuple[Forks, Forks], tmp_path: Path, options: dict[str, Any]
) -> None:
    # Seven images in batches of two: the last batch of an epoch has one image, and the first worker none of its own.
    one = json.loads(pair[0].run({**options, "folder": str(tmp_path / "one")})[-1])
    two = json.loads(run_pair(pair, {**options, "folder": str(tmp_path / "two")})[-1])
    for a, b in zip(one["history"], two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["val"] == pytest.approx(a["val"], abs=1e-5)
        assert b["updates"] == a["updates"]
    assert two["selected"] == one["selected"]
    last = [load_file(tmp_path / folder / "last.safetensors") for folder in ("one", "two")]
    assert any(name.endswith("running_mean") for name in last[0]) == (options.get("method") == "naslora")
    for name, tensor in last[0].items():
        if name.endswith("k_proj.bias"):  # softmax takes no notice of it: its gradient is rounding, which Adam enlarges
            continue
        torch.testing.assert_close(last[1][name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_two_killed_workers_go_on_bit_identical(pair: tuple[Forks, Forks], tmp_path: Path) -> None:
    options = {"method": "naslora", "config": {"search_start_epoch": 1}, "rules": {"checkpoint_minutes": 1e-9}}
    alone = json.loads(run_pair(pair, {**options, "folder": str(tmp_path / "alone")})[-1])
    killed = {**options, "folder": str(tmp_path / "killed")}
    run_pair(pair, killed, kill_at="step 2 2")
    *lines, result = run_pair(pair, killed)
    assert any("continues in epoch 2" in line for line in lines)
    assert json.loads(result) == alone


def test_without_an_environment_a_worker_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert join(device=torch.device("cpu")) is ALONE


def test_an_incomplete_environment_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UsageError, match="2 workers, but MASTER_ADDR and MASTER_PORT is not set; start them with"):
        join(device=torch.device("cpu"))
