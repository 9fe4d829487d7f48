"""Saliency metrics against PySODMetrics 1.6 (the field's port of the authors' MATLAB code), to 1e-6."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from harness.evaluation.conventions import SALIENCY, Conventions
from harness.evaluation.scorer import SplitScorer
from tests.harness.evaluation.pairs import blob, random_pairs, soft

sod = pytest.importorskip("py_sod_metrics", reason="PySODMetrics is in the test extra: pip install -e .[test]")

TOLERANCE = 1e-6


def reference(prediction, mask, *, beta2=1.0, normalize=True):
    """The six values from PySODMetrics for one image, or a split if given lists."""
    predictions, masks = ([prediction], [mask]) if isinstance(prediction, np.ndarray) else (prediction, mask)
    metrics = sod.MAE(), sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure(beta=beta2)
    for predicted, truth in zip(predictions, masks, strict=True):
        for metric in metrics:
            metric.step(predicted, truth * np.uint8(255) if normalize else truth.astype(bool), normalize=normalize)
    error, structure, alignment, weighted = (metric.get_results() for metric in metrics)
    curve = alignment["em"]["curve"]
    return {
        "s_measure": structure["sm"], "e_mean": curve.mean(), "e_max": curve.max(),
        "e_adaptive": alignment["em"]["adp"], "weighted_f": weighted["wfm"], "mae": error["mae"],
    }  # fmt: skip


def ours(prediction, mask, **conventions):
    return SplitScorer(SALIENCY, conventions=Conventions(**conventions)).measure(prediction, mask).values


def test_200_pairs_equal_pysodmetrics():
    for name, prediction, mask in random_pairs(200):
        expected, scores = reference(prediction, mask), ours(prediction / 255, mask)
        for metric in SALIENCY:
            assert scores[metric] == pytest.approx(expected[metric], abs=TOLERANCE), f"{name}: {metric}"


def test_weighted_f_takes_ignored_pixels_for_background_without_error():
    rng = np.random.default_rng(4)
    for name, prediction, mask in random_pairs(20, seed=4):
        ignored = rng.random(mask.shape) < 0.3
        probability = np.where(ignored, 0.0, prediction / 255)
        expected = reference(probability, np.where(ignored, 0, mask).astype(np.uint8), normalize=False)["weighted_f"]
        score = ours(prediction / 255, np.where(ignored, 255, mask).astype(np.uint8), min_max=False)["weighted_f"]
        assert score == pytest.approx(expected, abs=TOLERANCE), name


def test_far_errors_equal_pysodmetrics():
    """A small object and errors much farther off than the distance at which their weight is taken as 2."""
    rng = np.random.default_rng(3)
    mask = np.zeros((500, 700), dtype=np.uint8)
    mask[40:60, 50:90] = 1
    for level in (1, 8, 255):
        prediction = np.minimum(soft(rng, mask), 250)
        prediction[300:, 400:] = level
        assert ours(prediction / 255, mask)["weighted_f"] == pytest.approx(
            reference(prediction, mask)["weighted_f"], abs=TOLERANCE
        )


def test_real_valued_maps_without_stretching_equal_pysodmetrics():
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = blob(rng, 61, 47)
        prediction = soft(rng, mask) / 255 * 0.8 + 0.1
        expected = reference(prediction, mask, normalize=False)
        scores = ours(prediction, mask, min_max=False)
        assert scores == {metric: pytest.approx(expected[metric], abs=TOLERANCE) for metric in SALIENCY}


def test_beta_squared_of_the_weighted_f_equals_pysodmetrics():
    rng = np.random.default_rng(7)
    mask = blob(rng, 80, 80)
    prediction = soft(rng, mask)
    score = ours(prediction / 255, mask, weighted_f_beta2=0.3)["weighted_f"]
    assert score == pytest.approx(reference(prediction, mask, beta2=0.3)["weighted_f"], abs=TOLERANCE)
    assert score != pytest.approx(ours(prediction / 255, mask)["weighted_f"], abs=1e-3)


def test_a_split_equals_pysodmetrics_over_images():
    """The maximal E-measure is taken of the mean curve: one threshold for the split."""
    pairs = list(random_pairs(40, seed=11))
    expected = reference([prediction for _, prediction, _ in pairs], [mask for _, _, mask in pairs])
    scorer = SplitScorer(SALIENCY)
    for name, prediction, mask in pairs:
        scorer.insert(name, scorer.measure(prediction / 255, mask))
    assert scorer.summary() == {metric: pytest.approx(expected[metric], abs=TOLERANCE) for metric in SALIENCY}
    assert scorer.summary()["e_max"] < np.mean([values["e_max"] for values in scorer.images().values()])


def test_a_centroid_in_the_last_row_has_a_value_where_pysodmetrics_has_none():
    """Two quadrants have no pixels there; 0 by 0 is nan in PySODMetrics, and weighs nothing here."""
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[-1, 10] = 1
    prediction = np.full(mask.shape, 10, dtype=np.uint8)
    prediction[-1, 9:12] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(reference(prediction, mask)["s_measure"])
    assert 0.5 < ours(prediction / 255, mask)["s_measure"] < 1.0
