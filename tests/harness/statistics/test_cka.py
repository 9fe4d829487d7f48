"""CKA by Gram matrices: against what is known of it, and against the estimator written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.statistics.cka import cka, hsic, upper


def _grams(features: np.ndarray, *, batch: int = 8) -> list[list[float]]:
    grams = []
    for start in range(0, len(features), batch):
        part = features[start : start + batch]
        part = part - part.mean(axis=0)
        grams.append(upper(part @ part.T))
    return grams


def _features(seed: int, *, images: int = 32, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, width))


def test_of_a_matrix_with_itself_its_rotation_its_multiple_and_its_shift_it_is_one():
    features = _features(0)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))
    for other in (features, features @ rotation, 3 * features, features + 5):
        assert cka(_grams(features), _grams(other)) == pytest.approx(1.0, abs=1e-6)


def test_of_independent_features_it_is_near_zero():
    values = [cka(_grams(_features(2 * seed)), _grams(_features(2 * seed + 1))) for seed in range(20)]
    assert abs(np.mean(values)) < 0.05
    assert max(map(abs, values)) < 0.4


def test_minibatches_do_not_bias_it():
    first = _features(0, images=480)
    second = first + 0.7 * _features(1, images=480)
    whole, parts = (cka(_grams(first, batch=n), _grams(second, batch=n)) for n in (480, 8))
    assert whole == pytest.approx(1 / (1 + 0.7**2), abs=0.03)
    assert parts == pytest.approx(whole, abs=0.03)


def test_the_estimator_is_the_mean_over_four_different_images():
    first, second = (_features(seed, images=6) @ _features(seed, images=6).T for seed in (0, 1))
    for gram in (first, second):
        np.fill_diagonal(gram, 0)
    terms = [
        first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    assert hsic(first, second) == pytest.approx(float(np.mean(terms)))


def test_what_cannot_be_compared_is_refused():
    grams = _grams(_features(0))
    with pytest.raises(ValueError, match="minibatches"):
        cka(grams, grams[:1])
    with pytest.raises(ValueError, match="vary"):
        cka(grams, [[0.0] * len(gram) for gram in grams])
    with pytest.raises(ValueError, match="3 images"):
        cka([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]])
