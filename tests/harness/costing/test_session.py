"""How a session goes: methods in turn, what fails, and several classes in half precision."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from harness.costing import measure as measuring
from harness.costing.measure import measure
from harness.costing.session import Roster, StepKind, Subject
from harness.methods.lora import LoRA
from harness.protocols.load import for_backbone, load_protocol
from harness.registry import method_config
from tests.harness.costing.small import SMALL, session_of


def test_methods_take_turns_round_by_round(monkeypatch: pytest.MonkeyPatch, of_training_alone: None) -> None:
    order: list[str] = []
    step = Subject.step

    def noted(self: Subject, phase):
        order.append(self.label)
        return step(self, phase)

    monkeypatch.setattr(Subject, "step", noted)
    monkeypatch.setattr(measuring, "_sizes", _no_sizes)
    measure(session_of("full", "lora", "bitfit"))
    assert order == ["full", "lora", "bitfit"] * 2


@pytest.mark.parametrize(
    ("alternate", "budget", "length", "architecture"),
    [
        ("both", "updates", 1.0, 0.75),  # with every step of the weights from T_B on
        ("iteration", "epochs", 1.0, 0.375),  # every second step from T_B on is α's
        ("iteration", "updates", 1.75, 3 / 7),  # and as many more until the weights have all of theirs
        ("joint", "updates", 1.0, 0.0),
    ],
)
def test_a_training_has_the_steps_that_its_budget_gives_it(alternate, budget, length: float, architecture: float):
    config = method_config("naslora", {"alternate": alternate, "search_start_epoch": 5})
    session = session_of("naslora")
    row = replace(session.rows[0], config=config)
    session = replace(session, rows=[row], protocol=replace(session.protocol, budget=budget))
    subject = measuring.build_subject(row, session)
    shares = {kind.roles: share for kind, share in subject.shares().items()}
    steps, _ = subject.steps_of_a_training
    assert steps == pytest.approx(100 * length * session.protocol.epochs, rel=1e-3)
    assert sum(share for roles, share in shares.items() if roles == ("architecture",)) == pytest.approx(
        architecture, abs=1e-3
    )


def _no_sizes(_: Subject) -> dict:
    return {"memory_bytes": {"allocated": 1}, "flops": {"forward": 1.0, "backward": 1.0}, "parameters": {}}


@pytest.fixture
def of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement without inference."""
    monkeypatch.setattr(measuring, "measure_inference", lambda roster, *_, **__: {name: {} for name in roster.subjects})


def test_augmented_images_pass_a_frozen_encoder_every_time() -> None:
    session = session_of("decoder")
    session = replace(session, protocol=replace(session.protocol, augment=("rotate",)))
    subject = measuring.build_subject(session.rows[0], session)
    assert subject.shares() == {StepKind(("weights",)): 1.0}
    subject.close()


def test_a_step_has_what_the_method_does_after_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = measuring.build_subject((session := session_of("lora")).rows[0], session)
    parameters = [p for group in subject.method.parameter_groups() for p in group.named.values()]
    seen: list[tuple[int, int, int, bool]] = []

    def noted(*, epoch: int, step: int, total: int) -> None:
        seen.append((epoch, step, total, all(p.grad is not None for p in parameters)))

    monkeypatch.setattr(subject.method, "after_update", noted)
    subject.step(StepKind(("weights",)))
    subject.step_watched(StepKind(("weights",)), live=lambda: 0)
    subject.close()
    assert seen == [(0, 0, 2000, True), (0, 1, 2000, True)]
    assert all(p.grad is None for p in parameters)


def test_peak_memory_is_that_of_the_dearest_kind_of_step(monkeypatch, of_training_alone: None) -> None:
    peaks = {"weights": {"allocated": 5, "activations": 1}, "architecture": {"allocated": 4, "activations": 3}}
    monkeypatch.setattr(measuring, "peak_memory", lambda _, kind: peaks[kind.name])
    (method,) = measure(replace(session_of("naslora"), rounds=1)).methods
    assert method.memory_bytes == {"allocated": 5, "activations": 3}


def test_a_merge_that_fails_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    twins: list[weakref.ref[LoRA]] = []
    alive: list[bool] = []

    def full(twin: LoRA, *_, **__):
        twins.append(weakref.ref(twin))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def released() -> None:
        gc.collect()
        alive.append(twins[-1]() is not None)

    monkeypatch.setattr(LoRA, "merge", full)
    monkeypatch.setattr(measuring, "release", released)
    monkeypatch.setattr(measuring, "_sizes", _no_sizes)
    (method,) = measure(replace(session_of("lora"), rounds=1)).methods
    assert set(method.inference_seconds) == {"unmerged"}
    assert set(method.merge_failures) == {"exact", "calibrated"}
    assert method.merge_failures["exact"] == "OOM: OutOfMemoryError: CUDA out of memory"
    assert alive == [False, False]  # or a failure for want of memory would keep a model more


def test_the_multiclass_task_is_measured_in_half_precision() -> None:
    protocol = for_backbone(load_protocol("demo", {**SMALL, "precision": "bf16", "mask_tokens": 3}), "tiny")
    session = session_of("lora", task="multiclass", num_classes=4)
    record = measure(replace(session, protocol=protocol, rounds=1))
    assert record.comparability.options["num_classes"] == 4
    assert record.comparability.options["mask_tokens"] == 3
    assert record.comparability.precision == "bf16"


def test_frozen_weights_that_methods_have_in_common_are_held_once_and_no_number_changes(
    of_training_alone: None,
) -> None:
    session = replace(session_of("lora", "bitfit", "full"), rounds=1)

    def built(*, shared: bool) -> list[Subject]:
        roster = Roster(report=print)
        subjects = [measuring.build_subject(row, session) for row in session.rows]
        for subject in subjects:
            if shared:
                roster.share_frozen(subject.segmenter)
        return subjects

    def held(subjects: list[Subject]) -> int:
        weights = [weight for subject in subjects for weight in subject.segmenter.parameters()]
        storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
        return sum(storages.values())

    ours, plain = built(shared=True), built(shared=False)
    frozen = {
        subject.label: sum(weight.nbytes for weight in subject.segmenter.parameters() if not weight.requires_grad)
        for subject in plain
    }
    expected = held(plain) - frozen["bitfit"] - frozen["full"]  # what these freeze is frozen in LoRA too
    assert 0.95 * expected < held(ours) <= expected < 0.8 * held(plain)  # equal biases of one model are one
    for first, second in zip(ours, plain, strict=True):
        for subject in (first, second):
            for kind in subject.shares():
                subject.step(kind)
        for weight, other in zip(first.segmenter.parameters(), second.segmenter.parameters(), strict=True):
            assert torch.equal(weight, other), first.label
