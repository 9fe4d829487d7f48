"""Intervals equal scipy's where scipy has them, and the resampled or simulated ones where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from harness import statistics as s
from harness.statistics import quantile
from tests.values import there

VALUES = [0.912, 0.905, 0.921, 0.899, 0.917]


def test_sd_and_t_interval_equal_scipy_and_one_value_has_neither() -> None:
    low, high = stats.t.interval(0.95, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert interval_of(s.of_seeds(VALUES)) == pytest.approx((low, high), abs=1e-12)
    assert s.of_seeds(VALUES).mean == pytest.approx(np.mean(VALUES))
    assert s.sd(VALUES) == pytest.approx(np.std(VALUES, ddof=1))
    assert quantile(len(VALUES) - 1) == pytest.approx(stats.t.ppf(0.975, len(VALUES) - 1))
    assert s.sd([1.0]) is s.of_seeds([1.0]).interval() is None


def interval_of(estimate: s.Estimate | None) -> tuple[float, float]:
    return there(there(estimate).interval())


def half(interval: tuple[float, float]) -> float:
    return (interval[1] - interval[0]) / 2


@pytest.mark.parametrize("transposed", [False, True])
def test_crossed_interval_of_equal_images_is_students_over_seeds_and_of_equal_seeds_over_images(
    transposed: bool,
) -> None:
    """Without a spread of the one only the other is left."""
    table = np.repeat([VALUES], 3, axis=0)
    ours, theirs = there(s.crossed(table if transposed else table.T)), s.of_seeds(VALUES)
    assert (ours.mean, *interval_of(ours)) == pytest.approx((theirs.mean, *interval_of(theirs)))


def variance_of(estimate: s.Estimate | None) -> float:
    parts = there(estimate)
    return there(parts.seeds).variance + sum(part.variance for part in parts.rest)


def crossed_table(seed: int, *, seeds: int, images: int, interaction: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    own, others = generator.normal(size=(seeds, 1)), 3 * generator.normal(size=(1, images))
    return np.asarray(own + others + interaction * generator.normal(size=(seeds, images)))


@pytest.mark.parametrize(("seed", "interaction"), [(3, 0.5), (5, 12.0)])
def test_its_variance_is_remls_of_a_random_two_way_model(seed: int, interaction: float) -> None:
    """Restricted likelihood of the whole covariance matrix, maximised numerically; of the second table the seeds' component is zero."""
    table = crossed_table(seed, seeds=4, images=9, interaction=interaction)
    seeds, images = table.shape
    parts = [
        np.kron(np.eye(seeds), np.ones((images, images))),
        np.kron(np.ones((seeds, seeds)), np.eye(images)),
        np.eye(table.size),
    ]

    def minus_likelihood(logs: np.ndarray) -> float:
        v = sum(np.exp(log) * part for log, part in zip(logs, parts, strict=True))
        inverse, ones = np.linalg.inv(v), np.ones(table.size)
        left = table.ravel() - (ones @ inverse @ table.ravel()) / (ones @ inverse @ ones)
        return float(np.linalg.slogdet(v)[1] + np.log(ones @ inverse @ ones) + left @ inverse @ left)

    fit = optimize.minimize(
        minus_likelihood, np.zeros(3), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-12}
    )
    by_seed, by_image, both = np.exp(fit.x)
    expected = by_seed / seeds + by_image / images + both / (seeds * images)
    assert variance_of(s.crossed(table)) == pytest.approx(expected, rel=1e-3)


def test_folds_share_images_and_their_interval_counts_that() -> None:
    ours = interval_of(s.of_folds(VALUES, test_share=0.5))
    expected = stats.t.ppf(0.975, 4) * math.sqrt(
        np.var(VALUES, ddof=1) * (1 / 5 + 0.5)
    )  # Nadeau and Bengio 2003, eq. 9
    assert half(ours) == pytest.approx(expected)
    assert s.of_folds([1.0], test_share=0.5).interval() is None


