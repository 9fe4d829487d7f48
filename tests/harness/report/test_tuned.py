"""What a page says of a rate that was chosen, and of a configuration that is not what the method's name is taken for."""

from __future__ import annotations

from typing import Any

import pytest

from harness.comparison.grids import grids
from harness.comparison.rows import is_entry
from harness.report.score_tables import tuning_tables
from harness.report.titles import titled_grids
from tests.harness.report.sample import MadeUp, record


def test_a_row_and_benchmark_whose_rate_was_chosen_are_told_once() -> None:
    trials = [{"options": {"lr": 0.1}, "score": None}, {"options": {"lr": 0.01}, "score": 0.876}]
    tuning = {
        "chosen": {"lr": 0.01}, "edge": ["lr"], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    plain = [record(method="decoder", seed=seed) for seed in range(2)]
    (titled,) = titled_grids([*plain, *[record(seed=seed, tuning=tuning) for seed in range(2)]], MadeUp())
    (table,) = tuning_tables(titled)
    assert table.level == 3
    (line,) = table.rows
    assert [cell.text for cell in line.cells][3:] == ["lr=0.1: no score; lr=0.01: 87.6", "lr=0.01", "lr", "1.50"]
    (titled,) = titled_grids(plain, MadeUp())
    assert tuning_tables(titled) == []


def test_benchmarks_with_one_choice_share_a_row_in_the_order_of_the_columns() -> None:
    trials = [{"options": {"lr": 0.1}, "score": 0.8}, {"options": {"lr": 0.01}, "score": 0.876}]
    both = {
        "chosen": {"lr": 0.01}, "edge": [], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    own = {**both, "chosen": {"lr": 0.1}, "on": ["isic2017"], "trials": trials[:1]}
    tuned = [record(benchmark=name, tuning=both) for name in ("road", "kvasir")]
    (titled,) = titled_grids([*tuned, record(benchmark="isic2017", tuning=own)], MadeUp())
    assert titled.grid.rows[0].trials == ", tuned, 1–2 trials"
    (table,) = tuning_tables(titled)
    assert [[*[cell.text for cell in line.cells][:3], line.cells[4].text] for line in table.rows] == [
        ["lora", "Kvasir-SEG, Road", "Sα ↑ on Kvasir-SEG", "lr=0.01"],
        ["lora", "ISIC 2017", "Sα ↑ on ISIC 2017", "lr=0.1"],
    ]


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
    assert all(is_entry(r, {"gate": gate}) for r in (older, newer) for gate in ("switch", "intended"))
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
