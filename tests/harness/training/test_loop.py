"""The training loop on the tiny SAM: what it keeps, selects, tells, refuses and counts."""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.evaluation.conventions import improves
from harness.methods.parts.placement import MethodError
from harness.models import device
from harness.protocols.protocol import Quirks
from harness.training.batches import draw_number
from harness.training.checkpoint import BEST, LAST, Position
from harness.training.loop import WARMUP_STEPS, planned_steps
from harness.training.outcome import Diverged
from tests.harness.training.tiny import CPU, Run, protocol, scripted, stop_at


def test_the_result_holds_history_cost_and_states(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, images=7)
    begun = time.monotonic()
    result = run.train()
    assert result.cost()["wall_time_s"] <= time.monotonic() - begun
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert [entry["updates"] for entry in result.history] == [{"weights": 4}] * 3
    assert result.cost()["steps"] == 12
    assert len(result.step_times["weights"]) == 12 - WARMUP_STEPS
    assert Position().cost()["step_time_s"] == Position().cost()["data_wait_s"] == 0
    assert 0 < result.cost()["step_time_s"] < result.cost()["train_time_s"] < result.cost()["wall_time_s"]
    assert sum(entry["seconds"] for entry in result.history) == pytest.approx(result.cost()["train_time_s"])
    assert result.cost()["peak_memory_bytes"] > 50e6
    assert result.history[0]["lr"] == pytest.approx(2e-3 * (1 - 3 / 12))
    last = load_file(tmp_path / LAST)
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


def test_a_gradient_that_no_scale_of_fp16_makes_finite_is_divergence(tmp_path: Path) -> None:
    """Its steps are skipped while the scale falls; a run that skipped them all would end as if it had trained."""
    run = Run(folder=tmp_path, images=2, rules=protocol(precision="fp16", epochs=40))
    next(p for p in run.segmenter.parameters() if p.requires_grad).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(Diverged, match="at any fp16 loss scale, up to epoch 17, step 1"):
        run.train()


def test_mixed_precision_trains_close_to_fp32(tmp_path: Path) -> None:
    full = Run(folder=tmp_path / "fp32", images=4, rules=protocol(epochs=2)).train()
    for precision in ("bf16", "fp16"):
        rules = protocol(epochs=2, precision=precision)
        mixed = Run(folder=tmp_path / precision, images=4, rules=rules).train()
        for a, b in zip(full.history, mixed.history, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
        assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / precision / LAST).values())


def test_an_epochs_loss_is_the_mean_over_its_own_updates(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}

    def look(progress: dict[str, Any]) -> None:
        if progress["kind"] == "step":
            losses.setdefault(progress["epoch"], []).append(progress["loss"])

    result = Run(folder=tmp_path, images=5, rules=protocol(epochs=3), report=look).train()
    assert [len(losses[epoch]) for epoch in (1, 2, 3)] == [3, 3, 3]
    for entry in result.history:
        assert entry["loss"] == pytest.approx(statistics.fmean(losses[entry["epoch"]]), rel=1e-12)
        assert entry["updates"] == {"weights": 3}


def test_the_noise_of_every_pass_follows_from_seed_and_position(tmp_path: Path) -> None:
    """Whatever other random numbers were drawn before."""
    config = {"alternate": "both", "search_start_epoch": 0}
    run = Run(folder=tmp_path, method="naslora", config=config, images=4, seed=3, rules=protocol(epochs=2))
    seeds: list[tuple[int, int]] = []

    def look(module: nn.Module, inputs: Any) -> None:
        if module.training:
            seeds.append((run.attached.generator.initial_seed(), torch.initial_seed()))

    def disturb(progress: dict[str, Any]) -> None:
        torch.manual_seed(0)

    run.segmenter.register_forward_pre_hook(look)
    run.report = disturb
    run.train()
    passes = [(3, epoch, step, 0, *role) for epoch in (0, 1) for step in (0, 1) for role in (("architecture",), ())]
    assert seeds == [(draw_number("method", *position), draw_number("torch", *position)) for position in passes]