def test_with_one_split_for_all_a_large_cluster_weighs_as_it_enters_the_mean() -> None:
    """One patient with 60 images and seven with 5: by their count alone the variance would be a quarter of the true one."""
    generator = np.random.default_rng(0)
    sizes = [60, *[5] * 7]
    clusters = np.repeat(np.arange(8), sizes)
    means, variances, held = [], [], []
    for _ in range(1500):
        of_patient, runs = generator.normal(0, 2, 8), generator.normal(0, 0.3, 3)
        scores = runs[:, None] + of_patient[clusters] + generator.normal(0, 0.5, (3, len(clusters)))
        estimate = there(s.crossed(scores, clusters=clusters))
        means.append(estimate.mean)
        variances.append(sum(there(part).variance for part in (estimate.seeds, *estimate.rest)))
        held.append(abs(estimate.mean) <= half(interval_of(estimate)))
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.15)
    assert np.mean(held) >= 0.92


def test_many_rows_and_one_seed_have_the_variance_of_a_pair_over_clusters_of_several_sizes() -> None:
    clusters = np.repeat(np.arange(8), [60, *[5] * 7])
    row = np.random.default_rng(0).normal(0, 2, 8)[clusters] + np.arange(95) / 50
    pair = there(s.crossed(np.stack([row] * 3), clusters=clusters)).rest[0]
    images = np.stack([np.zeros((3, 95)), np.stack([row] * 3)])
    assert s.family(images.mean(axis=2), images, clusters=clusters).images[0, 0] == pytest.approx(pair.variance)


def test_a_row_that_no_seed_changes_leaves_the_others_spread_as_it_is() -> None:
    runs = np.random.default_rng(0).random((4, 3))
    whole = s.family(runs)
    for score in (0.2, 0.25, 0.37, 0.8):  # the mean of three is another float than 0.2, 0.37 and 0.8
        more = s.family(np.vstack([runs, np.full(3, score)]))
        assert (more.seeds[0], more.df) == (pytest.approx(whole.seeds[0]), whole.df)


def test_a_rows_own_spread_is_shrunk_towards_the_pooled_one() -> None:
    runs = np.array([[1.0, 2.0, 6.0], [3.0, 3.5, 4.0], [5.0, 5.0, 5.0]])  # the last says nothing of the pooled spread
    own, pooled = np.array([14.0, 0.5, 0.0]), (14 + 0.5) / 4
    shrunk = s.family(runs, prior=4)
    assert shrunk.seeds == pytest.approx((4 * pooled + own) / 6 / 3)
    assert (shrunk.df, shrunk.pooled) == (6, False)
    assert s.family(runs, prior=1e9).seeds == pytest.approx(s.family(runs).seeds)
    (alone,) = s.max_t([s.family(runs[:2], prior=1e-9)])  # Welch's interval, but for its degrees of freedom
    assert alone == pytest.approx(math.sqrt(7.25 / 3) * 4.30, rel=0.2)
    first, second = s.max_t([s.family(runs[[1, 0, 1]] + np.array([[0], [0], [9]]), prior=4)])
    assert first > second, "the row that spreads more has the wider interval"


def test_of_one_row_the_simultaneous_interval_over_few_images_is_students() -> None:
    row = np.random.default_rng(0).normal(0, 2, 6)
    images = np.stack([np.zeros((3, 6)), np.stack([row] * 3)])
    (simulated,) = s.max_t([s.family(images.mean(axis=2), images)])
    assert simulated == pytest.approx(half(interval_of(s.of_seeds(row.tolist()))), rel=0.03)


def test_there_is_no_interval_of_one_seed_one_image_or_one_cluster() -> None:
    assert s.crossed(np.array([[1.0, 2.0]])) is None
    assert s.crossed(np.array([[1.0], [2.0]])) is None
    assert s.crossed(np.array([[1.0, 2.0], [2.0, 1.0]]), clusters=np.array([0, 0])) is None


def test_the_mean_over_benchmarks_pools_what_each_knows() -> None:
    first, second = s.of_seeds([1.0, 2.0, 3.0]), s.of_seeds([2.0, 4.0, 6.0])
    mean = s.average_of([first, second])
    seeds = there(mean.seeds)
    assert mean.mean == 3.0
    assert seeds.variance == pytest.approx((1 / 3 + 4 / 3) / 4)
    assert 2 < seeds.df < 4
    assert half(interval_of(mean)) < (half(interval_of(first)) + half(interval_of(second))) / 2
    assert s.average_of([first, s.of_seeds([1.0])]).interval() is None
    images = s.Estimate(mean=1.0, n=3, seeds=first.seeds, rest=(s.VarianceShare(variance=1.0, df=99),))
    assert [part.variance for part in s.average_of([images, first]).rest] == [0.25]
