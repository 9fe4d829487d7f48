"""Statistics equal scipy's where scipy has them, and the literature's tables where it has not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.reporting import statistics as s

VALUES = [0.912, 0.905, 0.921, 0.899, 0.917]


def test_sd_and_t_interval_equal_scipy() -> None:
    interval = s.t_interval(VALUES)
    assert interval is not None
    low, high = stats.t.interval(0.95, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert interval.estimate == pytest.approx(np.mean(VALUES))
    assert s.sd(VALUES) == pytest.approx(np.std(VALUES, ddof=1))


def test_one_value_has_neither_sd_nor_interval() -> None:
    assert s.sd([1.0]) is None
    assert s.t_interval([1.0]) is None


def test_paired_differences_are_by_seed_and_image() -> None:
    first = {0: {"a": 0.5, "b": 0.7}, 1: {"a": 0.6, "b": 0.6}, 2: {"a": 1.0, "b": 1.0}}
    second = {0: {"b": 0.5, "a": 0.4}, 1: {"a": 0.7, "b": 0.1}}
    assert s.paired(first, second) == {
        0: {"a": pytest.approx(0.1), "b": pytest.approx(0.2)},
        1: {"a": pytest.approx(-0.1), "b": pytest.approx(0.5)},
    }


def test_different_images_are_not_paired() -> None:
    with pytest.raises(ValueError, match="not the same images"):
        s.paired({0: {"a": 1.0}}, {0: {"b": 1.0}})


def crossed(table: np.ndarray) -> dict[int, dict[str, float]]:
    return {seed: {str(image): float(v) for image, v in enumerate(row)} for seed, row in enumerate(table)}


def test_hierarchical_bootstrap_of_equal_images_is_students_interval_over_seeds() -> None:
    """With no spread between images only seeds are left."""
    ours = s.hierarchical_bootstrap(
        {seed: {"a": value, "b": value} for seed, value in enumerate(VALUES)}, resamples=50_000
    )
    theirs = s.t_interval(VALUES)
    assert ours is not None
    assert theirs is not None
    assert ours.estimate == pytest.approx(np.mean(VALUES))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=3e-4)


def test_hierarchical_bootstrap_of_equal_seeds_is_students_interval_over_images() -> None:
    """One set of images serves all seeds, so more seeds do not narrow what images leave open."""
    ours = s.hierarchical_bootstrap(crossed(np.tile(VALUES, (4, 1))), resamples=50_000)
    theirs = s.t_interval(VALUES)
    assert ours is not None
    assert theirs is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=3e-4)


def test_hierarchical_bootstrap_sees_both_levels() -> None:
    """Squares of Student's half-widths over seeds and over images add up where the two do not interact."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(6, 1)) + 3 * generator.normal(size=(1, 40))
    interval = s.hierarchical_bootstrap(crossed(table), resamples=20_000)
    levels = [s.t_interval(list(table.mean(axis=axis))) for axis in (0, 1)]
    assert interval is not None
    expected = math.hypot(*(level.high - level.estimate for level in levels if level is not None))
    assert (interval.high - interval.estimate) / expected == pytest.approx(1, abs=0.03)
    assert s.hierarchical_bootstrap({0: {"a": 1.0, "b": 2.0}}) is None
    assert s.hierarchical_bootstrap({0: {"a": 1.0}, 1: {"a": 2.0}}) is None
    with pytest.raises(ValueError, match="not the same images"):
        s.hierarchical_bootstrap({0: {"a": 1.0, "b": 2.0}, 1: {"a": 1.0, "c": 2.0}})


