"""A row whose configuration is not what a reader takes the method's name for says so."""

from __future__ import annotations

from typing import Any

import pytest

from harness.comparison.grids import grids
from harness.comparison.rows import is_entry
from tests.harness.report.sample import MadeUp, record

CONVLORA = {"lr": None, "blocks": "all", "sites": "qkv", "rank": 3, "alpha": 32.0, "experts": 8, "balance": 0.01}


def labels(*records: Any) -> list[str]:
    (grid,) = grids(records, MadeUp())
    return [row.shown for row in grid.rows]


@pytest.mark.parametrize(("gate", "label"), [("released", "convlora"), ("switch", "convlora (Switch gate)")])
def test_conv_loras_row_says_whose_gate_it_has(gate: str, label: str) -> None:
    assert labels(record(method="convlora", config={**CONVLORA, "gate": gate})) == [label]


def test_records_under_the_gates_older_name_share_a_row_with_those_under_its_new_one() -> None:
    older, newer = (
        record(method="convlora", seed=seed, config={**CONVLORA, "gate": gate, **more})
        for seed, gate, more in ((0, "intended", {}), (1, "switch", {"expert_bias": "uniform"}))
    )
    assert labels(older, newer) == ["convlora (Switch gate)"]
    assert all(is_entry(one, {"gate": gate}) for one in (older, newer) for gate in ("switch", "intended"))
    assert not is_entry(older, {"gate": "released"})


def test_another_start_of_the_experts_is_another_row() -> None:
    zero, uniform = (
        record(method="convlora", seed=seed, config={**CONVLORA, "gate": "released", "expert_bias": bias})
        for seed, bias in enumerate(("zero", "uniform"))
    )
    assert len(set(labels(zero, uniform))) == 2


def test_a_method_that_is_not_known_here_has_no_note() -> None:
    assert labels(record(method="elsewhere", config={"width": 3})) == ["elsewhere"]
    assert labels(record(method="convlora", config={"gate": ["no", "gate"]})) == ["convlora"]
