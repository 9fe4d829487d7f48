"""What a page says of a rate that was chosen."""

from __future__ import annotations

import pytest

from harness.report.tables import headed_grids
from harness.report.tuned import _score, tuning_blocks
from tests.harness.report.sample import record, sources


@pytest.mark.parametrize(("score", "words"), [(None, "diverged"), (0.876, "87.6"), (1.0, "100.0")])
def test_a_trial_has_its_score_in_points_or_diverged(score: float | None, words: str) -> None:
    assert _score(score) == words


def test_a_row_and_benchmark_whose_rate_was_chosen_are_told_once() -> None:
    trials = [{"options": {"lr": 0.1}, "score": None}, {"options": {"lr": 0.01}, "score": 0.876}]
    tuning = {
        "chosen": {"lr": 0.01}, "edge": ["lr"], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    plain = [record(method="decoder", seed=seed) for seed in range(2)]
    tuned = [record(seed=seed, tuning=tuning) for seed in range(2)]
    ((grid, heading),) = headed_grids([*plain, *tuned], sources=sources())
    (block,) = tuning_blocks(grid, heading=heading)
    (row,) = block.rows
    assert [cell.text for cell in row][3:] == ["lr=0.1: diverged; lr=0.01: 87.6", "lr=0.01", "lr", "1.50"]
    ((grid, heading),) = headed_grids(plain, sources=sources())
    assert tuning_blocks(grid, heading=heading) == []


def test_benchmarks_with_one_choice_share_a_row_in_the_order_of_the_columns() -> None:
    trials = [{"options": {"lr": 0.1}, "score": 0.8}, {"options": {"lr": 0.01}, "score": 0.876}]
    both = {
        "chosen": {"lr": 0.01}, "edge": [], "trials": trials, "metric": "s_measure", "on": ["kvasir"], "hours": 1.5,
    }  # fmt: skip
    own = {**both, "chosen": {"lr": 0.1}, "on": ["isic2017"]}
    tuned = [record(benchmark=name, tuning=both) for name in ("road", "kvasir")]
    ((grid, heading),) = headed_grids([*tuned, record(benchmark="isic2017", tuning=own)], sources=sources())
    (block,) = tuning_blocks(grid, heading=heading)
    assert [[*[cell.text for cell in row][:3], row[4].text] for row in block.rows] == [
        ["lora", "Kvasir-SEG, Road", "Sα ↑ on Kvasir-SEG", "lr=0.01"],
        ["lora", "ISIC 2017", "Sα ↑ on ISIC 2017", "lr=0.1"],
    ]
