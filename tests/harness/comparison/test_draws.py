"""Reruns are draws of their own, collapsed runs are counted, folds have their own interval, and gaps make no table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness import statistics as stats
from harness.comparison.cells import Cell, Column, paired_difference
from harness.comparison.draws import RERUN, Collapses, Draws, collapsed, with_pooled_runs, without_collapsed
from harness.comparison.grids import on_column, without_gaps
from harness.comparison.rows import Row, Sheet, rows_of_records
from tests.harness.report.sample import MadeUp, record
from tests.values import RESULTS, there

COLUMN = Column(benchmark="kvasir", split="test", metric="s_measure", manifest="manifest-kvasir")


def cell(values: list[float], **changes: Any) -> Cell:
    records = [record(value, seed=seed, **changes) for seed, value in enumerate(values)]
    row = Row(sheet=Sheet.of(records[0].run), label="row", method="lora", records=records)
    return Cell.of(row, COLUMN, range(len(values)))


def test_a_run_far_below_the_median_of_its_row_has_collapsed() -> None:
    runs = cell([0.9, 0.88, 0.6])
    assert collapsed(runs) == [2]
    assert collapsed(cell([0.9, 0.88, 0.69])) == []
    assert without_collapsed(runs).seeds == [0, 1]
    assert Collapses.of([runs, cell([0.1])]) == Collapses(runs=3, collapsed=1)
    rest: Any = SimpleNamespace(below=lambda column: [cell([0.9, 0.4])])
    seen: Any = SimpleNamespace(by_image=(), first=runs)
    assert with_pooled_runs(seen, rest) is None, "no row is left with two runs"


def test_seeds_that_split_the_images_anew_have_the_interval_of_folds() -> None:
    first, second = ([0.9, 0.8, 0.85], [0.8, 0.75, 0.7])
    rules = {"split_follows_seed": True}
    difference = there(paired_difference(cell(first, rules=rules), cell(second, rules=rules), MadeUp()))
    plain = there(paired_difference(cell(first), cell(second), MadeUp()))
    assert difference.folds
    assert difference.estimate == stats.of_folds(difference.by_seed, test_share=8 / 20)
    for ours, alone in ((difference, plain), (cell(first, rules=rules), cell(first))):
        assert there(ours.interval).half == pytest.approx(there(alone.interval).half * (1 + 3 * 8 / 20) ** 0.5)
    unknown = cell(first, rules=rules, counts={"train": 20})  # how many images were tested
    assert unknown.interval == cell(first).interval


@pytest.mark.parametrize("folds", [True, False])
def test_folds_have_no_p_over_seeds_which_takes_them_as_independent(*, folds: bool) -> None:
    rules = {"split_follows_seed": folds}
    values = [0.9, 0.8, 0.85, 0.82, 0.88, 0.87, 0.9, 0.86]
    first, second = cell(values, rules=rules), cell([value - 0.01 - value / 100 for value in values], rules=rules)
    baseline, row = SimpleNamespace(label="lora"), SimpleNamespace(label="naslora")
    grid: Any = SimpleNamespace(rows=[baseline, row], difference=lambda *_: paired_difference(first, second, MadeUp()))
    (contrast,) = on_column(grid, baseline, first.column)  # type: ignore[arg-type]
    assert (contrast.p_seeds is None) == folds
    assert ("folds" in contrast.p_in_words[0]) == folds


def test_reruns_are_draws_with_images_of_their_own() -> None:
    archive = Draws(RESULTS, again=RESULTS / "again" / "avx512")
    assert len(archive.reruns) == 6
    again = archive.reruns[0]
    assert again.run.seed >= RERUN
    first = next(record for record in archive.records if record.key == again.key and record.run.seed < RERUN)
    ours, theirs = (there(archive.images(record, "best", "test", "s_measure")).scores for record in (again, first))
    assert ours.keys() == theirs.keys()
    assert ours != theirs


@pytest.mark.parametrize(
    ("tested", "shown"),
    [((0, 1), [0, 1]), ((0, 100), [0, 1, 100]), ((), [100])],
)
def test_the_seed_that_chose_a_rate_is_no_draw_beside_seeds_that_did_not(tested: tuple[int, ...], shown: list[int]):
    tuning = {"grid": {"lr": [1e-4, 1e-3]}, "chosen": {"lr": 1e-3}, "trials": [], "seeds": [100]}
    records = [record(0.95, seed=100, tuning=tuning, planned_seeds=(100,))]
    records += [record(0.9, seed=seed, tuning=tuning, planned_seeds=tested) for seed in (0, 1) if tested]
    (row,) = rows_of_records(Sheet.of(records[0].run), records)
    assert sorted(r.run.seed for r in row.records) == shown


def test_a_barely_begun_place_costs_no_rows() -> None:
    done = {"a": {1, 2, 3}, "b": {1}, "c": {1, 2, 3, 4}}
    assert without_gaps(done, least=3) == (["a", "c"], {1, 2, 3})
    assert without_gaps(done, least=1) == (["a", "b", "c"], {1})
    assert without_gaps(done, least=5) == ([], set())
    assert without_gaps({}, least=1) == ([], set())


def test_the_fullest_place_is_no_better_a_start_than_another() -> None:
    assert without_gaps({"a": {1, 2, 3, 4, 5}, "b": {6, 7, 8}, "c": {6, 7, 8}}, least=3) == (["b", "c"], {6, 7, 8})
