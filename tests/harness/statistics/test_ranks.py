"""Ranks equal scipy's where scipy has them, and the literature's tables where it has not."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from harness import statistics as s


def test_friedman_equals_scipy_and_refuses_too_few_blocks() -> None:
    table = np.random.default_rng(0).normal(size=(9, 4)) + np.arange(4)
    statistic, p = stats.friedmanchisquare(*table.T)
    test = s.friedman(table.tolist())
    assert (test.statistic, test.p) == pytest.approx((statistic, p))
    assert s.friedman(table[:2, :3].tolist()).p is None
    assert s.friedman([[1.0] * 3] * 9).p == 1.0
    agreed = s.friedman([[3.0, 2.0, 1.0]] * 4)
    assert agreed.p == pytest.approx(agreed.smallest)
    with pytest.raises(ValueError, match="three"):
        s.friedman(table[:, :2].tolist())


@pytest.mark.parametrize(
    ("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)]
)
def test_nemenyi_critical_values_equal_demsars_table_5(methods: int, quantile: float) -> None:
    scaled = s.nemenyi_critical_difference(methods=methods, blocks=1) / math.sqrt(methods * (methods + 1) / 6)
    assert scaled == pytest.approx(quantile, abs=2e-3)


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.5, 1, 12), generator.normal(0, 1, 9)
    u = stats.mannwhitneyu(first, second).statistic
    found = s.probability_of_improvement([list(first)], [list(second)])
    assert found.estimate == pytest.approx(u / (12 * 9))
    assert found.low <= found.estimate <= found.high
    assert s.probability_of_improvement([[1.0, 1.0]], [[1.0, 1.0]]).estimate == 0.5
    with pytest.raises(ValueError, match="shorter"):  # a benchmark of one alone
        s.probability_of_improvement([[1.0], [2.0]], [[1.0]])


def test_rank_stability_is_certain_without_overlap_and_open_with_it() -> None:
    apart = s.rank_stability({"a": [[0.9, 0.91]], "b": [[0.5, 0.51]]}, resamples=200)
    assert apart == {"a": {1: 1.0}, "b": {2: 1.0}}
    close = s.rank_stability({"a": [[0.9, 0.5, 0.7]], "b": [[0.89, 0.51, 0.7]]}, resamples=500)
    assert 0.2 < close["a"][1] < 0.8


def test_rows_of_the_same_seeds_are_drawn_together() -> None:
    """Ahead under every seed by less than the seeds differ: paired, it is never behind."""
    runs = [[0.5, 0.7, 0.9]]
    ahead = [[value + 0.01 for value in runs[0]]]
    assert s.rank_stability({"a": runs, "b": ahead}, resamples=500) == {"a": {2: 1.0}, "b": {1: 1.0}}
    found = s.probability_of_improvement(ahead, runs)
    assert found.low == found.estimate == pytest.approx(2 / 3)  # of all orders of three seeds, none is worse


def test_a_stratified_interval_draws_within_each_benchmark() -> None:
    runs = [[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]]
    found = s.stratified_interval(runs, statistics.fmean)
    assert found.estimate == pytest.approx(0.5)
    assert 0.4 < found.low < found.estimate < found.high < 0.6
    assert s.stratified_interval(runs, s.iqm).n == 3
    assert s.stratified_interval([[0.5, 0.5], [0.7, 0.7]], statistics.fmean).low == pytest.approx(0.6)


def test_every_draw_is_seeded() -> None:
    many = [math.sin(i) + 0.2 for i in range(40)]
    assert s.sign_flip(many) == s.sign_flip(many)
    runs = [[0.1, 0.2, 0.3]], [[0.15, 0.25, 0.2]]
    assert s.probability_of_improvement(*runs) == s.probability_of_improvement(*runs)
    assert s.stratified_interval(runs[0], s.iqm) == s.stratified_interval(runs[0], s.iqm)