@pytest.mark.parametrize(
    ("seeds", "image_sd", "seed_sd", "noise"),
    [(3, 10.0, 0.5, 0.0), (3, 1.0, 2.0, 0.0), (10, 10.0, 0.5, 0.0), (3, 10.0, 3.0, 5.0)],
)
def test_a_95_percent_interval_holds_the_truth_in_about_95_of_100_simulations(
    seeds: int, image_sd: float, seed_sd: float, noise: float
) -> None:
    """Seeds and images crossed, 100 images; ``noise`` is the SD of their interaction."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        table = generator.normal(0, seed_sd, (seeds, 1)) + generator.normal(0, image_sd, (1, 100))
        table = table + generator.normal(0, noise, (seeds, 100))
        interval = s.hierarchical_bootstrap(crossed(table), resamples=400)
        assert interval is not None
        held += interval.low <= 0 <= interval.high
    assert 0.92 <= held / 400 <= 0.995


def test_every_draw_is_seeded() -> None:
    scores = {seed: {str(i): math.sin(seed * 10 + i) for i in range(20)} for seed in range(3)}
    assert s.hierarchical_bootstrap(scores) == s.hierarchical_bootstrap(scores)
    assert s.hierarchical_bootstrap(scores) != s.hierarchical_bootstrap(scores, seed=1)
    many = [math.sin(i) + 0.2 for i in range(40)]
    assert s.sign_flip(many) == s.sign_flip(many)
    runs = [[0.1, 0.2, 0.3]], [[0.15, 0.25, 0.2]]
    assert s.probability_of_improvement(*runs) == s.probability_of_improvement(*runs)


@pytest.mark.parametrize(
    "differences", [[0.1, 0.2, 0.3, -0.05, 0.2, 0.1], [0.1] * 8, [0.3, -0.2, 0.1, -0.1, 0.05, 0.2, -0.3]]
)
def test_exact_sign_flip_equals_scipys_paired_permutation_test(differences: list[float]) -> None:
    ours = s.sign_flip(differences)
    pair = (np.array(differences), np.zeros(len(differences)))
    theirs = stats.permutation_test(
        pair,
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert ours.p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_drawn_sign_flip_is_near_the_t_test_for_many_pairs() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1, size=60)
    ours = s.sign_flip(list(differences))
    assert ours.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_no_p_value_where_it_could_never_be_below_alpha(n: int) -> None:
    test = s.sign_flip([1.0] * n)
    assert test.p is None
    assert "n too small" in test.text
    assert s.sign_flip([1.0] * 6).p == pytest.approx(2 / 64)


def test_holm_by_hand() -> None:
    """0.01·4, 0.02·3, 0.03·2 raised to 0.06, 0.04·1 raised to 0.06."""
    assert s.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06}
    )
    assert s.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_friedman_equals_scipy_and_refuses_too_few_blocks() -> None:
    table = np.random.default_rng(0).normal(size=(9, 4)) + np.arange(4)
    statistic, p = stats.friedmanchisquare(*table.T)
    test = s.friedman(table.tolist())
    assert (test.statistic, test.p) == pytest.approx((statistic, p))
    assert s.friedman(table[:2, :3].tolist()).p is None
    assert s.friedman([[1.0] * 3] * 9).p == 1.0
    with pytest.raises(ValueError, match="three"):
        s.friedman(table[:, :2].tolist())


@pytest.mark.parametrize(
    ("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)]
)
def test_nemenyi_critical_values_equal_demsars_table_5(methods: int, quantile: float) -> None:
    scaled = s.nemenyi_critical_difference(methods=methods, blocks=1) / math.sqrt(methods * (methods + 1) / 6)
    assert scaled == pytest.approx(quantile, abs=2e-3)


def test_nemenyi_p_crosses_alpha_at_the_critical_difference() -> None:
    table = [[3.0, 2.0, 1.0]] * 8
    p = s.nemenyi(table)
    assert s.average_ranks(table) == pytest.approx([1, 2, 3])
    apart = s.nemenyi_critical_difference(methods=3, blocks=8)
    assert (apart < 2) == (p[0, 2] < 0.05)
    assert (apart < 1) == (p[0, 1] < 0.05)
    assert p[0, 2] < p[0, 1] < 1
    assert p[1, 1] == 1


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.5, 1, 12), generator.normal(0, 1, 9)
    u = stats.mannwhitneyu(first, second).statistic
    found = s.probability_of_improvement([list(first)], [list(second)])
    assert found.estimate == pytest.approx(u / (12 * 9))
    assert found.low <= found.estimate <= found.high
    assert s.probability_of_improvement([[1.0, 1.0]], [[1.0, 1.0]]).estimate == 0.5


def test_rank_stability_is_certain_without_overlap_and_open_with_it() -> None:
    apart = s.rank_stability({"a": [[0.9, 0.91]], "b": [[0.5, 0.51]]}, resamples=200)
    assert apart == {"a": {1: 1.0}, "b": {2: 1.0}}
    close = s.rank_stability({"a": [[0.9, 0.5, 0.7]], "b": [[0.89, 0.51, 0.7]]}, resamples=500)
    assert 0.2 < close["a"][1] < 0.8


def test_seeds_needed_is_the_first_n_whose_interval_is_narrow_enough() -> None:
    n = s.seeds_needed(1.0, 0.8)
    assert n is not None
    assert s.t_quantile(n) / math.sqrt(n) <= 0.8 < s.t_quantile(n - 1) / math.sqrt(n - 1)
    assert s.seeds_needed(1.0, 0.0) is None
    assert s.seeds_needed(1.0, 0.8, rest=0.0) == n
    assert (s.seeds_needed(1.0, 0.8, rest=0.5) or 0) > n
    assert s.seeds_needed(1.0, 0.8, rest=0.8) is None  # no seed narrows what the images leave open
    assert s.seeds_needed(1.0, 1e-6) is None
