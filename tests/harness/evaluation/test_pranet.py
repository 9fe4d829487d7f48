"""Mean Dice and mean IoU against a plain port of PraNet's evaluation (``eval/main.m`` and ``eval/Fmeasure_calu.m``)."""

from __future__ import annotations

import numpy as np
import pytest

from harness.evaluation.conventions import MEAN_OVERLAP
from harness.evaluation.scorer import SplitScorer
from tests.harness.evaluation.pairs import random_pairs


def by_pranet(prediction, mask):
    """Means over the thresholds 1:-1/255:0, with one loop a threshold."""
    levels = prediction.astype(
        int
    )  # the map is stretched to [0, 1]; in whole numbers no rounding decides at a threshold
    low, high = levels.min(), levels.max()
    low, high = (low, high) if low < high else (0, 255)
    dices, ious = [], []
    for step in range(255, -1, -1):
        predicted = (levels - low) * 255 >= step * (high - low)
        hits, count, objects = (predicted & (mask == 1)).sum(), predicted.sum(), (mask == 1).sum()
        dices.append(2 * hits / (objects + count) if hits else 0.0)
        ious.append(hits / (objects - hits + count) if hits else 0.0)
    return np.mean(dices), np.mean(ious)


def test_200_pairs_equal_pranets_evaluation():
    scorer, expected = SplitScorer(MEAN_OVERLAP), []
    for name, prediction, mask in random_pairs(200):
        scorer.insert(name, scorer.measure(prediction / 255, mask))
        expected.append(by_pranet(prediction, mask))
        assert tuple(scorer.images()[name].values()) == pytest.approx(expected[-1], abs=1e-4), name
    assert tuple(scorer.summary().values()) == pytest.approx(np.mean(expected, axis=0), abs=1e-5)


def test_mean_overlap_worked_by_hand():
    """2×2, one true pixel at 1, a false one at 0.5: from 255 down to 128 one hit alone; from 127 down to 1 both; at 0 all four."""
    mask = np.array([[1, 0], [0, 0]], dtype=np.uint8)
    values = SplitScorer(MEAN_OVERLAP).measure(np.array([[1.0, 0.5], [0.0, 0.0]]), mask).values
    assert values["dice_mean"] == pytest.approx((128 + 127 * 2 / 3 + 2 / 5) / 256, abs=1e-12)
    assert values["iou_mean"] == pytest.approx((128 + 127 / 2 + 1 / 4) / 256, abs=1e-12)
    empty = SplitScorer(MEAN_OVERLAP).measure(np.zeros((2, 2)), np.zeros((2, 2), np.uint8)).values
    assert set(empty.values()) == {0.0}, "PraNet's evaluation gives 0 where nothing is hit"
