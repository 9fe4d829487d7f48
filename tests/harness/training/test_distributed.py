"""Two workers on one run, through gloo: the numbers of one worker with the same batches; only the first one writes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.errors import UsageError
from harness.training.batches import UpdatePlan, draw_number, load_batch, slice_of
from harness.training.distributed import ALONE, join
from harness.training.feeding import normalise
from harness.training.losses import build_loss
from tests.harness.training.forks import Forks
from tests.harness.training.tiny import Discs, attached, protocol


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_pair(forks: Forks, options: dict[str, Any], *, kill_at: str = "") -> list[str]:
    """Both workers of a run; returns what the first printed. The second has another folder, which it must not use."""
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    folder = Path(options["folder"])
    workers = [
        {**options, "folder": str(own), "environment": {**address, "RANK": str(rank)}}
        for rank, own in enumerate((folder, folder / "second"))
    ]
    printed = forks.run(*workers, kill_at=kill_at)
    assert not (folder / "second").exists()
    return printed


CASES = [
    pytest.param({"method": "lora"}, id="lora"),
    pytest.param({"rules": {"accumulate": 2, "loss": "balanced-bce"}}, id="lora, accumulated balanced bce"),
    pytest.param(
        {"method": "naslora", "config": {"search_start_epoch": 1}, "rules": {"epochs": 2}},
        id="naslora: batch norm, two optimisers",
    ),
    pytest.param({"method": "naslora", "config": {"fused": False}}, id="naslora, cell not fused"),
    pytest.param({"method": "decoder", "task": "multiclass", "classes": 4}, id="multi-class"),
]


@pytest.mark.parametrize("options", CASES)
def test_two_workers_equal_one_with_the_same_global_batch(
    forks: Forks, tmp_path: Path, options: dict[str, Any]
) -> None:
    # Five images in batches of two: the last batch of an epoch has one image, and the first worker none of its own.
    options = {"images": 5, **options, "rules": {"epochs": 1, **options.get("rules", {})}}
    one = json.loads(forks.run({**options, "folder": str(tmp_path / "one")})[-1])
    two = json.loads(run_pair(forks, {**options, "folder": str(tmp_path / "two")})[-1])
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


def loss_of_two_workers(images: int, *, balance: float) -> float:
    """The loss of the first update as two workers share it, worked out in one process: every worker draws noise of its own,
    and its balance loss counts by its share of the images."""
    segmenter, method = attached("convlora", balance=balance)
    segmenter.train()
    rules, source = protocol(), Discs(images)
    (whole,) = UpdatePlan(indices=range(images), batch_size=2, flip=rules.flip).update(0, 0)
    loss = build_loss(rules, task="binary", num_classes=2)
    shares = 0.0
    for rank in (0, 1):
        if not (own := slice_of(whole, rank=rank, size=2)):
            continue
        flips = [UpdatePlan(indices=range(images), batch_size=2, flip=rules.flip).flipped(0, index) for index in own]
        pixels, target = load_batch(source, own, flips)
        method.generator.manual_seed(draw_number("method", 0, 0, 0, rank))
        assert pixels is not None
        prediction = segmenter(normalise(pixels, mean=rules.pixel_mean, std=rules.pixel_std))
        task = loss(prediction, target, total=lambda count: torch.full_like(count, len(whole)))
        extra = method.auxiliary_loss()
        assert extra is not None
        shares += float((task + len(own) / len(whole) * extra).detach())
    return shares


@pytest.mark.parametrize("images", [2, 1])
def test_the_auxiliary_loss_counts_by_each_workers_share(forks: Forks, tmp_path: Path, images: int) -> None:
    """With one image the first worker only runs along, and its balance loss must not count."""
    options = {"method": "convlora", "config": {"balance": 0.5}, "images": images, "rules": {"epochs": 1}}
    found = json.loads(run_pair(forks, {**options, "folder": str(tmp_path)})[-1])["history"][0]["loss"]
    assert found == pytest.approx(loss_of_two_workers(images, balance=0.5), rel=1e-5)
    assert found - loss_of_two_workers(images, balance=0.0) > 0.1, "or a share would not show"


def test_two_killed_workers_go_on_bit_identical(forks: Forks, tmp_path: Path) -> None:
    options = {
        "method": "naslora",
        "config": {"search_start_epoch": 1},
        "images": 5,
        "rules": {"checkpoint_minutes": 1e-9, "epochs": 2},
    }
    alone = json.loads(run_pair(forks, {**options, "folder": str(tmp_path / "alone")})[-1])
    killed = {**options, "folder": str(tmp_path / "killed")}
    run_pair(forks, killed, kill_at="step 2 2")
    *lines, result = run_pair(forks, killed)
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
