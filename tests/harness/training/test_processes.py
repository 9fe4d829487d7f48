"""Training in processes of its own: killed and restarted it ends bit for bit as one that was left alone. Two workers give the
numbers of one with the same batches, and only the first one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from harness.training.batches import UpdatePlan, draw_number, load_one, slice_of
from harness.training.distributed import ALONE, Workers, join
from harness.training.feeding import normalise
from harness.training.losses import build_loss
from tests.harness.training.forks import Forks, run_pair
from tests.harness.training.tiny import Discs, attached, protocol
from tests.values import there

STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout"}


@pytest.mark.parametrize(
    ("method", "config", "every_step"),
    [
        pytest.param(
            "lora",
            {"initialisation": "eva"},
            True,
            id="lora with a start from data, a checkpoint each step",
            marks=pytest.mark.slow,
        ),
        pytest.param("naslora", STAGEWISE, True, id="naslora: batch norm, two optimisers, held-out part"),
        pytest.param("naslora", STAGEWISE, False, id="naslora, repeating steps since the epoch's end"),
        pytest.param("convlora", {}, True, id="convlora: noise", marks=pytest.mark.slow),
    ],
)
def test_killed_at_several_steps_ends_bit_identical(forks, tmp_path, method, config, every_step):
    rules = {"checkpoint_minutes": 1e-9 if every_step else 60.0}
    if method == "lora":
        rules |= {"batch_size": 1, "accumulate": 2}
    options = {"method": method, "config": config, "rules": rules}
    alone = json.loads(forks.run({**options, "folder": str(tmp_path / "alone")})[-1])
    killed = {**options, "folder": str(tmp_path / "killed")}
    for line in ("step 1 1", "step 2 2", "epoch 2", "step 3 1") if method == "lora" else ("step 2 2", "epoch 2"):
        forks.run(killed, kill_at=line)
    *lines, result = forks.run(killed)
    assert any(line.startswith("note") and "continues in epoch" in line for line in lines)
    assert json.loads(result) == alone
    assert len(alone["history"]) == 3


CASES = [
    pytest.param({"method": "lora", "config": {"initialisation": "eva"}}, id="lora with a start from data"),
    pytest.param({"rules": {"accumulate": 2, "loss": "balanced-bce"}}, id="lora, accumulated balanced bce"),
    pytest.param(
        {"method": "naslora", "config": {"search_start_epoch": 1}, "rules": {"epochs": 2}},
        id="naslora: batch norm, two optimisers",
    ),
    pytest.param({"method": "naslora", "config": {"fused": False}}, id="naslora, cell not fused"),
    pytest.param({"method": "decoder", "task": "multiclass", "classes": 4}, id="multi-class"),
]


@pytest.mark.parametrize("options", CASES)
def test_two_workers_equal_one_with_the_same_global_batch(forks, tmp_path, options: dict[str, Any]) -> None:
    # Five images in batches of two: the last batch of an epoch has one image, and the first worker none of its own.
    # Where a gradient is zero but for rounding, Adam makes whole steps of the rounding, unless eps is larger than that.
    options = {"images": 5, **options, "rules": {"epochs": 1, "eps": 1e-3, **options.get("rules", {})}}
    alone = json.loads(forks.run({**options, "folder": str(tmp_path / "one")})[-1])
    two = json.loads(run_pair(forks, {**options, "folder": str(tmp_path / "two")})[-1])
    for a, b in zip(alone["history"], two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["val"] == pytest.approx(a["val"], abs=1e-5)
        assert b["updates"] == a["updates"]
    assert two["selected"] == alone["selected"]
    last = [load_file(tmp_path / folder / "last.safetensors") for folder in ("one", "two")]
    assert any(name.endswith("running_mean") for name in last[0]) == (options.get("method") == "naslora")
    for name, tensor in last[0].items():
        torch.testing.assert_close(last[1][name], tensor, atol=1e-5, rtol=1e-5, msg=name)


def loss_of_two_workers(images: int, *, balance: float) -> float:
    """The loss of the first update as two workers share it, worked out in one process. Every worker has noise of its
    own, and its balance loss counts by its share of the images."""
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
        loaded = [
            load_one(source, index, flip=flip, mask=index, with_image=True)
            for index, flip in zip(own, flips, strict=True)
        ]
        pixels, target = (
            torch.stack([image for image, _ in loaded if image is not None]),
            torch.stack([m for _, m in loaded]),
        )
        method.generator.manual_seed(draw_number("method", 0, 0, 0, rank))
        prediction = segmenter(normalise(pixels, rules.pixels))
        task = loss(prediction, target, total=lambda count: torch.full_like(count, len(whole)))
        extra = method.auxiliary_loss()
        assert extra is not None
        shares += float((task + len(own) / len(whole) * extra).detach())
    return shares


@pytest.mark.parametrize("images", [2, 1])
def test_the_auxiliary_loss_counts_by_each_workers_share(forks: Forks, tmp_path: Path, images: int) -> None:
    """With one image the first worker only runs along, and its balance loss must not count."""
    options = {"method": "convlora", "config": {"balance": 0.5}, "images": images, "rules": {"epochs": 1}}
    loss = json.loads(run_pair(forks, {**options, "folder": str(tmp_path)})[-1])["history"][0]["loss"]
    assert loss == pytest.approx(loss_of_two_workers(images, balance=0.5), rel=1e-5)
    assert loss - loss_of_two_workers(images, balance=0.0) > 0.1, "or a share would not show"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_that_no_worker_reached_keeps_no_gradient(monkeypatch, dtype: torch.dtype) -> None:
    """An expert that no image was routed to: one worker would leave it alone, so two must."""
    both, ours, theirs, idle = (nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for _ in range(4))
    both.grad, ours.grad = torch.full_like(both, 1.0), torch.full_like(ours, 2.0)
    others = torch.tensor([3.0] * 6 + [0.0] * 6 + [4.0] * 6 + [0.0] * 6 + [1.0, 0.0, 1.0, 0.0], dtype=dtype)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.add_(others))
    Workers(rank=0, size=2).sum_gradients([both, ours, theirs, idle])
    assert idle.grad is None
    for parameter, value in ((both, 4.0), (ours, 2.0), (theirs, 4.0)):
        assert torch.equal(there(parameter.grad), torch.full_like(parameter, value))


@pytest.mark.slow
def test_two_killed_workers_go_on_bit_identical(forks: Forks, tmp_path: Path) -> None:
    rules = {"checkpoint_minutes": 1e-9, "epochs": 2}
    options = {"method": "naslora", "config": {"search_start_epoch": 1}, "images": 5, "rules": rules}
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


def test_an_allocation_of_several_tasks_is_no_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """``salloc -n 8`` asks for cores; a run that is started there is alone."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert join(device=torch.device("cpu")) is ALONE


@pytest.mark.parametrize(
    ("device", "local", "backend"), [("cpu", "2", "gloo"), ("cuda", "2", "gloo"), ("cuda", "1", "nccl")]
)
def test_workers_that_share_a_gpu_meet_through_gloo(monkeypatch, device: str, local: str, backend: str) -> None:
    met: list[str] = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda chosen, **_: met.append(chosen))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**address, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    join(device=torch.device(device))
    assert met == [backend]
