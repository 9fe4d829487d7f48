"""Permutation tests equal scipy's; p-values that n cannot reach are not given."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness import statistics as s


@pytest.mark.parametrize(
    "differences", [[0.1, 0.2, 0.3, -0.05, 0.2, 0.1], [0.1] * 8, [0.3, -0.2, 0.1, -0.1, 0.05, 0.2, -0.3]]
)
def test_exact_sign_flip_equals_scipys_paired_permutation_test(differences: list[float]) -> None:
    pair = (np.array(differences), np.zeros(len(differences)))
    how = {"permutation_type": "samples", "vectorized": True, "n_resamples": 2 ** len(differences)}
    theirs = stats.permutation_test(pair, lambda a, b, axis: np.mean(a - b, axis=axis), **how)
    assert s.sign_flip(differences).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_drawn_sign_flip_is_near_the_t_test_for_many_pairs() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1, size=60)
    ours = s.sign_flip(list(differences))
    assert ours.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_no_p_value_where_it_could_never_be_below_alpha(n: int) -> None:
    test = s.sign_flip([1.0] * n)
    assert test.p is None
    assert "n too small" in test.text
    assert test.statistic == (1.0 if n else 0.0)
    assert s.sign_flip([1.0] * 6).p == pytest.approx(2 / 64)


def test_holm_by_hand() -> None:
    """0.01·4, 0.02·3, 0.03·2 raised to 0.06, 0.04·1 raised to 0.06."""
    assert s.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02}) == pytest.approx(
        {"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06}
    )
    assert s.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_differences_that_cancel_have_p_1_whatever_the_order_of_their_sum() -> None:
    """scipy's own test gives 0.953 here: 0.3 + 0.3 + 0.8 - 0.3 - 0.2 - 0.3 - 0.4 - 0.2 is 0 but for the last bit."""
    assert s.sign_flip([0.0, -0.3, 0.3, 0.3, -0.2, 0.8, -0.3, -0.4, -0.2]).p == 1.0


def test_a_drawn_p_is_never_0() -> None:
    """The observed signs are one of the draws (Phipson and Smyth 2010)."""
    assert s.sign_flip([1.0] * 40, resamples=99).p == pytest.approx(1 / 100)
    assert s.sign_flip([1.0] * 17, resamples=999).p == pytest.approx(1 / 1000)
    assert s.sign_flip([1.0, -1.0] * 9, resamples=1500).p == 1.0
