"""Who is learnt in which step of the loop, from which images, and how many updates each role gets."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.methods.base import ARCHITECTURE, WEIGHTS
from harness.system.errors import UsageError
from harness.training.batches import hold_out
from tests.harness.training.tiny import Run, protocol


def trained_on(run: Run) -> list[int]:
    """Fills up with the positions of the images that pass the segmenter in training."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in run.rules.pixels)
    known = {}
    for index in range(len(run.source)):
        image = torch.from_numpy(run.source.image(index))
        known[int((image * torch.tensor([1, 7, 49]).view(3, 1, 1)).sum())] = index  # a flip leaves the sum as it is
    seen: list[int] = []

    def look(module: Any, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            for image in ((inputs[0] * std + mean) * 255).round().long():
                seen.append(known[int((image * torch.tensor([1, 7, 49]).view(3, 1, 1)).sum())])

    run.segmenter.register_forward_pre_hook(look)
    return seen


def test_methods_see_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    seen = []
    for method in ("lora", "naslora", "decoder"):
        run = Run(folder=tmp_path / method, method=method, rules=protocol(epochs=2, cache_embeddings=False))
        seen.append(trained_on(run))
        run.train()
    assert len(seen[0]) == 14
    assert seen[0] == seen[1] == seen[2]


STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout", "alternate": "iteration"}


def watched(folder: Path, config: dict[str, Any], **more: Any) -> tuple[Run, list[tuple[int, set[str], set[int]]]]:
    """A NAS-LoRA run, and for each step its epoch, the roles whose parameters moved, and the images it used."""
    run = Run(folder=folder, method="naslora", config=config, images=10, **more)
    roles = {group.role: group.named for group in run.attached.parameter_groups()}
    before = {role: {name: p.detach().clone() for name, p in named.items()} for role, named in roles.items()}
    images = trained_on(run)
    steps: list[tuple[int, set[str], set[int]]] = []

    def look(progress: dict[str, Any]) -> None:
        if progress["kind"] != "step":
            return
        moved: set[str] = set()
        for role, named in roles.items():
            if any(not torch.equal(p.detach(), before[role][name]) for name, p in named.items()):
                moved.add(role)
            before[role] = {name: p.detach().clone() for name, p in named.items()}
        steps.append((progress["epoch"], moved, set(images)))
        images.clear()

    run.report = look
    return run, steps


def test_stagewise_steps_move_one_role_and_use_its_own_images(tmp_path: Path) -> None:
    run, steps = watched(tmp_path, STAGEWISE, seed=5)
    result = run.train()
    assert all(len(moved) == 1 for _, moved, _ in steps)
    assert all(moved == {WEIGHTS} for epoch, moved, _ in steps if epoch == 1)
    assert {ARCHITECTURE, WEIGHTS} == {role for epoch, moved, _ in steps if epoch > 1 for role in moved}
    (kept, held_out), (_, of_another) = (hold_out(10, run.attached.architecture_holdout(), seed=s) for s in (5, 0))
    assert held_out != of_another
    for _, moved, used in steps:
        assert used <= set(held_out if moved == {ARCHITECTURE} else kept)
    assert set.union(*(used for epoch, _, used in steps if epoch == 1)) == set(kept)
    assert len(result.architecture) == 3
    assert result.architecture[0] != result.architecture[2]
    assert set(result.cost()) >= {"step_time_weights_s", "step_time_architecture_s"}
    assert sum(result.history[1]["updates"].values()) == sum(result.history[0]["updates"].values())


def test_both_moves_both_roles_in_a_step_and_weights_see_the_images_of_every_method(tmp_path: Path) -> None:
    run, steps = watched(tmp_path / "nas", {"alternate": "both", "search_start_epoch": 1}, rules=protocol(epochs=2))
    result = run.train()
    other = Run(folder=tmp_path / "lora", images=10, rules=protocol(epochs=2)).train()
    assert all(moved == {WEIGHTS} for epoch, moved, _ in steps if epoch == 1)
    assert all(moved == {WEIGHTS, ARCHITECTURE} for epoch, moved, _ in steps if epoch > 1)
    assert [entry["updates"] for entry in result.history[1:]] == [{"weights": 5, "architecture": 5}]
    assert [entry["updates"]["weights"] for entry in result.history] == [
        entry["updates"]["weights"] for entry in other.history
    ]


@pytest.mark.parametrize("data", ["holdout", "shuffled"])
def test_one_image_cannot_be_held_out_nor_get_anothers_mask(tmp_path: Path, data: str) -> None:
    config = {"alternate": "both", "search_start_epoch": 0, "alpha_data": data}
    with pytest.raises(UsageError, match="two training images"):
        Run(folder=tmp_path, method="naslora", config=config, images=1).train()


@pytest.mark.parametrize("alternate", ["both", "epoch"])
def test_shuffled_masks_reach_alpha_alone(tmp_path: Path, alternate: str) -> None:
    config = {"alternate": alternate, "search_start_epoch": 1}
    plain, shuffled_masks = (
        Run(folder=tmp_path / data, method="naslora", config=config | {"alpha_data": data}, images=4).train()
        for data in ("train", "shuffled")
    )
    assert plain.history[0]["loss"] == shuffled_masks.history[0]["loss"]
    assert plain.architecture[0] == shuffled_masks.architecture[0]
    assert plain.architecture[-1] != shuffled_masks.architecture[-1]


def test_a_budget_of_updates_gives_the_weights_of_every_reading_as_many(tmp_path: Path) -> None:
    rules = protocol(epochs=2, budget="updates")
    assert Run(folder=tmp_path / "lora", rules=rules, images=5).train().budget() == {"weight_updates": 6.0}
    for number, config in enumerate(
        (
            {"alternate": "iteration", "search_start_epoch": 1},
            {"alternate": "epoch", "search_start_epoch": 1},
            {"alternate": "both", "search_start_epoch": 1, "alpha_data": "holdout"},
            {"alternate": "iteration", "search_start_epoch": 1, "alpha_data": "shuffled"},
            {"alternate": "joint", "search_start_epoch": 0},
        )
    ):
        result = Run(folder=tmp_path / str(number), method="naslora", config=config, rules=rules, images=5).train()
        assert result.budget()["weight_updates"] == 6.0, config
        assert result.budget()["alpha_updates"] > 0, config


def test_the_budget_of_alpha_is_the_sum_of_its_rates_and_the_cap_that_follows(tmp_path: Path) -> None:
    config = {"alternate": "both", "search_start_epoch": 1, "alpha_lr": 0.01}
    result = Run(folder=tmp_path, method="naslora", config=config, images=8).train()
    rates = [0.01 * (1 - update / 12) for update in range(4, 12)]
    assert result.budget()["alpha_updates"] == 8.0
    assert result.budget()["alpha_lr_sum"] == pytest.approx(sum(rates))
    assert result.budget()["share_cap"] == pytest.approx(1 / (1 + 7 * math.exp(-2 * sum(rates))))


def test_steps_that_a_scaler_skips_are_no_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = functools.partial(torch.amp.GradScaler, init_scale=2.0**100)
    monkeypatch.setattr(torch.amp, "GradScaler", whole)
    config = {"alternate": "both", "search_start_epoch": 1}
    rules = protocol(epochs=2, precision="fp16")
    result = Run(folder=tmp_path, method="naslora", config=config, rules=rules, images=4).train()
    assert {name: result.budget()[name] for name in ("weight_updates", "alpha_updates", "alpha_lr_sum")} == {
        "weight_updates": 0.0, "alpha_updates": 0.0, "alpha_lr_sum": 0.0
    }  # fmt: skip


def test_joint_steps_move_both_roles_and_report_the_rate_of_the_weights(tmp_path: Path) -> None:
    run, steps = watched(tmp_path, {"stagewise": False, "alpha_lr": 0.05})
    result = run.train()
    # The up-projection starts at zero, so no gradient reaches α in the very first step.
    assert [moved for _, moved, _ in steps] == [{WEIGHTS}] + [{ARCHITECTURE, WEIGHTS}] * (len(steps) - 1)
    assert [entry["updates"] for entry in result.history] == [{"weights+architecture": 5}] * 3
    assert [entry["lr"] for entry in result.history] == pytest.approx([2e-3 * (1 - last / 15) for last in (4, 9, 14)])


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
