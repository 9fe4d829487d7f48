"""Training, the measured cost and the doctor take one training step, with the roles that the method says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from harness.contract import gpu
from harness.contract.case import ContractCase
from harness.costing.measure import build_subject
from harness.registry import METHODS, method_config
from harness.training.step import TrainingStep
from tests.harness.costing.small import session_of
from tests.harness.training.tiny import CPU, Run, protocol

SEARCHING = {"search_start_epoch": 0}
CONFIG = method_config("naslora", SEARCHING)


def trained(folder: Path) -> Callable[[], object]:
    return Run(folder=folder, method="naslora", config=SEARCHING, images=2, rules=protocol(epochs=1)).train


def measured(_: Path) -> Callable[[], object]:
    session = session_of("naslora")
    subject = build_subject(replace(session.rows[0], config=CONFIG), session)

    def work() -> None:
        for kind in subject.shares():
            subject.step(kind)
            subject.step_watched(kind, live=lambda: 0)
            assert min(subject.count_flops(kind)) > 0
        subject.close()

    return work


def examined(_: Path) -> Callable[[], object]:
    case = ContractCase(method=METHODS.get("naslora"), config=CONFIG)
    assert case.training.losses, "by the contract's own loop, before anything is watched"
    return lambda: gpu._step(case, CPU, "fp32")


@pytest.mark.parametrize("caller", [trained, measured, examined])
def test_every_backward_pass_is_the_training_steps(
    caller: Callable[[Path], Callable[[], object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, backward = TrainingStep.gradients, Tensor.backward
    inside, seen = False, list[Any]()

    def watched(self: TrainingStep, roles: Any, *arguments: Any, **options: Any) -> Tensor:
        nonlocal inside
        inside = True
        loss = gradients(self, roles, *arguments, **options)
        inside = False
        seen.append(roles)
        return loss

    def noted(self: Tensor, *arguments: Any, **options: Any) -> None:
        assert inside, "a backward pass of its own"
        backward(self, *arguments, **options)

    work = caller(tmp_path)
    monkeypatch.setattr(TrainingStep, "gradients", watched)
    monkeypatch.setattr(Tensor, "backward", noted)
    work()
    assert set(seen) == {("weights",), ("architecture",)}
