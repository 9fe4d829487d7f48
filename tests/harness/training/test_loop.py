"""The training loop on the tiny SAM: what it selects, keeps, tells, refuses and counts."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.errors import UsageError
from harness.training.batches import draw, hold_out, shuffled
from harness.training.distributed import Workers
from harness.training.feeding import normalise
from harness.training.outcome import Diverged, Interrupted, Progress, Selection, StopRequest
from methods.base import ARCHITECTURE, WEIGHTS
from tests.harness.training.tiny import Run, protocol, summary


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scripted(*values: float) -> Any:
    """A validation that returns these scores one after the other."""
    left = iter(values)
    return lambda: {"iou": next(left)}


def test_training_lowers_the_loss_and_learns_the_disc(tmp_path: Path) -> None:
    result = Run(folder=tmp_path, images=8, rules=protocol(epochs=15, lr=5e-3, flip=0.0)).train()
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.7 * losses[0]
    assert result.history[-1]["val"]["iou"] > 0.5


def test_the_result_holds_history_cost_and_states(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, images=7)
    result = run.train()
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3]
    assert [entry["updates"] for entry in result.history] == [{"weights": 4}] * 3
    assert result.cost["steps"] == 12
    assert 0 < result.cost["step_time_s"] < result.cost["train_time_s"] < result.cost["wall_time_s"]
    assert result.cost["peak_memory_bytes"] > 50e6
    assert result.history[0]["lr"] == pytest.approx(2e-3 * (1 - 3 / 12))
    last = load_file(result.last_state)
    assert last.keys() == run.attached.state().keys()
    assert all(torch.equal(last[name], tensor) for name, tensor in run.attached.state().items())


def test_the_best_epoch_is_kept_and_ties_go_to_the_earlier(tmp_path: Path) -> None:
    rules = protocol(epochs=4)
    result = Run(folder=tmp_path / "four", rules=rules, validate=scripted(0.1, 0.7, 0.7, 0.3)).train()
    assert result.selected_epoch == 2
    assert [entry["val"]["iou"] for entry in result.history] == [0.1, 0.7, 0.7, 0.3]
    # The state of epoch 2 is the last state of a run that is stopped there.
    stopped = Run(folder=tmp_path / "two", rules=rules, validate=scripted(0.1, 0.7), stop=StopRequest())
    stop = stopped.stop
    assert stop is not None
    stopped.report = lambda progress: stop.request() if (progress.kind, progress.epoch) == ("epoch", 2) else None
    with pytest.raises(Interrupted):
        stopped.train()
    best = load_file(result.best_state)
    kept = load_file(tmp_path / "two" / "best-0002.safetensors")
    assert all(torch.equal(best[name], kept[name]) for name in best)
    assert not all(torch.equal(best[name], value) for name, value in load_file(result.last_state).items())


@pytest.mark.parametrize(
    ("lower", "values", "best"),
    [(False, (0.2, 0.5, 0.4), 2), (True, (0.5, 0.2, 0.4), 2), (False, (math.nan, 0.1, 0.1), 2)],
)
def test_selection_knows_the_metrics_direction(lower: bool, values: tuple[float, ...], best: int) -> None:
    selection = Selection(metric="x", lower_is_better=lower)
    chosen, kept = 0, None
    for epoch, value in enumerate(values, start=1):
        if selection.improves(value, kept):
            chosen, kept = epoch, value
    assert chosen == best


def test_validation_runs_every_select_every_epochs_and_at_the_end(tmp_path: Path) -> None:
    calls = scripted(0.5, 0.4, 0.6)
    result = Run(folder=tmp_path, rules=protocol(epochs=5, select_every=2), validate=calls).train()
    assert [bool(entry["val"]) for entry in result.history] == [False, True, False, True, True]
    assert result.selected_epoch == 5


def test_validation_sees_the_segmenter_in_evaluation_mode_without_gradient(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, rules=protocol(epochs=1))
    seen = []

    def look() -> dict[str, float]:
        seen.append((run.segmenter.training, torch.is_grad_enabled()))
        return {"iou": 0.0}

    run.validate = look
    run.train()
    assert seen == [(False, False)]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    alone = summary(Run(folder=tmp_path / "alone").train())
    stop = StopRequest()

    def stop_in_epoch_two(progress: Progress) -> None:
        if progress.kind == "step" and (progress.epoch, progress.step) == (2, 3):
            stop.request()

    with pytest.raises(Interrupted, match="stopped in epoch 2 after step 3; run again to go on"):
        Run(folder=tmp_path / "stopped", stop=stop, report=stop_in_epoch_two).train()
    steps: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        if progress.kind == "step":
            steps.append((progress.epoch, progress.step))

    again = Run(folder=tmp_path / "stopped", report=look)
    assert summary(again.train()) == alone
    assert steps[0] == (2, 4)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = summary(Run(folder=tmp_path).train())
    told: list[str] = []
    again = Run(folder=tmp_path, report=lambda progress: told.append(progress.kind), validate=scripted())
    assert summary(again.train()) == first
    assert "step" not in told


def test_a_missing_best_state_starts_the_run_over_and_says_so(tmp_path: Path) -> None:
    first = summary(Run(folder=tmp_path).train())
    (tmp_path / "best.safetensors").unlink()
    notes: list[str] = []
    again = Run(folder=tmp_path, report=lambda progress: notes.append(progress.text) if progress.text else None)
    assert summary(again.train()) == first
    assert any("best state of epoch" in note for note in notes)


def test_checkpoints_are_written_by_time(tmp_path: Path) -> None:
    def checkpoints(minutes: float) -> int:
        kinds: list[str] = []
        folder = tmp_path / str(minutes)
        Run(folder=folder, rules=protocol(checkpoint_minutes=minutes), report=lambda p: kinds.append(p.kind)).train()
        return kinds.count("checkpoint")

    assert checkpoints(60.0) == 3  # the ends of epochs
    assert checkpoints(1e-9) == 3 + 12  # and each step


def test_a_checkpoint_holds_only_what_is_trained(tmp_path: Path) -> None:
    run = Run(folder=tmp_path)
    run.train()
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    trained = {name for name, parameter in run.segmenter.named_parameters() if parameter.requires_grad}
    assert content["state"].keys() == trained
    # Adam keeps two moments of each, and the scalars are small.
    numbers = sum(tensor.numel() for tensor in content["state"].values())
    assert (tmp_path / "checkpoint.pt").stat().st_size < 3 * 4 * numbers + 400_000


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


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_fp32(tmp_path: Path, precision: str) -> None:
    full = Run(folder=tmp_path / "fp32").train()
    mixed = Run(folder=tmp_path / precision, rules=protocol(precision=precision)).train()
    for a, b in zip(full.history, mixed.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(mixed.last_state).values())


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    large = Run(folder=tmp_path / "large", images=8, rules=protocol(batch_size=4)).train()
    small = Run(folder=tmp_path / "small", images=8, rules=protocol(batch_size=2, accumulate=2)).train()
    for a, b in zip(large.history, small.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert a["updates"] == b["updates"] == {"weights": 2}


def test_training_stops_once_patience_runs_out_and_lr_falls_as_if_it_had_not(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.9]
    rules = {"epochs": 5, "patience": 2}
    result = Run(folder=tmp_path / "early", rules=protocol(**rules), validate=scripted(*scores)).train()
    whole = Run(folder=tmp_path / "whole", rules=protocol(epochs=5), validate=scripted(*scores)).train()
    assert len(whole.history) == 5
    assert result.selected_epoch == 2
    assert [(e["epoch"], e["loss"], e["lr"]) for e in result.history] == [
        (e["epoch"], e["loss"], e["lr"]) for e in whole.history[:4]
    ], "a tie is no better, so two in a row were none better than epoch 2"
    assert load_file(result.last_state).keys() == load_file(result.best_state).keys()
    again: list[Progress] = []
    Run(folder=tmp_path / "early", rules=protocol(**rules), validate=scripted(), report=again.append).train()
    assert not [progress for progress in again if progress.kind == "step"], "a finished run stays finished"


def test_patience_counts_validations_and_starts_again_with_each_better_one(tmp_path: Path) -> None:
    rules = protocol(epochs=9, select_every=2, patience=2)
    result = Run(folder=tmp_path, rules=rules, validate=scripted(0.3, 0.2, 0.4, 0.1, 0.2)).train()
    assert (len(result.history), result.selected_epoch) == (9, 6)
    rules = protocol(epochs=9, select_every=2, patience=1)
    result = Run(folder=tmp_path / "one", rules=rules, validate=scripted(0.3, 0.4, 0.4)).train()
    assert (len(result.history), result.selected_epoch) == (6, 4)


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
    one, four = (statistics.fmean(value for _, value in seen[name]) for name in ("one", "four"))
    assert one > 1.5 * four, "few maps cannot be shared out evenly among eight experts"


def trained_on(run: Run) -> list[int]:
    """Fills up with the positions of the images that pass the segmenter in training."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (run.rules.pixel_mean, run.rules.pixel_std))
    known = {}
    for index in range(len(run.source)):
        image = torch.from_numpy(run.source.image(index))
        known[int((image * torch.tensor([1, 7, 49]).view(3, 1, 1)).sum())] = index  # a flip leaves the sum as it is
    found: list[int] = []

    def look(module: Any, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            for image in ((inputs[0] * std + mean) * 255).round().long():
                found.append(known[int((image * torch.tensor([1, 7, 49]).view(3, 1, 1)).sum())])

    run.segmenter.register_forward_pre_hook(look)
    return found


def test_methods_see_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    seen = []
    for method in ("lora", "naslora", "decoder"):
        run = Run(folder=tmp_path / method, method=method, rules=protocol(cache_embeddings=False))
        seen.append(trained_on(run))
        run.train()
    assert len(seen[0]) == 21
    assert seen[0] == seen[1] == seen[2]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = (
        summary(Run(folder=tmp_path / str(k), method="convlora", seed=seed).train()) for k, seed in enumerate((0, 0, 1))
    )
    assert first == second
    assert first["last"] != other["last"]


def test_noise_does_not_depend_on_what_else_drew_from_torchs_generator(tmp_path: Path) -> None:
    first = summary(Run(folder=tmp_path / "a", method="convlora").train())

    def draws(progress: Progress) -> None:
        torch.rand(3)

    assert summary(Run(folder=tmp_path / "b", method="convlora", report=draws).train()) == first


def test_the_noise_of_every_step_is_its_own(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, method="convlora", images=4, seed=3, rules=protocol(epochs=2))
    seeds: list[tuple[int, int]] = []

    def look(progress: Progress) -> None:
        if progress.kind == "step":
            seeds.append((run.attached.generator.initial_seed(), torch.initial_seed()))

    run.report = look
    run.train()
    places = [(3, epoch, step, 0) for epoch in range(2) for step in range(2)]
    assert seeds == [(draw("method", *place), draw("torch", *place)) for place in places]
    assert len(set(seeds)) == 4


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


STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout"}


def watched(folder: Path, config: dict[str, Any], **more: Any) -> tuple[Run, list[tuple[int, set[str], set[int]]]]:
    """A NAS-LoRA run, and for each step its epoch, the roles whose parameters moved, and the images it used."""
    run = Run(folder=folder, method="naslora", config=config, images=10, **more)
    roles = {group.role: group.named for group in run.attached.parameter_groups()}
    before = {role: {name: p.detach().clone() for name, p in named.items()} for role, named in roles.items()}
    images = trained_on(run)
    steps: list[tuple[int, set[str], set[int]]] = []

    def look(progress: Progress) -> None:
        if progress.kind != "step":
            return
        moved: set[str] = set()
        for role, named in roles.items():
            if any(not torch.equal(p.detach(), before[role][name]) for name, p in named.items()):
                moved.add(role)
            before[role] = {name: p.detach().clone() for name, p in named.items()}
        steps.append((progress.epoch, moved, set(images)))
        images.clear()

    run.report = look
    return run, steps


def test_stagewise_steps_move_one_role_and_use_its_own_images(tmp_path: Path) -> None:
    run, steps = watched(tmp_path, STAGEWISE)
    result = run.train()
    assert all(len(moved) == 1 for _, moved, _ in steps)
    assert all(moved == {WEIGHTS} for epoch, moved, _ in steps if epoch == 1)
    assert {ARCHITECTURE, WEIGHTS} == {role for epoch, moved, _ in steps if epoch > 1 for role in moved}
    kept, held_out = hold_out(10, run.attached.architecture_holdout(), seed=0)
    assert held_out
    for _, moved, used in steps:
        assert used <= set(held_out if moved == {ARCHITECTURE} else kept)
    assert set.union(*(used for epoch, _, used in steps if epoch == 1)) == set(kept)
    assert len(result.architecture) == 3
    assert result.architecture[0] != result.architecture[2]
    assert set(result.cost) >= {"step_time_weights_s", "step_time_architecture_s"}
    assert sum(result.history[1]["updates"].values()) == sum(result.history[0]["updates"].values())


def test_both_moves_both_roles_in_a_step_and_weights_see_the_images_of_every_method(tmp_path: Path) -> None:
    run, steps = watched(tmp_path / "nas", {"alternate": "both", "search_start_epoch": 1})
    result = run.train()
    other = Run(folder=tmp_path / "lora", images=10).train()

    assert all(moved == {WEIGHTS} for epoch, moved, _ in steps if epoch == 1)
    assert all(moved == {WEIGHTS, ARCHITECTURE} for epoch, moved, _ in steps if epoch > 1)
    assert [entry["updates"] for entry in result.history[1:]] == [{"weights": 5, "architecture": 5}] * 2
    assert [entry["updates"]["weights"] for entry in result.history] == [
        entry["updates"]["weights"] for entry in other.history
    ]


def test_a_run_of_both_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    config = {"alternate": "both", "search_start_epoch": 1}
    whole = summary(Run(folder=tmp_path / "whole", method="naslora", config=config).train())
    stop = StopRequest()

    def after_step(progress: Progress) -> None:
        stop.requested = progress.kind == "step" and (progress.epoch, progress.step) == (2, 2)

    with pytest.raises(Interrupted):
        Run(folder=tmp_path / "cut", method="naslora", config=config, stop=stop, report=after_step).train()
    resumed = Run(folder=tmp_path / "cut", method="naslora", config=config).train()

    assert summary(resumed) == whole


@pytest.mark.parametrize(
    "config",
    [
        {"alternate": "iteration", "search_start_epoch": 1},
        {"alternate": "epoch", "search_start_epoch": 1},
        {"alternate": "both", "search_start_epoch": 1, "alpha_data": "holdout"},
        {"alternate": "joint", "search_start_epoch": 0},
    ],
)
def test_a_budget_of_updates_gives_the_weights_of_every_reading_as_many(tmp_path: Path, config: dict[str, Any]) -> None:
    rules = protocol(budget="updates")
    lora = Run(folder=tmp_path / "lora", rules=rules, images=9).train()
    reading = Run(folder=tmp_path / "nas", method="naslora", config=config, rules=rules, images=9).train()

    assert lora.budget == {"weight_updates": 15.0}
    assert reading.budget["weight_updates"] == 15.0
    assert reading.budget["alpha_updates"] > 0


def test_the_budget_of_alpha_is_the_sum_of_its_rates_and_the_cap_that_follows(tmp_path: Path) -> None:
    config = {"alternate": "both", "search_start_epoch": 1, "alpha_lr": 0.01}
    result = Run(folder=tmp_path, method="naslora", config=config, images=8).train()
    rates = [0.01 * (1 - update / 12) for update in range(4, 12)]

    assert result.budget["alpha_updates"] == 8.0
    assert result.budget["alpha_lr_sum"] == pytest.approx(sum(rates))
    assert result.budget["share_cap"] == pytest.approx(1 / (1 + 7 * math.exp(-2 * sum(rates))))


def test_running_statistics_are_the_mean_over_batches_where_asked(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    run = Run(folder=tmp_path, method="naslora", rules=protocol(epochs=1, statistics_batches=3), images=8)
    name = next(iter(run.attached.own_buffers()))
    run.validate = lambda: {"iou": float(seen.append(run.segmenter.get_buffer(name).clone()) or 0)}
    run.train()
    cell = run.segmenter.get_submodule(name.rpartition(".")[0])
    of_batches = []
    order = shuffled(8, "statistics", 0)
    run.segmenter.train()
    cell.momentum = 1.0
    for start in (0, 2, 4):
        images = np.stack([run.source.image(index) for index in order[start : start + 2]])
        batch = normalise(torch.from_numpy(images), mean=run.rules.pixel_mean, std=run.rules.pixel_std)
        with torch.no_grad():
            run.segmenter(batch)
        of_batches.append(run.segmenter.get_buffer(name).clone())

    assert name.endswith("running_mean")
    torch.testing.assert_close(seen[0], torch.stack(of_batches).mean(dim=0))


def test_the_held_out_images_are_those_of_the_runs_seed(tmp_path: Path) -> None:
    run, steps = watched(tmp_path, {**STAGEWISE, "search_start_epoch": 0}, seed=5, rules=protocol(epochs=1))
    run.train()
    kept, held_out = hold_out(10, run.attached.architecture_holdout(), seed=5)
    assert held_out != hold_out(10, run.attached.architecture_holdout(), seed=0)[1]
    for _, moved, used in steps:
        assert used <= set(kept if moved == {WEIGHTS} else held_out)


def test_joint_steps_move_both_roles(tmp_path: Path) -> None:
    run, steps = watched(tmp_path, {"stagewise": False})
    result = run.train()
    # The up-projection starts at zero, so no gradient reaches α in the very first step.
    assert [moved for _, moved, _ in steps] == [{WEIGHTS}] + [{ARCHITECTURE, WEIGHTS}] * (len(steps) - 1)
    assert [entry["updates"] for entry in result.history] == [{"weights+architecture": 5}] * 3


def test_gradients_of_the_idle_role_are_not_even_computed(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, method="naslora", config=STAGEWISE, rules=protocol(epochs=2))
    groups = {group.role: list(group.named.values()) for group in run.attached.parameter_groups()}
    run.report = lambda progress: seen.append([p.grad is None for named in groups.values() for p in named])
    seen: list[list[bool]] = []
    computed: list[str] = []
    groups[ARCHITECTURE][0].register_hook(lambda gradient: computed.append("architecture"))
    groups[WEIGHTS][0].register_hook(lambda gradient: computed.append("weights"))
    result = run.train()
    updates: dict[str, int] = {}
    for entry in result.history:
        for role, count in entry["updates"].items():
            updates[role] = updates.get(role, 0) + count
    assert {role: computed.count(role) for role in updates} == updates
    assert all(all(cleared) for cleared in seen)


def test_multiclass_training_runs_with_its_own_loss(tmp_path: Path) -> None:
    result = Run(folder=tmp_path, task="multiclass", classes=4, rules=protocol(epochs=4)).train()
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < losses[0]


def test_a_loss_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit a binary benchmark"):
        Run(folder=tmp_path / "x", rules=protocol(loss="mask2former")).train()
    assert not (tmp_path / "x").exists()


def test_a_stop_during_validation_is_heard_before_the_next_epoch(tmp_path: Path) -> None:
    alone = summary(Run(folder=tmp_path / "alone").train())
    stop = StopRequest()
    run = Run(folder=tmp_path / "stopped", stop=stop)

    def validate() -> dict[str, float]:
        stop.request()
        return run.scores()

    run.validate = validate
    with pytest.raises(Interrupted, match="stopped in epoch 2 after step 0"):
        run.train()
    assert summary(Run(folder=tmp_path / "stopped").train()) == alone


def test_more_workers_than_images_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 workers share batches of 2 images; use fewer workers"):
        Run(folder=tmp_path, workers=Workers(rank=0, size=3)).train()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot reset a process's peak")
def test_peak_memory_leaves_validation_out(tmp_path: Path) -> None:
    def hungry() -> dict[str, float]:
        return {"iou": float(torch.ones(100_000_000).sum() * 0)}  # 400 MB, touched

    plain = Run(folder=tmp_path / "plain", validate=scripted(0.0, 0.0, 0.0)).train()
    result = Run(folder=tmp_path / "hungry", validate=hungry).train()
    assert abs(result.cost["peak_memory_bytes"] - plain.cost["peak_memory_bytes"]) < 100e6


def test_another_runs_checkpoint_is_not_continued(tmp_path: Path) -> None:
    Run(folder=tmp_path).train()
    path = tmp_path / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "identity": "other"}, path)
    (tmp_path / "checkpoint.previous.pt").unlink()
    notes: list[str] = []
    steps: list[int] = []

    def look(progress: Progress) -> None:
        if progress.text:
            notes.append(progress.text)
        if progress.kind == "step":
            steps.append(progress.step)

    Run(folder=tmp_path, report=look).train()
    assert any("belongs to run other" in note for note in notes)
    assert len(steps) == 12
