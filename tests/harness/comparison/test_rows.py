"""Of each seed's runs validation chooses one, and a group that cannot choose yet shows why."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.archive.archive import frame
from harness.archive.schema import Record
from harness.comparison.rows import chosen_of
from harness.planning.request import PlannedRow
from harness.system.errors import UsageError
from tests.harness.planned import plan_of
from tests.harness.report.sample import MadeUp, record

GRID: dict[str, list[float]] = {"lr": [1e-4, 1e-3, 1e-2]}
OTHER: list[float | str] = [0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    ("outcomes", "chosen"),
    [
        ([0.7, 0.8, 0.6], [1e-3]),
        ([0.7, 0.8, 0.8], [1e-3]),  # of equals the lower rate
        ([0.7, 0.1, "DIVERGED"], [1e-4]),
        (["DIVERGED", "BLANK", 0.1], [1e-2]),  # a collapsed run has the score that it has
        (["DIVERGED", "DIVERGED", "BLANK"], [1e-4]),  # the gap shows a code
        ([0.7, "OOM", 0.8], [1e-3]),  # which has to run again, and the cell says so
        ([0.7, 0.8], []),  # the third has not run
        ([math.nan, math.nan, 0.1], [1e-2]),
    ],
)
def test_the_best_at_the_end_is_chosen(outcomes: list[float | str], chosen: list[float]) -> None:
    made = [
        record(
            config={"lr": rate}, seed=seed, code=outcome if isinstance(outcome, str) else "OK",
            scores={"last": {"val": {"iou": outcome}}},
        )
        for seed, of_seed in ((1, outcomes), (2, OTHER))
        for outcome, rate in zip(of_seed, GRID["lr"], strict=False)
    ]  # fmt: skip
    found = [(run.seed, run.method_config["lr"]) for run in chosen_of(frame(MadeUp(made[::-1]), "runs"), GRID)["run"]]
    assert sorted(found) == [*((1, rate) for rate in chosen), (2, 1e-4)]


def test_runs_on_other_files_choose_for_themselves() -> None:
    made = [
        record(config={"lr": rate}, scores={"last": {"val": {"iou": value}}}, data_fingerprint=f"content-{files}")
        for files, values in (("a", (0.7, 0.8)), ("b", (0.9, 0.6)))
        for rate, value in zip((1e-4, 1e-3), values, strict=True)
    ]
    found = chosen_of(frame(MadeUp(made), "runs"), {"lr": [1e-4, 1e-3]})["run"]
    assert {(run.data_fingerprint, run.method_config["lr"]) for run in found} == {
        ("content-a", 1e-3),
        ("content-b", 1e-4),
    }


def test_runs_under_other_rules_or_values_choose_for_themselves_and_errors_are_better_low(tmp_path) -> None:
    def records(**rules: Any) -> list[Record]:
        rates = [PlannedRow(method="lora", options={"lr": rate}) for rate in (1e-4, 1e-3, 1e-1)]
        jobs = plan_of(tmp_path, *rates, **rules).jobs
        scores = [{"last": {"val": {"ber": value}}} for value in (0.3, 0.2, 0.1)]
        return [Record(run=j.run, key=j.run.key, code="OK", scores=s) for j, s in zip(jobs, scores, strict=True)]

    both = [*records(), *records(weight_decay=0.5)]
    made = chosen_of(frame(MadeUp(both), "runs"), {"lr": ["1e-4", 1e-3]})
    assert [(r.run.method_config["lr"], r.run.rules["weight_decay"]) for r in made["record"]] == [
        (1e-3, 1e-4),
        (1e-3, 0.5),
    ]
    assert len(chosen_of(frame(MadeUp(both[:1]), "runs"), {"lr": [1e-4]})) == 1
    older = [Record(run=r.run, key=r.key, code="OK", scores={"best": {"val": {"ber": 0.1}}}) for r in both]
    with pytest.raises(UsageError, match="no validation score of its last state"):
        chosen_of(frame(MadeUp(older), "runs"), {"lr": [1e-4, 1e-3]})
