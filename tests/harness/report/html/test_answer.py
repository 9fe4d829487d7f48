"""The sentences of an answer name rows in the order of what they say of them, whatever the order of the table."""

from __future__ import annotations

import itertools

from harness.report.answers import answer
from harness.report.titles import titled_grids
from tests.harness.report.sample import MadeUp, record

MEANS = {"full": (0.7, 0.9), "bitfit": (0.9, 0.9), "lora": (0.8, 0.8)}  # in the order of the table


def test_rows_are_named_from_the_best_and_from_the_nearest() -> None:
    records = [
        record(value + 0.001 * seed, method=method, benchmark=benchmark, seed=seed)
        for method, values in MEANS.items()
        for benchmark, value in zip(("kvasir", "cvc612"), values, strict=True)
        for seed in range(3)
    ]
    (titled,) = titled_grids(records, MadeUp())
    said = answer(titled).sentences
    assert [row.label for row in titled.grid.rows] == list(MEANS)
    assert said[0].endswith(": bitfit on 2 of 2, full on 1 of 2; 1 other rows on none.")
    assert said[1].endswith("from lora (by 10.0 [10.0, 10.0] points) to full (by 20.0 [20.0, 20.0]).")


def test_a_benchmark_with_a_gap_counts_neither_for_nor_against_a_row() -> None:
    grid = itertools.product(("bitfit", "lora"), ("kvasir", "cvc612", "camo"), range(2))
    gap = ("lora", "cvc612", 1)
    records = [
        record(0.8 + 0.001 * seed, method=method, benchmark=benchmark, seed=seed)
        for method, benchmark, seed in grid
        if (method, benchmark, seed) != gap
    ]
    records.append(record(method="lora", benchmark="cvc612", seed=1, code="OOM"))
    records += [record(0.7 + 0.001 * seed, method="full", benchmark="cvc612", seed=seed) for seed in range(2)]
    (titled,) = titled_grids(records, MadeUp())
    assert answer(titled).sentences[0].endswith(": bitfit on 3 of 3, lora on 2 of 2; 1 other rows on none.")


def test_one_seed_says_what_is_highest_and_ranks_nothing() -> None:
    records = [record(score, method=method) for method, score in (("decoder", 0.70), ("lora", 0.82), ("adapter", 0.75))]
    (titled,) = titled_grids(records, MadeUp())
    found = answer(titled)
    assert found.sentences[0].startswith("Kvasir-SEG Sα: highest here (1 seed): lora (82.0), 7.0 points from adapter")
    assert not found.ranks
