"""Ranks and their agreement equal scipy's where scipy has them, and the literature's tables or counts where it has not."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import kendalltau

from harness import statistics as s
from harness.statistics import ModelScores, agreement
from harness.statistics.ranks import _tau
from tests.values import there


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
    interval = s.probability_of_improvement([list(first)], [list(second)])
    assert interval.estimate == pytest.approx(u / (12 * 9))
    assert interval.low <= interval.estimate <= interval.high
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
    interval = s.probability_of_improvement(ahead, runs)
    assert interval.low == interval.estimate == pytest.approx(2 / 3)  # of all orders of three seeds, none is worse


def test_a_stratified_interval_draws_within_each_benchmark() -> None:
    runs = [[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]]
    interval = s.stratified_interval(runs, statistics.fmean)
    assert interval.estimate == pytest.approx(0.5)
    assert 0.4 < interval.low < interval.estimate < interval.high < 0.6
    assert s.stratified_interval(runs, s.iqm).n == 3
    assert s.stratified_interval([[0.5, 0.5], [0.7, 0.7]], statistics.fmean).low == pytest.approx(0.6)


def test_every_draw_is_seeded() -> None:
    many = [math.sin(i) + 0.2 for i in range(40)]
    assert s.sign_flip(many) == s.sign_flip(many)
    runs = [[0.1, 0.2, 0.3]], [[0.15, 0.25, 0.2]]
    assert s.probability_of_improvement(*runs) == s.probability_of_improvement(*runs)
    assert s.stratified_interval(runs[0], s.iqm) == s.stratified_interval(runs[0], s.iqm)


def scores(
    first: Sequence[float], second: Sequence[float], *, seeds: int = 3, images: int = 20, noise: float = 0.0
) -> ModelScores:
    generator = np.random.default_rng(1)
    sides = [
        np.array(side)[:, None, None] + noise * generator.normal(size=(len(side), seeds, images))
        for side in (first, second)
    ]
    return ModelScores(first=sides[0], second=sides[1], clusters=np.arange(images))


@pytest.mark.parametrize("ties", [False, True])
def test_tau_is_scipys(ties: bool) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 50, 6))
    if ties:
        a, b = a.round(), b.round()
    expected = [kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(_tau(a, b), expected, atol=1e-12)
    assert _tau(np.ones((1, 4)), np.arange(4, dtype=np.float64)[None]) == [0.0]


def test_the_same_order_everywhere_is_one_and_chance_is_one_order_of_all() -> None:
    tau = agreement([scores([1, 2, 3], [10, 20, 30]), scores([5, 6, 7], [0, 1, 2])])
    assert tau.by_benchmark == (1.0, 1.0)
    assert (there(tau.interval).low, there(tau.interval).high) == (1.0, 1.0)
    assert tau.p == pytest.approx(1 / 6) == tau.least_p
    with pytest.raises(ValueError, match="two methods"):
        agreement([scores([1], [1])])


def test_the_share_of_orders_is_that_of_all_permutations_over_all_benchmarks() -> None:
    first = ([1, 2, 3, 4], [2, 1, 3, 4])
    second = ([4, 1, 2, 3], [1, 2, 4, 3])
    tau = agreement([scores(a, b) for a, b in zip(first, second, strict=True)])

    def mean(order: tuple[int, ...]) -> float:
        return float(
            np.mean([kendalltau(a, np.array(b)[list(order)]).statistic for a, b in zip(first, second, strict=True)])
        )

    seen = mean((0, 1, 2, 3))
    every = [mean(order) for order in itertools.permutations(range(4))]
    assert tau.mean == pytest.approx(seen)
    assert tau.p == pytest.approx(sum(value >= seen - 1e-9 for value in every) / 24)


def test_noise_widens_the_interval_and_a_single_seed_has_none() -> None:
    still, noisy = (
        there(agreement([scores([1, 1.1, 1.2], [1, 1.1, 1.2], noise=noise)]).interval) for noise in (0.001, 1.0)
    )
    assert still.low == 1.0
    assert noisy.low < 0.5
    assert agreement([scores([1, 2], [1, 2], seeds=1)]).interval is None


def test_seeds_that_rank_otherwise_widen_the_interval_whatever_the_images_say() -> None:
    """Every image of a seed says the same, so that only redrawing the seeds tells that two of three turn the order."""
    generator = np.random.default_rng(0)
    first = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 0.5], [3.0, -1.0, 0.0]])[:, :, None].repeat(20, axis=2)
    second = np.array([1.0, 2.0, 3.0])[:, None, None] + 1e-6 * generator.normal(size=(3, 3, 20))
    interval = there(agreement([ModelScores(first=first, second=second, clusters=np.arange(20))]).interval)
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_images_of_one_cluster_are_drawn_together() -> None:
    first, second = np.random.default_rng(3).normal(size=(2, 3, 2, 40))
    alone = there(agreement([ModelScores(first=first, second=second, clusters=np.arange(40))]).interval)
    sides = {"first": first[:, :1].repeat(2, 1), "second": second[:, :1].repeat(2, 1)}
    one_cluster = there(agreement([ModelScores(**sides, clusters=np.zeros(40, dtype=int))]).interval)
    assert alone.low < alone.high
    assert one_cluster.low == one_cluster.high  # equal seeds and a single cluster: nothing to redraw


def test_all_orders_of_seven_methods_are_tried_and_those_of_more_are_drawn_the_same_each_time() -> None:
    values = list(range(9))
    tau = agreement([scores(values[:7], [1, 0, *values[2:7]])])
    assert tau.p == pytest.approx(7 / 5040)  # at most one pair of neighbours turned
    case = [scores(values, values)]
    assert agreement(case) == agreement(case)
    assert agreement(case).p == pytest.approx(1 / 5040)


def test_answers_of_elsewhere_are_drawn_again_once_for_all_benchmarks() -> None:
    of = scores([1, 2, 3], [0.50, 0.51, 0.52])
    drawn = replace(of, trials=1000)
    still, once, twice = (there(agreement(cases).interval) for cases in ([of], [drawn], [drawn, drawn]))
    assert (still.low, still.high) == (1.0, 1.0)
    assert once.low < 0 < once.high == 1.0
    assert once == twice
