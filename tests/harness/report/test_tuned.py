"""What a page says of a rate that was chosen."""

from __future__ import annotations

from harness.report.score_tables import tuning_tables
from harness.report.titles import titled_grids
from tests.harness.report.sample import MadeUp, record


def test_a_row_and_benchmark_whose_rate_was_chosen_are_told_once() -> None:
    trials = [{"options": {"lr": 0.1}, "score": None}, {"options": {"lr": 0.01}, "score": 0.876}]
    tuning = {
        "chosen": {"lr": 0.01}, "edge": ["lr"], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    plain = [record(method="decoder", seed=seed) for seed in range(2)]
    tuned = [record(seed=seed, tuning=tuning) for seed in range(2)]
    (titled,) = titled_grids([*plain, *tuned], MadeUp())
    (table,) = tuning_tables(titled)
    (line,) = table.rows
    assert [cell.text for cell in line.cells][3:] == ["lr=0.1: diverged; lr=0.01: 87.6", "lr=0.01", "lr", "1.50"]
    (titled,) = titled_grids(plain, MadeUp())
    assert tuning_tables(titled) == []


def test_benchmarks_with_one_choice_share_a_row_in_the_order_of_the_columns() -> None:
    trials = [{"options": {"lr": 0.1}, "score": 0.8}, {"options": {"lr": 0.01}, "score": 0.876}]
    both = {
        "chosen": {"lr": 0.01}, "edge": [], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    own = {**both, "chosen": {"lr": 0.1}, "on": ["isic2017"]}
    tuned = [record(benchmark=name, tuning=both) for name in ("road", "kvasir")]
    (titled,) = titled_grids([*tuned, record(benchmark="isic2017", tuning=own)], MadeUp())
    (table,) = tuning_tables(titled)
    assert [[*[cell.text for cell in line.cells][:3], line.cells[4].text] for line in table.rows] == [
        ["lora", "Kvasir-SEG, Road", "Sα ↑ on Kvasir-SEG", "lr=0.01"],
        ["lora", "ISIC 2017", "Sα ↑ on ISIC 2017", "lr=0.1"],
    ]
