"""The training loop on the tiny SAM: what it keeps, tells, refuses and counts."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.system.errors import UsageError
from harness.training.distributed import Workers
from harness.training.outcome import Diverged, Progress
from tests.harness.training.tiny import Run, protocol, scripted


def test_training_lowers_the_loss_and_learns_the_disc(tmp_path: Path) -> None:
    result = Run(folder=tmp_path, images=8, rules=protocol(epochs=15, lr=5e-3, flip=0.0, select_every=15)).train()
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.7 * losses[0]
    assert result.history[-1]["val"]["iou"] > 0.5


def test_the_result_holds_history_cost_and_states(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, images=7)
    begun = time.monotonic()
    result = run.train()
    assert result.cost["wall_time_s"] <= time.monotonic() - begun
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert [entry["updates"] for entry in result.history] == [{"weights": 4}] * 3
    assert result.cost["steps"] == 12
    assert 0 < result.cost["step_time_s"] < result.cost["train_time_s"] < result.cost["wall_time_s"]
    assert sum(entry["seconds"] for entry in result.history) == pytest.approx(result.cost["train_time_s"])
    assert result.cost["peak_memory_bytes"] > 50e6
    assert result.history[0]["lr"] == pytest.approx(2e-3 * (1 - 3 / 12))
    last = load_file(result.last_state)
    assert last.keys() == run.attached.state().keys()
    assert all(torch.equal(last[name], tensor) for name, tensor in run.attached.state().items())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_is_an_error_with_a_code_and_leaves_no_update(tmp_path: Path, what: str) -> None:
    run = Run(folder=tmp_path)
    parameter = next(p for p in run.segmenter.parameters() if p.requires_grad)
    before = parameter.detach().clone()
    if what == "loss":
        run.attached.auxiliary_loss = lambda: torch.tensor(float("nan"))  # type: ignore[method-assign]
    else:
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged, match=f"the {what} is not finite in epoch 1, step 1") as caught:
        run.train()
    assert caught.value.code == "DIVERGED"
    assert not (tmp_path / "checkpoint.pt").exists()
    if what == "loss":
        assert torch.equal(parameter.detach(), before)


def test_mixed_precision_trains_close_to_fp32(tmp_path: Path) -> None:
    full = Run(folder=tmp_path / "fp32", images=4, rules=protocol(epochs=2)).train()
    for precision in ("bf16", "fp16"):
        rules = protocol(epochs=2, precision=precision)
        mixed = Run(folder=tmp_path / precision, images=4, rules=rules).train()
        for a, b in zip(full.history, mixed.history, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
        assert all(tensor.dtype == torch.float32 for tensor in load_file(mixed.last_state).values())


def test_an_epochs_loss_is_the_mean_over_its_own_updates(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}

    def look(progress: Progress) -> None:
        if progress.kind == "step":
            losses.setdefault(progress.epoch, []).append(progress.loss)

    result = Run(folder=tmp_path, images=5, rules=protocol(epochs=3), report=look).train()
    assert [len(losses[epoch]) for epoch in (1, 2, 3)] == [3, 3, 3]
    for entry in result.history:
        assert entry["loss"] == pytest.approx(statistics.fmean(losses[entry["epoch"]]), rel=1e-12)
        assert entry["updates"] == {"weights": 3}


def test_a_loss_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit a binary benchmark"):
        Run(folder=tmp_path / "x", rules=protocol(loss="mask2former")).train()
    assert not (tmp_path / "x").exists()


def test_more_workers_than_images_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 workers share batches of 2 images; use fewer workers"):
        Run(folder=tmp_path, workers=Workers(rank=0, size=3)).train()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot reset a process's peak")
def test_peak_memory_leaves_validation_out(tmp_path: Path) -> None:
    def hungry() -> dict[str, float]:
        return {"iou": float(torch.ones(100_000_000).sum() * 0)}  # 400 MB, touched

    rules = protocol(epochs=1)
    plain = Run(folder=tmp_path / "plain", images=4, rules=rules, validate=scripted(0.0)).train()
    result = Run(folder=tmp_path / "hungry", images=4, rules=rules, validate=hungry).train()
    assert abs(result.cost["peak_memory_bytes"] - plain.cost["peak_memory_bytes"]) < 100e6
