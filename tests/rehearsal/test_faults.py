"""The rehearsal finds what is planted into LoRA's forward pass, and names its line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.methods.parts.lowrank import AdaptedLinear
from tests.rehearsal.runs import budget, listed, rehearse, small_job

Fault = Callable[[Tensor], Tensor]


def left_on_the_processor(x: Tensor) -> Tensor:
    return x * torch.ones(x.shape[-1])


def generated_on_the_processor(x: Tensor) -> Tensor:
    return x + 0 * torch.rand(x.shape, device=x.device, generator=torch.Generator())


def read_as_an_array(x: Tensor) -> Tensor:
    return x * float(x.detach().numpy().size > 0)


def read_as_a_number(x: Tensor) -> Tensor:
    return x + 0 * float(x.detach().sum())


def picked_by_a_mask(x: Tensor) -> Tensor:
    return x[x == x].view_as(x)


def made_of_a_list(x: Tensor) -> Tensor:
    return x * torch.tensor([1.0], device=x.device)


def planted(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> str:
    """Its line, as the rehearsal names it."""
    forward = AdaptedLinear.forward
    monkeypatch.setattr(AdaptedLinear, "forward", lambda self, *given: fault(forward(self, *given)))
    return f"tests/rehearsal/test_faults.py:{inspect.getsourcelines(fault)[1] + 1}"


@pytest.mark.parametrize("fault", [left_on_the_processor, generated_on_the_processor, read_as_an_array])
def test_what_fails_on_a_gpu_fails_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    line = planted(monkeypatch, fault)
    record = rehearse(small_job(tmp_path, "lora")).record
    assert record.code == "ERROR"
    assert line in record.message


@pytest.mark.parametrize(
    "fault",
    [read_as_a_number, *(pytest.param(each, marks=pytest.mark.slow) for each in (picked_by_a_mask, made_of_a_list))],
)
def test_what_waits_exceeds_the_budget_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    line = planted(monkeypatch, fault)
    seen = rehearse(small_job(tmp_path, "lora"))
    assert seen.step.total() > budget("step", "sam", "lora")
    assert line in listed(seen.step)