def test_one_image_a_pass_makes_statistics_and_balance_those_of_one_image(tmp_path: Path) -> None:
    """The released Conv-LoRA: `per_gpu_batch_size` 1, gradients of four passes averaged."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for name, rules in {"one": {"batch_size": 1, "accumulate": 4}, "four": {"batch_size": 4}}.items():
        run = Run(folder=tmp_path / name, method="convlora", images=4, rules=protocol(epochs=1, flip=0.0, **rules))
        passes = seen.setdefault(name, [])
        balance = run.attached.auxiliary_loss

        def look(balance: Any = balance, passes: Any = passes, run: Run = run) -> Any:
            extra = balance()
            maps = next(iter(run.attached.mixtures().values()))  # type: ignore[attr-defined]
            passes.append((len(maps._epsilon), float(extra.detach())))
            return extra

        run.attached.auxiliary_loss = look  # type: ignore[method-assign]
        run.train()
    windows = {name: [count for count, _ in passes] for name, passes in seen.items()}
    assert (len(windows["one"]), len(windows["four"])) == (4, 1)
    assert windows["four"] == [4 * windows["one"][0]]
    single, four = (statistics.fmean(value for _, value in seen[name]) for name in ("one", "four"))
    assert single > 1.5 * four, "few maps cannot be shared out evenly among eight experts"


def test_the_last_image_of_an_epoch_counts_as_the_others_whatever_pass_it_is_in(tmp_path: Path) -> None:
    """Three images left: two in one pass, one alone in the next. Adam divides the size of a gradient out: look before it."""
    gradients: list[torch.Tensor] = []

    def look(optimiser: torch.optim.Optimizer, arguments: Any, options: Any) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double())

    hook = register_optimizer_step_pre_hook(look)
    try:
        for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
            rules = protocol(batch_size=batch_size, accumulate=accumulate, epochs=1, clip=0.0)
            Run(folder=tmp_path / str(batch_size), images=3, rules=rules).train()
    finally:
        hook.remove()
    whole, *split = gradients
    for gradient in split:
        # fp32 sums of a few thousand terms: 1e-4 at most; passes that counted alike would move it by a tenth.
        assert float((gradient - whole).norm() / whole.norm()) < 1e-3


def test_the_best_epoch_is_kept_and_ties_go_to_the_earlier(tmp_path: Path) -> None:
    rules = protocol(epochs=4)
    result = Run(folder=tmp_path / "four", images=2, rules=rules, validate=scripted(0.1, 0.7, 0.7, 0.3)).train()
    assert result.best_epoch == 2
    assert [entry["val"]["iou"] for entry in result.history] == [0.1, 0.7, 0.7, 0.3]
    # The state of epoch 2 is the last state of a run that is stopped there.
    at = {"kind": "epoch", "epoch": 2}
    stop_at(tmp_path / "two", at=at, images=2, rules=rules, validate=scripted(0.1, 0.7))
    best = load_file(tmp_path / "four" / BEST)
    kept = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["best"]
    assert all(torch.equal(best[name], kept[name]) for name in best)
    assert not all(torch.equal(best[name], value) for name, value in load_file(tmp_path / "four" / LAST).items())


@pytest.mark.parametrize(("metric", "higher"), [("iou", True), ("mae", False)])
def test_selection_knows_the_metrics_direction_and_no_number_is_worse_than_none(metric: str, *, higher: bool) -> None:
    beats = partial(improves, metric)
    assert (beats(0.5, 0.2), beats(0.2, 0.5), beats(0.5, 0.5)) == (higher, not higher, False)
    assert (beats(0.5, math.nan), beats(math.nan, 0.5), beats(0.5, None)) == (True, False, True)


def test_validation_runs_every_select_every_epochs_and_at_the_end(tmp_path: Path) -> None:
    calls = scripted(0.5, 0.4, 0.6)
    result = Run(folder=tmp_path, images=2, rules=protocol(epochs=5, select_every=2), validate=calls).train()
    assert [bool(entry["val"]) for entry in result.history] == [False, True, False, True, True]
    assert result.best_epoch == 5


def test_the_last_state_is_the_model_where_the_protocol_says_so(tmp_path: Path) -> None:
    rules = protocol(epochs=3, select="last")
    result = Run(folder=tmp_path, images=2, rules=rules, validate=scripted(0.7, 0.9, 0.3)).train()
    assert result.best_epoch == 3
    last = load_file(tmp_path / LAST)
    assert all(torch.equal(last[name], value) for name, value in load_file(tmp_path / BEST).items())
    for more in ({"patience": 2}, {"quirks": Quirks(selection="released")}):
        with pytest.raises(ValueError, match="select=last"):
            protocol(epochs=3, select="last", **more)


def test_a_method_that_needs_more_epochs_for_as_many_updates_is_validated_as_often(tmp_path: Path) -> None:
    rules = protocol(epochs=4, select_every=2, budget="updates")
    config = {"search_start_epoch": 1, "alternate": "iteration"}
    run = Run(folder=tmp_path, images=4, rules=rules, method="naslora", config=config, validate=scripted(0.5, 0.4))
    assert [bool(entry["val"]) for entry in run.train().history] == [False, False, False, True, False, False, True]


def test_the_rate_falls_over_all_steps_of_a_budget_of_updates(tmp_path: Path) -> None:
    rules = protocol(epochs=4, budget="updates", schedule="linear")
    config = {"search_start_epoch": 1, "alternate": "iteration"}
    reports: list[dict[str, Any]] = []
    Run(
        folder=tmp_path, images=4, rules=rules, method="naslora", config=config, validate=scripted(*[0.5] * 9),
        report=reports.append,
    ).train()  # fmt: skip
    rates = [progress["rate"] for progress in reports if progress["kind"] == "step"]
    assert len(rates) == 13, "eight updates of the weights, five of the architecture"
    updates = [number for number, rate in enumerate(rates) if number == 0 or rate != rates[number - 1]]
    assert len(updates) == 8
    assert [rates[number] for number in updates] == pytest.approx([2e-3 * (1 - number / 13) for number in updates])


def test_a_method_that_never_updates_its_weights_is_refused_under_a_budget_of_updates() -> None:
    class Idle:
        name = "idle"
        config = SimpleNamespace(trains=True, spares_weight_updates=True)

        def passes_at(self, *, epoch: int, step: int) -> tuple[tuple[str, ...], ...]:
            return (("architecture",),)

    plan: Any = SimpleNamespace(updates_per_epoch=2)
    with pytest.raises(MethodError, match="idle does not give its weights 6 updates"):
        planned_steps(Idle(), plan, protocol(budget="updates"), images=4)  # type: ignore[arg-type]
    Idle.config.trains = False
    assert planned_steps(Idle(), plan, protocol(), images=4) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("minutes", "written"), [(1e-9, 3), (60.0, 1)])
def test_checkpoints_are_written_by_time_and_at_the_end_of_an_epoch(
    tmp_path: Path, minutes: float, written: int
) -> None:
    kinds: list[str] = []
    rules = protocol(epochs=1, checkpoint_minutes=minutes)
    Run(folder=tmp_path, images=4, rules=rules, report=lambda progress: kinds.append(progress["kind"])).train()
    assert kinds.count("checkpoint") == written


def test_the_peak_of_memory_is_the_processs_where_the_system_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CLEAR_REFS", "_STATUS"):
        monkeypatch.setattr(device, name, Path("/nowhere/at/all"))
    device.reset_peak(CPU)
    assert 50e6 < device.peak_bytes(CPU) < 1e12


def test_validation_sees_the_segmenter_in_evaluation_mode_without_gradient(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, rules=protocol(epochs=1))
    seen = []

    def look() -> dict[str, float]:
        seen.append((run.segmenter.training, torch.is_grad_enabled()))
        return {"iou": 0.0}

    run.validate = look
    run.train()
    assert seen == [(False, False)]


def test_training_stops_once_patience_runs_out_and_lr_falls_as_if_it_had_not(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.9]
    rules = {"epochs": 5, "patience": 2}
    result = Run(folder=tmp_path / "early", images=2, rules=protocol(**rules), validate=scripted(*scores)).train()
    whole = Run(folder=tmp_path / "whole", images=2, rules=protocol(epochs=5), validate=scripted(*scores)).train()
    assert len(whole.history) == 5
    assert result.best_epoch == 2
    assert [(e["epoch"], e["loss"], e["lr"]) for e in result.history] == [
        (e["epoch"], e["loss"], e["lr"]) for e in whole.history[:4]
    ], "a tie is no better, so two in a row were none better than epoch 2"
    assert load_file(tmp_path / "early" / LAST).keys() == load_file(tmp_path / "early" / BEST).keys()
    repeated: list[dict[str, Any]] = []
    Run(
        folder=tmp_path / "early", images=2, rules=protocol(**rules), validate=scripted(), report=repeated.append
    ).train()
    assert not [progress for progress in repeated if progress["kind"] == "step"], "a finished run stays finished"


def test_patience_counts_validations_since_the_best(tmp_path: Path) -> None:
    rules = protocol(epochs=9, select_every=2, patience=2)
    result = Run(folder=tmp_path, images=2, rules=rules, validate=scripted(0.3, 0.2, 0.4, 0.1, 0.2)).train()
    assert (len(result.history), result.best_epoch) == (9, 6)
    rules = protocol(epochs=9, select_every=2, patience=1)
    result = Run(folder=tmp_path / "one", images=2, rules=rules, validate=scripted(0.3, 0.4, 0.4)).train()
    assert (len(result.history), result.best_epoch) == (6, 4)
