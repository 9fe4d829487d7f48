"""Where the time of a run went, and which products a step has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import Recorded, flops
from benchmarks.shares import shares, table

COST = {
    "stage_start_s": 1.0, "stage_loading_s": 2.0, "stage_training_s": 50.0, "stage_validating_s": 10.0, "stage_testing_s": 30.0,
    "stage_merging_s": 3.0, "stage_other_s": 4.0, "train_time_s": 49.0, "data_wait_s": 0.1, "steps": 40.0, "passes_s": 84.0,
}  # fmt: skip


def _record(**changed: Any) -> Any:
    return SimpleNamespace(**{"code": "OK", "attempts": 1, "cost": COST, **changed})


def test_shares_of_a_run_add_up_to_it() -> None:
    parts = shares(_record())
    assert parts["minutes"] == pytest.approx(100 / 60)
    assert parts["updates"] == pytest.approx(0.45)  # without the images waited for
    assert parts["outside passes"] == pytest.approx(0.16)
    assert sum(value for name, value in parts.items() if name not in ("minutes", "outside passes")) == pytest.approx(1)
    assert "45.0 %" in table({"lora": [parts]})
    assert "16.0 % (16.0 to 16.0)" in table({"lora": [parts]})


@pytest.mark.parametrize(
    "changed", [{"code": "OOM"}, {"attempts": 2}, {"cost": {"steps": 3.0}}, {"cost": {**COST, "steps": 0.0}}]
)
def test_a_run_that_says_nothing_of_them_is_left_out(changed: dict[str, Any]) -> None:
    assert shares(_record(**changed)) == {}


def test_products_of_forward_and_backward_are_those_that_torch_counts() -> None:
    layer, images = torch.nn.Linear(6, 5), torch.ones(4, 6, requires_grad=True)
    left, right = torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 4, 7, requires_grad=True)

    def step() -> None:
        (layer(images).sum() + torch.bmm(left, right).sum()).backward()

    with Recorded() as recorded:
        step()
    with FlopCounterMode(display=False) as counted:
        step()
    assert sum(count * flops(*pair) for pair, count in recorded.counts.items()) == counted.get_total_flops()
